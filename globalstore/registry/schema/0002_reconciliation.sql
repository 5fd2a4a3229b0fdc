-- The highest confirmation number that was ever given out. confirmation itself may go back to an
-- older number when a worker confirms what it had under that one.
ALTER TABLE worker_ids ADD COLUMN confirmation_last INTEGER NOT NULL DEFAULT 1;
UPDATE worker_ids SET confirmation_last = confirmation;

-- The generation in which the worker last confirmed all that it holds; 0: in none.
ALTER TABLE worker_cursors ADD COLUMN confirmed_generation INTEGER NOT NULL DEFAULT 0;

-- The worker of replicas that are gone but still serve transports: nobody.
-- Nothing shows them, and the last of their transports deletes them.
INSERT INTO worker_ids (worker_key, worker_id, confirmation, confirmation_last)
VALUES (0, '', 0, 0);

-- The unique index of the identity begins with the same column.
DROP INDEX replicas_by_artifact;
