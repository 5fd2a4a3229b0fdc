"""The nursery: opens the store, starts every part in order, and stops them in reverse.

Start: database → HTTP (not ready) → recovery → gRPC → ready → background tasks. Stop: not ready →
drain delay → calls in flight → heartbeats written → database closed.
"""

import gc
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import trio

import globalstore
from globalstore import listening
from globalstore.api.application import Application, ServerInfo
from globalstore.api.auth import TokenFileUnusable, Tokens
from globalstore.api.commits import Commits
from globalstore.api.gauges import Gauges
from globalstore.api.slots import Slots
from globalstore.config import AddressSource, GlobalStoreConfig, advertised_address
from globalstore.db import DatabaseError, Lane, Observers, Store, StoreOptions
from globalstore.http import HealthState, HttpApp, serve_http
from globalstore.registry import recovery, replicas, transports, workers
from globalstore.registry.schema import MIGRATIONS
from globalstore.rpc import HealthService, Listener, ServingStatus
from globalstore.rpc.sockets import listening_sockets
from globalstore.scheduling.transports import Policy, SourceQueues
from globalstore.scheduling.workers import Workers
from globalstore.telemetry import get_logger
from globalstore.telemetry.labels import ARTIFACTS_MAX
from globalstore.telemetry.metrics import Metrics
from globalstore.timers.clock import ClockWatch
from globalstore.timers.maintenance import Maintenance, Schedule
from globalstore.timers.pulse import Pulse
from globalstore.timers.supervision import keep_running
from globalstore.timers.transports import TransportExpiry
from globalstore.timers.workers import HeartbeatWriter, Reaper, grace_s

_log = get_logger("globalstore.server")

# Keys that take effect on SIGHUP.
_RELOADED = ("observability.logging.level", "server.grpc.tls.", "server.auth.token_file")


def wall_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1000


def _new_cluster_id(now_us: int) -> str:
    moment = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}Z_{secrets.token_hex(4)}"


