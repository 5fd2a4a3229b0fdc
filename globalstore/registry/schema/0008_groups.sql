-- What a part of a group may get: the whole message, and what the server reads of it.
CREATE TABLE selections (
    selection_key INTEGER PRIMARY KEY,
    encoded BLOB NOT NULL,
    artifact_id TEXT NOT NULL,
    view_id TEXT NOT NULL,
    selection_hash BLOB NOT NULL,
    logical_layout_hash BLOB NOT NULL
) STRICT;

-- Which part of a group gets what. Named by their content and never changed.
-- realization_kind: 1 the same selection for all parts, 2 one for each.
CREATE TABLE version_sets (
    version_set_key INTEGER PRIMARY KEY,
    manifest_hash BLOB NOT NULL UNIQUE,
    realization_kind INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    key_generation INTEGER,
    created_at INTEGER NOT NULL
) STRICT;
CREATE TABLE version_set_parts (
    version_set_key INTEGER NOT NULL REFERENCES version_sets,
    part_id TEXT NOT NULL,
    selection_key INTEGER NOT NULL REFERENCES selections,
    space_kind INTEGER NOT NULL,
    space_id TEXT NOT NULL,
    metadata_json TEXT NOT NULL,
    PRIMARY KEY (version_set_key, part_id)
) STRICT, WITHOUT ROWID;

-- Realizations. A row is never deleted: its slot (kind, id, epoch) is used once.
-- state: 3 preparing, 4 ready to publish, 5 published, 6 aborted, 7 expired, the numbers of the
-- wire. What became of the members at the end follows from it, and from is_fenced: aborted because
-- a source was not as reported. key is blank for a version that no key gave.
-- deadline is of the lease clock and lifetime what it was away at the start, NULL for none;
-- deadline_unix_nanos is what is shown.
CREATE TABLE group_transactions (
    transaction_key INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE,
    group_kind TEXT NOT NULL,
    group_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    version_set_key INTEGER NOT NULL REFERENCES version_sets,
    required_part_ids TEXT NOT NULL,
    total_parts INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    key_generation INTEGER,
    state INTEGER NOT NULL,
    prepared_count INTEGER NOT NULL DEFAULT 0,
    is_fenced INTEGER NOT NULL DEFAULT 0,
    failure_code TEXT NOT NULL DEFAULT '',
    failure_detail TEXT NOT NULL DEFAULT '',
    deadline_unix_nanos INTEGER NOT NULL,
    deadline INTEGER,
    lifetime INTEGER,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    has_members INTEGER NOT NULL DEFAULT 1,
    UNIQUE (group_kind, group_id, epoch)
) STRICT;
CREATE INDEX group_transactions_live ON group_transactions (deadline) WHERE ended_at IS NULL;
CREATE INDEX group_transactions_ended ON group_transactions (ended_at)
    WHERE ended_at IS NOT NULL AND has_members;

-- Parts that have joined, until a day after the end. is_prepared once they have reported; the
-- fields from staged_daemon_id on are those of the report.
CREATE TABLE group_members (
    transaction_key INTEGER NOT NULL REFERENCES group_transactions,
    part_id TEXT NOT NULL,
    is_prepared INTEGER NOT NULL DEFAULT 0,
    daemon_id TEXT NOT NULL,
    daemon_session_id TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    fingerprint BLOB NOT NULL DEFAULT x'',
    staged_daemon_id TEXT NOT NULL DEFAULT '',
    staged_session_id TEXT NOT NULL DEFAULT '',
    staged_binding_id TEXT NOT NULL DEFAULT '',
    staged_binding_value_id TEXT NOT NULL DEFAULT '',
    staging_token TEXT NOT NULL DEFAULT '',
    staging_epoch INTEGER NOT NULL DEFAULT 0,
    materialization_attempt_id TEXT NOT NULL DEFAULT '',
    source_replica_id TEXT NOT NULL DEFAULT '',
    source_replica BLOB,
    source_export_generation INTEGER NOT NULL DEFAULT 0,
    child_transport_request_id TEXT NOT NULL DEFAULT '',
    expected_previous_seal_generation INTEGER NOT NULL DEFAULT 0,
    prepared_value_hash BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (transaction_key, part_id)
) STRICT, WITHOUT ROWID;
