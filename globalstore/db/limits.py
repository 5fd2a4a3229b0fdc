"""Every bound of the database thread, each with its reason."""

from typing import Final

# ``PRAGMA application_id`` of our files: the letters TCGS, by which they are told from others.
APPLICATION_ID: Final = 0x54434753

# Operations that share one COMMIT. From 64 on the fsync is a small part of the cost of each; above
# 256 the first operation of a group waits for strangers longer than it gains.
GROUP_OPERATIONS_MAX: Final = 256

# Places of a group that the control lane may take while normal operations wait: three quarters, so
# that a flood of heartbeats slows registrations and does not stop them.
CONTROL_OPERATIONS_MAX: Final = 192

# Groups that may pass a waiting bulk operation. Four groups take ten or twenty milliseconds, about
# as long as a bulk chunk, so that under load each side has half of the writer's time.
BULK_PATIENCE_GROUPS: Final = 4

# Operations waiting for the writer: sixteen full groups, about the longest that a caller with a
# deadline of a second would still wait for.
WRITE_QUEUE_MAX: Final = 4096

# Places of the write queue that only the control lane may fill: leases must be given back and
# heartbeats stored while registrations are being refused.
CONTROL_QUEUE_RESERVE: Final = 256

# Bulk operations waiting: each holds up to a thousand rows in its arguments.
BULK_QUEUE_MAX: Final = 64

# Rows of one chunk of a long job: some 10 ms of the writer, so that others get in between.
BULK_CHUNK_ROWS_MAX: Final = 1000

# Queries waiting for a reader, as for the writer.
READ_QUEUE_MAX: Final = 4096

# Queries that share one snapshot: enough to make BEGIN and COMMIT free, short enough that a
# snapshot does not hold the write-ahead log back.
READ_BATCH_MAX: Final = 64

# Prepared statements kept per connection: more than the program has texts, so that none is parsed
# twice.
CACHED_STATEMENTS: Final = 1024

# Wait for a lock that only a foreign tool on our file can hold; longer than any of its short reads,
# shorter than a client's patience.
BUSY_TIMEOUT_MS: Final = 5000

# Pages of new log (4 MiB) after which the writer checkpoints between two groups: some milliseconds
# of copying each time.
CHECKPOINT_FRAMES: Final = 1000

# Wait for readers to leave the log when it has grown past its soft limit: no step of maintenance
# holds the writer longer.
CHECKPOINT_WAIT_MS: Final = 50

# Seconds between two looks at the file, its log and the free space, whoever writes: what an
# operator mends is seen to be mended before he looks again.
WATCH_S: Final = 1.0

# Length of the log above which it is emptied when nobody writes: four times what steady writing
# needs, so that it is a burst or a reader that has stretched it.
QUIET_LOG_BYTES_MAX: Final = 16 << 20

# Free space from which on a write is tried on a disk that was full: some dozens of small commits,
# so that it does not go to and fro with each.
SPACE_BYTES_MIN: Final = 256 << 10

# Looks at a database file that is not where it was, before that counts: a rename takes two steps.
LOST_LOOKS: Final = 2

# Seconds between two log lines that another program has the database locked.
LOCKED_WARNING_S: Final = 60.0

# Pages given back per step of incremental vacuum: 1 MiB, a few milliseconds.
VACUUM_PAGES: Final = 256

# Steps of incremental vacuum per maintenance: 256 MiB; the rest waits for the next one.
VACUUM_STEPS_MAX: Final = 256

# Rows that PRAGMA optimize looks at per index: keeps it below a few milliseconds at any size.
ANALYSIS_LIMIT: Final = 400

# Wait for the holder of the lock file to write its process id, which it does at once after locking;
# a refused start has two seconds in all.
LOCK_PID_WAIT_S: Final = 1.0

# Looks at a database file that is being replaced meanwhile: by the start of another server, which
# does it once.
LOCK_TRIES_MAX: Final = 8

# Free space that shared memory must have to carry an in-memory database: containers often have a 64
# MiB one, which would be full at once.
MEMORY_FREE_BYTES_MIN: Final = 1 << 30