class Server:
    """One Global Store. Create it inside trio."""

    def __init__(self, config: GlobalStoreConfig, wall: Callable[[], int] = wall_us) -> None:
        self._config = config
        self._wall_us = wall
        self._stopping = trio.Event()
        policy = config.worker_policy
        timeout_s = policy.heartbeat_timeout
        self.metrics = Metrics()
        self.health = HealthState()
        self.grpc_health = HealthService()
        self.workers = Workers(timeout_s, grace_s(timeout_s), self._worker_routable)
        self._commits = Commits(self.workers, self.metrics)
        self.store = Store(
            config.database.path,
            migrations=MIGRATIONS,
            options=StoreOptions(
                max_wal_bytes=config.database.max_wal_bytes,
                min_free_bytes=config.database.min_free_bytes,
                backup_directory=(
                    Path(config.backup.directory).expanduser() if config.backup.directory else None
                ),
            ),
            on_commit=self._commits.follow,
            observers=Observers(checkpointed=self.metrics.db_checkpoint_seconds.observe),
        )
        scheduler = policy.transport_scheduler
        self.queues = SourceQueues(
            self.store,
            self.workers,
            Policy(
                max_waiters=scheduler.max_waiters,
                batch_limit=scheduler.group_dispatch.dispatch_batch_limit,
                relaxed_group_kinds=frozenset(
                    kind.lower() for kind in scheduler.group_dispatch.relaxed_group_kinds
                ),
            ),
            self._wall_us,
        )
        self.pulse = Pulse()
        self.clock_watch = ClockWatch(self._wall_us)
        self.pulse.tell(self.workers.postpone)
        self.expiry = TransportExpiry(
            self.store, self.pulse, policy.effective_transport_ttl, self._wall_us
        )
        self.pulse.tell(self.expiry.postpone)
        self._commits.attach(self.queues, self.expiry)
        self.slots = Slots(config.server.max_workers)
        self.app = Application(
            config, self.store, self.workers, self.queues, self.slots, self.metrics, self._wall_us
        )
        token_file = config.server.auth.token_file
        self.tokens = Tokens(Path(token_file).expanduser()) if token_file else None
        self.listener: Listener | None = None

    def _worker_routable(self) -> None:
        self.queues.worker_routable()

    def _second(self, lag_s: float) -> None:
        self.health.set_lag(lag_s)
        self.metrics.event_loop_lag.set(lag_s)
        self.metrics.calls.end_peak_window()
        self.metrics.ready.set(self.health.ready)
        self._show("database", self.store.degraded, damaged=self.store.damaged)
        self.gauges.refresh()
        step_s = self.clock_watch.step_s()
        if step_s:
            self.metrics.clock_step_seconds.inc(abs(step_s))
            _log.warning("wall clock was set", step_s=round(step_s, 3))

    def _show(self, name: str, reason: str | None, *, damaged: bool) -> None:
        for conditions, holds in (
            (self.health.failing, damaged),
            (self.health.degraded, not damaged),
        ):
            if reason is not None and holds:
                conditions.set(name, reason)
            else:
                conditions.clear(name)

    def reload(self, config: GlobalStoreConfig) -> None:
        """Take over what may change while running; name the rest. Nothing here raises."""
        effective = config.effective()
        for key, value in self._config.effective().items():
            if effective[key] != value and not key.startswith(_RELOADED):
                _log.warning("needs a restart", key=key)
        try:
            context = listening.tls_context(config)
            if context is not None and self.listener is not None:
                self.listener.replace_ssl_context(context)
                self._show_certificate(config)
            if self.tokens is not None:
                self.tokens.reload()
        except (listening.TlsUnusable, TokenFileUnusable) as error:
            _log.error("files not reloaded, the old ones stay in use", reason=str(error))
        else:
            _log.info("configuration reloaded")

    def _show_certificate(self, config: GlobalStoreConfig) -> None:
        tls = config.server.grpc.tls
        if tls.enabled:
            expiry = listening.certificate_expiry(str(Path(tls.cert_file).expanduser()))
            self.metrics.tls_cert_expiry.set(expiry)

    def stop(self) -> None:
        """Begin to stop; ``run`` returns when that is done."""
        self._stopping.set()

    async def run(
        self, *, task_status: trio.TaskStatus[ServerInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``stop`` is called; the started value says where.

        Raises StartRefused, PortBusy or another OSError, ssl.SSLError or TokenFileUnusable when it
        cannot start, and the database's own error when that fails for good.
        """
        async with self.store, self.queues, trio.open_nursery() as nursery:
            metrics_port = await self._start_http(nursery)
            await self._recover()
            self.listener = listening.listener(self.app, self.grpc_health, self.tokens)
            await self.listener.bind()
            self._show_certificate(self._config)
            self.gauges = Gauges(self.app, self.listener)
            self.pulse.on_second = self._second
            self.app.info = self._server_info(self.listener, metrics_port)
            await nursery.start(self.listener.serve)
            self._start_background(nursery)
            # What exists now lives as long as the process; looking through it again and again
            # would stop the event loop for some 20 ms each time.
            gc.collect()
            gc.freeze()
            self.grpc_health.set_all(ServingStatus.SERVING)
            self.health.not_ready.clear("startup")
            _log.info("ready")
            task_status.started(self.app.info)
            await self._until_stopped()
            await self._drain(self.listener)
            nursery.cancel_scope.cancel()
        if self.store.failure is not None:
            raise self.store.failure

    async def _start_http(self, nursery: trio.Nursery) -> int:
        server = self._config.server
        sockets = await listening_sockets(server.listen.host, server.metrics_port, reuse_port=False)
        port: int = sockets[0].getsockname()[1]
        app = HttpApp(self.metrics.registry, self.health)
        await nursery.start(serve_http, app, sockets)
        _log.info("http listening", address=server.listen.host, port=port)
        return port

    async def _recover(self) -> None:
        """Set right what an earlier server left, and take its workers and transports over."""
        began = trio.current_time()
        now_us = self._wall_us()
        self.cluster = await self.store.write(
            recovery.recover, _new_cluster_id(now_us), now_us, lane=Lane.CONTROL
        )
        self.workers.restore(await self.store.read(workers.active))
        self.expiry.restore(await self.store.read(transports.in_progress))
        self.metrics.restore_replicas(
            await self.store.read(replicas.totals),
            await self.store.read(replicas.totals_by_artifact, ARTIFACTS_MAX),
        )
        self.metrics.active_transports.set(len(self.expiry))
        seconds = trio.current_time() - began
        self.metrics.recovery_seconds.set(seconds)
        self.metrics.recovery_rows.labels("workers").set(len(self.workers))
        self.metrics.recovery_rows.labels("transports").set(len(self.expiry))
        _log.info(
            "recovered",
            cluster_id=self.cluster.cluster_id,
            workers_unconfirmed=self.cluster.workers_unconfirmed,
            transports_in_progress=len(self.expiry),
            counters_corrected=self.cluster.counters_corrected,
            seconds=round(seconds, 3),
        )

    def _server_info(self, listener: Listener, metrics_port: int) -> ServerInfo:
        advertised = advertised_address(self._config.server, listener.port)
        warn = advertised.source is AddressSource.FALLBACK
        (_log.warning if warn else _log.info)(
            "advertise", address=str(advertised), source=advertised.source.value
        )
        path = self._config.database.path
        _log.info("listening", address=listener.host, port=listener.port)
        return ServerInfo(
            listen_host=listener.host,
            listen_port=listener.port,
            advertise_host=advertised.host,
            advertise_port=advertised.port,
            metrics_port=metrics_port,
            version=globalstore.__version__,
            db_file=str(path.resolve()) if path else "",
            cluster_id=self.cluster.cluster_id,
        )

    def _start_background(self, nursery: trio.Nursery) -> None:
        self.heartbeats = HeartbeatWriter(self.store, self.workers, self._heartbeats_written)
        config = self._config
        maintenance = Maintenance(
            self.store,
            Schedule(
                cleanup_interval_s=config.worker_policy.cleanup_interval,
                optimize_interval_s=config.database.optimize_interval,
                transport_retention_s=config.worker_policy.transport_retention,
            ),
            self._wall_us,
            self.metrics,
        )
        reaper = Reaper(
            self.store, self.workers, self.pulse, self._wall_us, self.metrics.worker_expired.inc
        )
        for name, task in {
            "pulse": self.pulse.run,
            "heartbeat reaper": reaper.run,
            "heartbeat writer": self.heartbeats.run,
            "transport expiry": self.expiry.run,
            "maintenance": maintenance.run,
        }.items():
            nursery.start_soon(
                keep_running, name, task, self.health.failing.set, self.health.failing.clear
            )

    def _heartbeats_written(self, asked: int, written: int) -> None:
        self.metrics.heartbeat_flush_batch_size.observe(asked)
        self.metrics.heartbeat_flush_updates.labels("batched").inc(written)
        self.metrics.heartbeat_flush_updates.labels("dropped").inc(asked - written)

    async def _until_stopped(self) -> None:
        async with trio.open_nursery() as nursery:

            async def end_with(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_with, self._stopping)
            nursery.start_soon(end_with, self.store.failed)

    async def _drain(self, listener: Listener) -> None:
        """Take no more work, let what runs end, and write down who was heard."""
        began = trio.current_time()
        self.health.not_ready.set("draining", "stopping")
        self.grpc_health.set_all(ServingStatus.NOT_SERVING)
        _log.info("stopping", reason=str(self.store.failure or "signal"))
        await trio.sleep(self._config.shutdown.drain_delay)
        self.queues.stop()
        report = await listener.drain(self._config.shutdown.grace_period)
        try:
            await self.heartbeats.flush()
        except DatabaseError as error:
            _log.warning("heartbeats not written", reason=str(error))
        if report.abandoned:
            _log.error("handlers do not end although cancelled", calls=report.abandoned)
        _log.info(
            "stopped",
            seconds=round(trio.current_time() - began, 3),
            calls_in_flight=report.in_flight,
            calls_cut_off=report.cancelled,
        )
