-- Replicas but those that are gone and only wait for the end of their transports.
CREATE VIEW held_replicas AS SELECT * FROM replicas WHERE worker_key != 0;
