"""Metrics of the server itself: its handlers, its event loop, its database, its upkeep."""

import sys
from typing import Final

from globalstore.telemetry.instruments import Instruments

# Why a call is refused for who makes it: no token, one that is unreadable, several, one that nobody
# knows, that allows other calls, that allows other daemons, that was withdrawn meanwhile.
AUTH_REFUSALS: Final = ("missing", "malformed", "several", "unknown", "role", "daemon", "withdrawn")

_CHECKPOINT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class ServerMetrics:
    """How the process is."""

    def __init__(self, make: Instruments) -> None:
        self.build_info = make.gauge(
            "tc_build_info", "Always 1; what runs.", "version", "schema", "python"
        )
        executor = "tc_control_plane_executor"
        self.executor_max_threads = make.gauge(
            f"{executor}_max_threads", "Handlers that may run at once; 0: no bound."
        )
        self.executor_live_threads = make.gauge(
            f"{executor}_live_threads", "Handler slots that exist."
        )
        self.executor_busy_threads = make.gauge(f"{executor}_busy_threads", "Handler slots in use.")
        self.executor_idle_threads = make.gauge(f"{executor}_idle_threads", "Free handler slots.")
        self.executor_queue_depth = make.gauge(
            f"{executor}_queue_depth", "Calls waiting for a handler slot."
        )
        self.executor_full_seconds = make.gauge(
            f"{executor}_full_seconds",
            "For how long calls have waited for a handler slot without a pause; 0: none waits.",
        )
        self.ready = make.gauge("tc_ready", "1 while /ready answers 200, else 0.")
        self.event_loop_lag = make.gauge(
            "tc_event_loop_lag_seconds", "Greatest delay of a wake-up in the last second."
        )
        grpc = "tc_grpc_server"
        self._connections = make.gauge(f"{grpc}_connections", "Open gRPC connections.")
        self._calls_open = make.gauge(
            f"{grpc}_calls_open", "Calls that arrive, wait or run (server.limits.max_calls)."
        )
        self._held_bytes = make.gauge(
            f"{grpc}_held_bytes",
            "Bytes held for clients: calls, requests, answers not yet taken"
            " (server.limits.max_held_bytes).",
        )
        self._largest_address_bytes = make.gauge(
            f"{grpc}_largest_address_bytes",
            "Of these, those of the address that holds most"
            " (server.limits.max_held_bytes_per_address).",
        )
        self._arriving_bytes = make.gauge(
            f"{grpc}_arriving_bytes",
            "Bytes of messages that have not arrived whole"
            " (server.limits.max_inbound_buffer_bytes).",
        )
        self._ended_for_room = make.counter(
            f"{grpc}_connections_ended_for_room_total",
            "Connections without an authorised call that ended for new ones.",
        )
        self._ended_for_memory = make.counter(
            f"{grpc}_calls_ended_for_memory_total",
            "Calls ended because all clients together held too much.",
        )
        self._ended = (0, 0)
        self.db_wal_bytes = make.gauge("tc_db_wal_bytes", "Size of the write-ahead log.")
        self.db_free_bytes = make.gauge(
            "tc_db_free_bytes", "Free bytes of the database's file system."
        )
        self.db_used_bytes = make.gauge(
            "tc_db_used_bytes", "Bytes in use of the database file; database.max_bytes bounds them."
        )
        self.db_rows = make.gauge("tc_db_rows", "Rows of a table.", "table")
        self.db_rows_limit = make.gauge(
            "tc_db_rows_limit", "Rows that a table may have (limits.rows).", "table"
        )
        self.db_busy_seconds = make.counter(
            "tc_db_busy_seconds_total", "Time the database's writer was at work."
        )
        self.db_checkpoint_seconds = make.histogram(
            "tc_db_checkpoint_seconds", "Duration of checkpoints.", _CHECKPOINT_BUCKETS
        )
        self.clock_step_seconds = make.counter(
            "tc_clock_step_seconds_total", "Sum of the wall clock's jumps, either way."
        )
        self.tls_cert_expiry = make.gauge(
            "tc_tls_cert_expiry_timestamp_seconds", "When the certificate in use expires."
        )
        self.auth_refusals = make.counter(
            "tc_auth_refusals_total", "Calls refused for who makes them.", "reason"
        )
        for reason in AUTH_REFUSALS:
            self.auth_refusals.labels(reason)
        self.gc_rows_deleted = make.counter(
            "tc_gc_rows_deleted_total", "Rows deleted because their time was up.", "table"
        )
        self.recovery_seconds = make.gauge(
            "tc_recovery_seconds", "How long the recovery at start took."
        )
        self.recovery_rows = make.gauge(
            "tc_recovery_rows", "Rows that the recovery at start read.", "table"
        )

    def clients_hold(
        self,
        *,
        connections: int,
        calls: int,
        held_bytes: int,
        largest_address_bytes: int,
        arriving_bytes: int,
        ended_for_room: int,
        ended_for_memory: int,
    ) -> None:
        """Show what the gRPC port's clients hold; what ended is counted since the start."""
        self._connections.set(connections)
        self._calls_open.set(calls)
        self._held_bytes.set(held_bytes)
        self._largest_address_bytes.set(largest_address_bytes)
        self._arriving_bytes.set(arriving_bytes)
        self._ended_for_room.inc(ended_for_room - self._ended[0])
        self._ended_for_memory.inc(ended_for_memory - self._ended[1])
        self._ended = (ended_for_room, ended_for_memory)

    def built(self, version: str, schema: int) -> None:
        """Show what runs: the program's version, its database's schema, Python's version."""
        python = ".".join(map(str, sys.version_info[:3]))
        self.build_info.labels(version, str(schema), python).set(1)
