-- In which generation of its worker an answer was recorded: in another one it does not count.
ALTER TABLE recorded_replies ADD COLUMN worker_generation INTEGER NOT NULL DEFAULT 0;
