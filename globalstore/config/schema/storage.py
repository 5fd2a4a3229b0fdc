"""Sections ``meta``, ``database``, ``backup``."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

from pathlib import Path

import attrs

from globalstore.config.kinds import Duration, UInt64
from globalstore.config.schema._settings import setting


@attrs.frozen
class Meta:
    """What the deployment calls itself."""

    schema_version: str = setting("", "Label of this file for audits; nothing depends on it.")
    description: str = setting("", "Free text.")
    cluster_token: str = setting(
        "",
        "Identity of the cluster. HealthCheck returns it, and a daemon that was given another one "
        "refuses this store, so that a daemon never joins the wrong cluster. Empty: no check.",
        secret=True,
    )


@attrs.frozen
class Database:
    """The one SQLite file that holds every fact."""

    db_file: str | None = setting(
        None,
        "Path of the database; ~ is expanded, missing directories are created, a relative path "
        'starts at the working directory. null or "" keeps everything in memory: good for a '
        "trial, lost when the process ends.",
    )
    read_only: bool = setting(
        False,
        "Serve reads from a shipped snapshot and refuse every mutation. For read replicas; the "
        "answers are as old as the snapshot.",
        not_built="this version cannot serve a read replica; set it to false",
    )
    max_snapshot_age: Duration = setting(
        3600.0,
        "A read replica whose snapshot is older reports itself not ready.",
        has_effect=False,
    )
    min_free_bytes: UInt64 = setting(
        1 << 30, "Warn when the file system of the database has fewer bytes left than this."
    )
    max_bytes: UInt64 = setting(
        256 << 30,
        "Bytes in use from which on no table grows: what would add a row is RESOURCE_EXHAUSTED, "
        "changes, ends and deletions go on. Looked at in each maintenance pass.",
    )
    max_wal_bytes: UInt64 = setting(
        256 << 20,
        "Warn when the write-ahead log grows beyond this many bytes: some reader holds it open.",
    )
    optimize_interval: Duration = setting(
        1800.0,
        "How often statistics are refreshed, free pages returned and the log checkpointed. Rarer "
        "saves little; at least 0.1s.",
    )

    @property
    def path(self) -> Path | None:
        """The file with ``~`` expanded, None for a database in memory."""
        return Path(self.db_file).expanduser() if self.db_file else None


@attrs.frozen
class Backup:
    """Verified copies made while the server runs."""

    directory: str = setting(
        "",
        "Where copies go; use another volume than the database's, or one failure takes both. "
        "Empty: no scheduled backup.",
        not_built="this version makes no scheduled backup; leave it empty (the backup before a "
        "migration is made beside the database)",
    )
    interval: Duration = setting(
        900.0,
        "Time between two copies: what a lost volume costs at most. At least 0.1s.",
        has_effect=False,
    )
    keep_last: UInt64 = setting(24, "How many of the newest copies are kept.", has_effect=False)
    keep_days: UInt64 = setting(
        7, "For how many past days the newest copy of the day is kept as well.", has_effect=False
    )
