-- The schema as it is: what the numbered steps beside this file lead to. A test holds the two
-- equal; the program itself runs the steps only.
--
-- Times are microseconds since 1970, UTC. Ids of workers, artifacts and endpoints are stored once
-- and referred to by integer key: with a million replicas that is the difference between 70 MB and
-- 370 MB. UUIDs are 16 bytes.

-- The identity of this database; exactly one row.
CREATE TABLE cluster (
    cluster_key INTEGER PRIMARY KEY CHECK (cluster_key = 1),
    cluster_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Every worker id that anything refers to, whether or not its worker is known.
-- A replica counts as available only if it was confirmed under the present
-- confirmation number, so that one update here hides all replicas of a worker.
-- confirmation_last is the highest number that was ever given out; confirmation itself may go back
-- to an older one when a worker confirms what it had under that one.
-- load_sum and limit_sum are the transports that all replicas of a worker serve, and may serve: kept
-- by the triggers on replicas, so that no statement on replicas has to update them.
-- Worker 0 with the blank id is no worker: it has the replicas that are gone but still serve
-- transports. Nothing shows them, and the last of their transports deletes them.
CREATE TABLE worker_ids (
    worker_key INTEGER PRIMARY KEY,
    worker_id TEXT NOT NULL UNIQUE,
    confirmation INTEGER NOT NULL DEFAULT 1,
    confirmation_last INTEGER NOT NULL DEFAULT 1,
    load_sum INTEGER NOT NULL DEFAULT 0,
    limit_sum INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO worker_ids (worker_key, worker_id, confirmation, confirmation_last)
VALUES (0, '', 0, 0);

-- The identity of a worker. grpc_port is NULL once another worker took the endpoint.
CREATE TABLE workers (
    worker_key INTEGER PRIMARY KEY REFERENCES worker_ids,
    daemon_id TEXT NOT NULL UNIQUE,
    node_id TEXT NOT NULL,
    node_address TEXT NOT NULL,
    grpc_port INTEGER,
    p2p_port INTEGER NOT NULL,
    mem_pool_total_size INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    inactive_at INTEGER,
    UNIQUE (node_address, grpc_port)
) STRICT;
-- The live worker of a node gives the address of its chunks.
CREATE INDEX workers_by_node ON workers (node_id);

-- What its heartbeats reported, written in batches.
CREATE TABLE worker_liveness (
    worker_key INTEGER PRIMARY KEY REFERENCES workers ON DELETE CASCADE,
    last_heartbeat INTEGER NOT NULL,
    mem_pool_available_size INTEGER NOT NULL,
    accepting_new_requests INTEGER NOT NULL,
    capability_flags INTEGER NOT NULL
) STRICT;

-- Which incarnation it is in and how far its reconciliation came.
-- A generation outlives everything: a row here is never deleted before its worker.
-- process_generation is that of the last plain registration: what the worker registered before
-- it belongs to a process that is gone. confirmed_generation is that in which the worker last
-- confirmed all that it holds; 0: in none.
CREATE TABLE worker_cursors (
    worker_key INTEGER PRIMARY KEY REFERENCES workers ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    process_generation INTEGER NOT NULL,
    request_seq INTEGER NOT NULL,
    state_version INTEGER NOT NULL,
    needs_reconcile INTEGER NOT NULL,
    confirmed_generation INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What an artifact is, as far as it was described.
CREATE TABLE artifacts (
    artifact_key INTEGER PRIMARY KEY,
    artifact_id TEXT NOT NULL UNIQUE,
    id_kind INTEGER NOT NULL,
    index_multihash TEXT NOT NULL,
    data_multihash TEXT NOT NULL,
    schema_version TEXT NOT NULL,
    encoding TEXT NOT NULL,
    total_size INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

-- Tensor indexes by the SHA-256 of their bytes.
CREATE TABLE tensor_indexes (
    index_digest BLOB PRIMARY KEY,
    index_data BLOB NOT NULL,
    encoding TEXT NOT NULL,
    schema_version TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Where replicas are served from.
CREATE TABLE endpoints (
    endpoint_key INTEGER PRIMARY KEY,
    node_id TEXT NOT NULL,
    node_address TEXT NOT NULL,
    node_port INTEGER NOT NULL,
    UNIQUE (node_id, node_address, node_port)
) STRICT;

-- seq is the registration order; it is never used twice.
-- memory_tier: 0 GPU, 1 RAM, 2 DISK, the order in which sources are preferred.
-- max_concurrency is the target; the limit that is reported is never below the load.
-- Those of nobody have a device_id of -seq, out of the way of what is registered in their place.
-- The unique index of the identity also finds the replicas of an artifact.
CREATE TABLE replicas (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    replica_id BLOB NOT NULL UNIQUE,
    artifact_key INTEGER NOT NULL REFERENCES artifacts,
    view_id TEXT NOT NULL,
    endpoint_key INTEGER NOT NULL REFERENCES endpoints,
    memory_tier INTEGER NOT NULL,
    device_id INTEGER NOT NULL,
    worker_key INTEGER NOT NULL REFERENCES worker_ids,
    worker_generation INTEGER NOT NULL,
    confirmation INTEGER NOT NULL,
    is_available INTEGER NOT NULL,
    memory_size INTEGER NOT NULL,
    max_concurrency INTEGER NOT NULL,
    current_requests INTEGER NOT NULL DEFAULT 0 CHECK (current_requests >= 0),
    last_assigned_at INTEGER NOT NULL DEFAULT 0,
    export_state INTEGER NOT NULL,
    export_generation INTEGER NOT NULL,
    transfer_size INTEGER NOT NULL,
    transfer_json TEXT NOT NULL,
    tensor_index_key TEXT NOT NULL,
    is_memory_replica INTEGER NOT NULL,
    source_process_id TEXT NOT NULL,
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (artifact_key, view_id, endpoint_key, memory_tier, device_id)
) STRICT;
CREATE INDEX replicas_by_worker ON replicas (worker_key, artifact_key);
CREATE INDEX replicas_by_endpoint ON replicas (endpoint_key);
CREATE INDEX replicas_by_expiry ON replicas (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX replicas_in_use ON replicas (replica_id) WHERE current_requests > 0;

-- The sources of an artifact with a free slot, in the order in which they are shortlisted.
CREATE INDEX replica_sources ON replicas (
    artifact_key, view_id, memory_tier, current_requests * 1.0 / max_concurrency, last_assigned_at
) WHERE is_available = 1 AND export_state = 2 AND transfer_size = memory_size
    AND current_requests < max_concurrency;

-- Replicas but those that are gone and only wait for the end of their transports.
CREATE VIEW held_replicas AS SELECT * FROM replicas WHERE worker_key != 0;

-- The sums in worker_ids.
CREATE TRIGGER worker_load_of_new AFTER INSERT ON replicas BEGIN
    UPDATE worker_ids SET load_sum = load_sum + new.current_requests,
        limit_sum = limit_sum + new.max_concurrency
    WHERE worker_key = new.worker_key;
END;
CREATE TRIGGER worker_load_of_gone AFTER DELETE ON replicas BEGIN
    UPDATE worker_ids SET load_sum = load_sum - old.current_requests,
        limit_sum = limit_sum - old.max_concurrency
    WHERE worker_key = old.worker_key;
END;
CREATE TRIGGER worker_load_of_changed
AFTER UPDATE OF current_requests, max_concurrency, worker_key ON replicas
WHEN new.worker_key = old.worker_key AND (new.current_requests != old.current_requests
    OR new.max_concurrency != old.max_concurrency)
BEGIN
    UPDATE worker_ids SET
        load_sum = load_sum + new.current_requests - old.current_requests,
        limit_sum = limit_sum + new.max_concurrency - old.max_concurrency
    WHERE worker_key = new.worker_key;
END;
CREATE TRIGGER worker_load_of_moved AFTER UPDATE OF worker_key ON replicas
WHEN new.worker_key != old.worker_key
BEGIN
    UPDATE worker_ids SET load_sum = load_sum - old.current_requests,
        limit_sum = limit_sum - old.max_concurrency
    WHERE worker_key = old.worker_key;
    UPDATE worker_ids SET load_sum = load_sum + new.current_requests,
        limit_sum = limit_sum + new.max_concurrency
    WHERE worker_key = new.worker_key;
END;

-- Transports: which requester was granted which source. Rows outlive the replica.
-- outcome: 0 in progress, 1 success, 2 failed, 3 expired, 4 cancelled.
CREATE TABLE transports (
    transport_key INTEGER PRIMARY KEY AUTOINCREMENT,
    transport_id BLOB NOT NULL UNIQUE,
    replica_id BLOB NOT NULL,
    artifact_key INTEGER NOT NULL REFERENCES artifacts,
    view_id TEXT NOT NULL,
    source_worker_key INTEGER NOT NULL REFERENCES worker_ids,
    requester_node_id TEXT NOT NULL,
    requester_address TEXT NOT NULL,
    requester_port INTEGER NOT NULL,
    requester_worker_id TEXT NOT NULL,
    request_id TEXT,
    fingerprint BLOB NOT NULL,
    group_kind TEXT,
    group_id TEXT,
    group_epoch INTEGER,
    group_part_id TEXT,
    group_total_parts INTEGER,
    group_priority INTEGER,
    replica_memory_size INTEGER NOT NULL,
    outcome INTEGER NOT NULL DEFAULT 0,
    outcome_detail TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL,
    completed_at INTEGER
) STRICT;
CREATE UNIQUE INDEX transports_by_request ON transports (request_id)
    WHERE request_id IS NOT NULL;
CREATE INDEX transports_by_group ON transports (group_kind, group_id, group_epoch)
    WHERE group_id IS NOT NULL;
CREATE INDEX transports_by_time ON transports (created_at, transport_id);
CREATE INDEX transports_open_by_replica ON transports (replica_id) WHERE outcome = 0;
CREATE INDEX transports_open_by_source ON transports (source_worker_key) WHERE outcome = 0;
CREATE INDEX transports_open_by_requester ON transports (requester_worker_id)
    WHERE outcome = 0;
CREATE INDEX transports_ended ON transports (completed_at) WHERE outcome > 0;
-- Which request a part of a group belongs to; rows that failed say nothing of it.
CREATE INDEX transports_by_part
    ON transports (group_kind, group_id, group_epoch, group_part_id)
    WHERE group_id IS NOT NULL AND outcome < 2;

-- Answers that a repeated client_request_id gets again, while what they tell of is still so.
-- worker_generation is that of the worker they are about, as it was then.
CREATE TABLE recorded_replies (
    request_id TEXT PRIMARY KEY,
    operation_kind TEXT NOT NULL,
    payload_digest BLOB NOT NULL,
    refusal TEXT NOT NULL,
    reply BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    worker_generation INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX recorded_replies_by_time ON recorded_replies (created_at);

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

-- Names that point at an artifact (or at the version set of a group), or at nothing: a row stays
-- then, until the table fills up, since generation goes on where it stopped when the key is made anew.
-- kind: 0 immutable, 1 alias. ttl_s is NULL for none; 0 neither expires nor may be cached.
CREATE TABLE key_mappings (
    mapping_key INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    artifact_key INTEGER REFERENCES artifacts,
    version_set_id TEXT NOT NULL DEFAULT '',
    replica_uuid TEXT NOT NULL DEFAULT '',
    daemon_address TEXT NOT NULL DEFAULT '',
    kind INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    ttl_s INTEGER,
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE INDEX key_mappings_by_target ON key_mappings (artifact_key);
CREATE INDEX key_mappings_by_expiry ON key_mappings (expires_at) WHERE expires_at IS NOT NULL;

-- Every target that a key had. ended_at is NULL while it is the key's.
CREATE TABLE key_generations (
    mapping_key INTEGER NOT NULL REFERENCES key_mappings,
    generation INTEGER NOT NULL,
    artifact_key INTEGER REFERENCES artifacts,
    version_set_id TEXT NOT NULL DEFAULT '',
    selection_hash BLOB NOT NULL DEFAULT x'',
    began_at INTEGER NOT NULL,
    ended_at INTEGER,
    PRIMARY KEY (mapping_key, generation)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_generations_ended ON key_generations (ended_at) WHERE ended_at IS NOT NULL;

-- Swaps that named themselves, and what they led to: a repeat gets the same answer.
CREATE TABLE key_swaps (
    mapping_key INTEGER NOT NULL REFERENCES key_mappings,
    operation_id TEXT NOT NULL,
    artifact_key INTEGER NOT NULL REFERENCES artifacts,
    generation INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (mapping_key, operation_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_swaps_by_time ON key_swaps (created_at);

-- How far the clock that leases are measured by is ahead of the wall clock, in microseconds, since
-- that was set while a server ran. At most one row.
CREATE TABLE lease_clock (
    clock_key INTEGER PRIMARY KEY CHECK (clock_key = 1),
    ahead INTEGER NOT NULL
) STRICT;

-- Daemons that hold leases, or had them last. A lease that was granted under an earlier number of releases is
-- released: one update here gives back all that a daemon holds.
CREATE TABLE lease_holders (
    holder_key INTEGER PRIMARY KEY,
    daemon_id TEXT NOT NULL UNIQUE,
    releases INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The home of a shard; shard_id is the two's complement of an unsigned number. Rows outlive their
-- leases, as generations do, until the table fills up. Without holder and token: released.
-- worker_key and worker_generation say which incarnation of the holder it was granted to, 0 for one
-- that is no worker. expires_at is of the lease clock; ttl is what was last granted.
CREATE TABLE shard_leases (
    shard_id INTEGER PRIMARY KEY,
    generation INTEGER NOT NULL,
    holder_key INTEGER REFERENCES lease_holders,
    lease_token TEXT,
    releases INTEGER NOT NULL,
    worker_key INTEGER NOT NULL,
    worker_generation INTEGER NOT NULL,
    ttl INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX shard_leases_by_token ON shard_leases (lease_token)
    WHERE lease_token IS NOT NULL;

-- A daemon whose last lease was given up, taken over or forgotten is forgotten with it.
CREATE INDEX shard_leases_by_holder ON shard_leases (holder_key, releases);
CREATE TRIGGER lease_holder_left AFTER UPDATE OF holder_key ON shard_leases
WHEN old.holder_key IS NOT new.holder_key
BEGIN
    DELETE FROM lease_holders WHERE holder_key = old.holder_key
        AND NOT EXISTS (SELECT 1 FROM shard_leases s WHERE s.holder_key = old.holder_key);
END;
CREATE TRIGGER lease_holder_of_gone AFTER DELETE ON shard_leases BEGIN
    DELETE FROM lease_holders WHERE holder_key = old.holder_key
        AND NOT EXISTS (SELECT 1 FROM shard_leases s WHERE s.holder_key = old.holder_key);
END;

-- Names that nobody uses are forgotten when their table fills up. Their generations must not come
-- again: new names begin above the highest one that was forgotten.
CREATE TABLE generation_floors (
    kind TEXT PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Nodes that reported chunks. Without node_id: all its chunks are hidden and will be deleted.
-- reports counts what came of the node, so that nothing is deleted that came meanwhile.
CREATE TABLE chunk_nodes (
    node_key INTEGER PRIMARY KEY,
    node_id TEXT UNIQUE,
    reports INTEGER NOT NULL
) STRICT;

-- Which chunks of an artifact a node has: a row for each 256 consecutive ones, and in it a byte for
-- each, the number of its state or 0. A chunk is in the row of the worker that reported it last.
CREATE TABLE chunk_blocks (
    block_key INTEGER PRIMARY KEY,
    artifact_id TEXT NOT NULL,
    node_key INTEGER NOT NULL REFERENCES chunk_nodes,
    device_uuid TEXT NOT NULL,
    replica INTEGER NOT NULL,
    block INTEGER NOT NULL,
    worker_key INTEGER NOT NULL REFERENCES worker_ids,
    states BLOB NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (artifact_id, node_key, device_uuid, replica, block, worker_key)
) STRICT;
CREATE INDEX chunk_blocks_by_node ON chunk_blocks (node_key);

-- Reports that are too scattered for one transaction. Their parts are staged one by one, which no
-- query sees; accepted makes all of them count; then they are applied to chunk_blocks one by one.
CREATE TABLE chunk_batches (
    batch_key INTEGER PRIMARY KEY AUTOINCREMENT,
    node_key INTEGER NOT NULL REFERENCES chunk_nodes,
    worker_key INTEGER NOT NULL REFERENCES worker_ids,
    reported_at INTEGER NOT NULL,
    accepted INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE chunk_parts (
    part_key INTEGER PRIMARY KEY,
    batch_key INTEGER NOT NULL REFERENCES chunk_batches,
    patches_json TEXT NOT NULL
) STRICT;
CREATE INDEX chunk_parts_by_batch ON chunk_parts (batch_key);

-- Samples of the memory tiers of nodes. epoch is an unsigned number less 2^63, which keeps its
-- order; other unsigned numbers are stored as their two's complement.
CREATE TABLE memory_tier_snapshots (
    node_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    stable_total INTEGER NOT NULL,
    stable_used INTEGER NOT NULL,
    preemptible_total INTEGER NOT NULL,
    preemptible_marked INTEGER NOT NULL,
    faults_per_sec REAL NOT NULL,
    rehydrate_p99 INTEGER NOT NULL,
    enable_preemptible INTEGER NOT NULL,
    config_json TEXT NOT NULL,
    PRIMARY KEY (node_id, epoch)
) STRICT;

-- Leases on the memory of nodes. issued_at and ledger_version keep their order as epoch does.
-- state: 1 pending, 2 active, 3 revoking, 4 expired, the numbers of the wire. pending_until is of
-- the lease clock, NULL for one that does not end by time. ended_at is when it became expired.
CREATE TABLE memory_tier_leases (
    lease_key INTEGER PRIMARY KEY AUTOINCREMENT,
    lease_id TEXT NOT NULL UNIQUE,
    node_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    kind INTEGER NOT NULL,
    artifact_id TEXT NOT NULL,
    range_start INTEGER NOT NULL,
    range_count INTEGER NOT NULL,
    chunk_ids BLOB NOT NULL,
    ledger_version INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    workload_id TEXT NOT NULL,
    state INTEGER NOT NULL,
    ack_request_id TEXT NOT NULL,
    ack_epoch INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    pending_until INTEGER,
    ended_at INTEGER,
    UNIQUE (node_id, request_id)
) STRICT;
CREATE INDEX memory_tier_leases_open ON memory_tier_leases (node_id, state);
CREATE INDEX memory_tier_leases_pending ON memory_tier_leases (lease_key) WHERE state = 1;
CREATE INDEX memory_tier_leases_ended ON memory_tier_leases (ended_at) WHERE ended_at IS NOT NULL;

-- What assemblies were sealed to. Written once; neither artifact need be known.
CREATE TABLE artifact_bindings (
    from_artifact_id TEXT PRIMARY KEY,
    to_artifact_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_bindings_by_target ON artifact_bindings (to_artifact_id);

-- Where artifacts lie on the disk of this cluster; they need not be known otherwise.
-- kind is the number of the wire. Once deleted_at is set the row never changes.
CREATE TABLE disk_locations (
    artifact_id TEXT NOT NULL,
    relative_path TEXT NOT NULL,
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_at INTEGER,
    PRIMARY KEY (artifact_id, relative_path)
) STRICT, WITHOUT ROWID;

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

-- Realizations. A row is never deleted: its realization key (kind, id, epoch) is used once.
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
