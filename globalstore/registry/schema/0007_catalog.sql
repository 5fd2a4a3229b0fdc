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
