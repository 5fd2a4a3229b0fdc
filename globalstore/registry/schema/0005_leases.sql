-- How far the clock that leases are measured by is ahead of the wall clock, in microseconds, since
-- that was set while a server ran. At most one row.
CREATE TABLE lease_clock (
    clock_key INTEGER PRIMARY KEY CHECK (clock_key = 1),
    ahead INTEGER NOT NULL
) STRICT;

-- Daemons that hold or held leases. A lease that was granted under an earlier number of releases is
-- released: one update here gives back all that a daemon holds.
CREATE TABLE lease_holders (
    holder_key INTEGER PRIMARY KEY,
    daemon_id TEXT NOT NULL UNIQUE,
    releases INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Who is the home of a shard; shard_id is the two's complement of an unsigned number. Rows are
-- never deleted, since a generation outlives its lease. Without holder and token: released.
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

-- Reports that are too scattered for one transaction. Their parts are put down one by one, which
-- nobody sees; accepted makes all of them count; then they are applied to chunk_blocks one by one.
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

-- The live worker of a node gives the address of its chunks.
CREATE INDEX workers_by_node ON workers (node_id);

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
