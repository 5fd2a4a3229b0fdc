-- Engine processes. named_worker_id is empty for one that follows its daemon, whatever worker that
-- has. generation counts registrations: whatever is written about an earlier one is passed over.
-- Keys are never used twice.
CREATE TABLE instances (
    instance_key INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL UNIQUE,
    daemon_id TEXT NOT NULL,
    named_worker_id TEXT NOT NULL,
    engine TEXT NOT NULL,
    signals_endpoint TEXT NOT NULL,
    labels_json TEXT NOT NULL,
    execution_endpoint TEXT NOT NULL,
    execution_host_kind TEXT NOT NULL,
    capability_flags INTEGER NOT NULL,
    last_heartbeat INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    inactive_at INTEGER
) STRICT;
CREATE INDEX instances_ended ON instances (inactive_at) WHERE inactive_at IS NOT NULL;
