-- Names that nobody uses are forgotten when their table fills up. Their generations must not come
-- again: new names begin above the highest one that was forgotten.
CREATE TABLE generation_floors (
    kind TEXT PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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
DELETE FROM lease_holders WHERE NOT EXISTS
    (SELECT 1 FROM shard_leases s WHERE s.holder_key = lease_holders.holder_key);
