-- The identity of this database; exactly one row.
CREATE TABLE cluster (
    cluster_key INTEGER PRIMARY KEY CHECK (cluster_key = 1),
    cluster_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Every worker id that anything refers to, whether or not its worker is known.
-- A replica counts as available only if it was confirmed under the present
-- confirmation number, so that one update here hides all replicas of a worker.
CREATE TABLE worker_ids (
    worker_key INTEGER PRIMARY KEY,
    worker_id TEXT NOT NULL UNIQUE,
    confirmation INTEGER NOT NULL DEFAULT 1
) STRICT;

-- Who a worker is. grpc_port is NULL once another worker took the endpoint.
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

-- What its heartbeats said, written in batches.
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
-- it belongs to a process that is gone.
CREATE TABLE worker_cursors (
    worker_key INTEGER PRIMARY KEY REFERENCES workers ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    process_generation INTEGER NOT NULL,
    request_seq INTEGER NOT NULL,
    state_version INTEGER NOT NULL,
    needs_reconcile INTEGER NOT NULL
) STRICT;

-- What an artifact is, as far as anyone has said.
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
CREATE INDEX replicas_by_artifact ON replicas (artifact_key);
CREATE INDEX replicas_by_endpoint ON replicas (endpoint_key);
CREATE INDEX replicas_by_expiry ON replicas (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX replicas_in_use ON replicas (replica_id) WHERE current_requests > 0;

-- The sources of an artifact with a free slot, best first (order LEGACY).
CREATE INDEX replica_sources ON replicas (
    artifact_key, view_id, memory_tier,
    current_requests * 1.0 / max_concurrency, current_requests, max_concurrency DESC,
    last_assigned_at, updated_at, replica_id
) WHERE is_available = 1 AND export_state = 2 AND transfer_size = memory_size
    AND current_requests < max_concurrency;

-- Who was granted which source. Rows outlive the replica.
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

-- Answers that a repeated client_request_id gets again.
CREATE TABLE recorded_replies (
    request_id TEXT PRIMARY KEY,
    operation_kind TEXT NOT NULL,
    payload_digest BLOB NOT NULL,
    refusal TEXT NOT NULL,
    reply BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX recorded_replies_by_time ON recorded_replies (created_at);
