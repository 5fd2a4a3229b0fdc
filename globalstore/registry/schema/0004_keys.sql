-- Names that point at an artifact (or at the version set of a group), or at nothing: a row is never
-- deleted, because generation goes on where it stopped when the key is made anew.
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
