-- What all replicas of a worker are in the middle of, and may be: kept by the triggers below, so
-- that no statement that touches replicas has to know.
ALTER TABLE worker_ids ADD COLUMN load_sum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE worker_ids ADD COLUMN limit_sum INTEGER NOT NULL DEFAULT 0;
UPDATE worker_ids SET (load_sum, limit_sum) = (
    SELECT coalesce(sum(r.current_requests), 0), coalesce(sum(r.max_concurrency), 0)
    FROM replicas r WHERE r.worker_key = worker_ids.worker_key
);
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

-- Hidden rows are out of the way of what is registered in their place.
UPDATE replicas SET device_id = -seq WHERE worker_key = 0;

-- The sources of an artifact with a free slot, in the order in which they are shortlisted.
DROP INDEX replica_sources;
CREATE INDEX replica_sources ON replicas (
    artifact_key, view_id, memory_tier, current_requests * 1.0 / max_concurrency, last_assigned_at
) WHERE is_available = 1 AND export_state = 2 AND transfer_size = memory_size
    AND current_requests < max_concurrency;

-- Which request a part of a group belongs to; rows that failed say nothing of it.
CREATE INDEX transports_by_part
    ON transports (group_kind, group_id, group_epoch, group_part_id)
    WHERE group_id IS NOT NULL AND outcome < 2;
