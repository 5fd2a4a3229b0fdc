"""The schema of the configuration; each field's text is its entry in the manual."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

from typing import Self

import attrs

from globalstore.config.schema._settings import Manual, manual, section
from globalstore.config.schema.limits import Limits, Registration
from globalstore.config.schema.observability import Observability
from globalstore.config.schema.server import Server, Shutdown
from globalstore.config.schema.storage import Backup, Database, Meta
from globalstore.config.schema.worker_policy import WorkerPolicy

__all__ = [
    "Backup",
    "Database",
    "GlobalStoreConfig",
    "Limits",
    "Manual",
    "Meta",
    "Observability",
    "Registration",
    "Server",
    "Shutdown",
    "WorkerPolicy",
    "manual",
]


@attrs.frozen
class GlobalStoreConfig:
    """Every setting of the server. Immutable; two loads of one file are equal."""

    meta: Meta = section(Meta, "What the deployment calls itself.")
    database: Database = section(Database, "The one SQLite file that holds every fact.")
    server: Server = section(Server, "The ports and what stands behind them.")
    worker_policy: WorkerPolicy = section(
        WorkerPolicy, "When a daemon counts as alive, and how work is dealt out."
    )
    limits: Limits = section(Limits, "Bounds on requests and on what is kept.")
    registration: Registration = section(
        Registration,
        "Sessions in which a daemon announces an artifact piece by piece.",
    )
    backup: Backup = section(Backup, "Verified copies made while the server runs.")
    shutdown: Shutdown = section(Shutdown, "How the server leaves.")
    observability: Observability = section(Observability, "Logs and traces.")

    def with_listen(
        self,
        host: str | None = None,
        port: int | None = None,
        metrics_port: int | None = None,
    ) -> Self:
        """Return this configuration with the addresses that a launcher chose.

        ``metrics_port`` is the HTTP port. None keeps what the file says; a negative port becomes 0,
        which lets the system choose one. Raises ValueError for a port above 65535.
        """
        server = self.server
        listen = server.listen
        if host is not None:
            listen = attrs.evolve(listen, host=host)
        if port is not None:
            listen = attrs.evolve(listen, port=_port(port))
        server = attrs.evolve(server, listen=listen)
        if metrics_port is not None:
            server = attrs.evolve(server, metrics_port=_port(metrics_port))
        return attrs.evolve(self, server=server)


def _port(number: int) -> int:
    if number > 65535:
        raise ValueError(f"expected a port up to 65535, got {number}")
    return max(0, number)
