"""The nursery: opens the store, starts every part in order, and stops them in reverse.

Start: database → HTTP (not ready) → recovery → gRPC → ready → background tasks. Stop: not ready →
drain delay → calls in flight → heartbeats written → database closed.
"""

import gc
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import trio

import globalstore
from globalstore.api.context import ServerInfo
from globalstore.api.middleware.tokens import TokenFileUnusable
from globalstore.api.standard.health import ServingStatus
from globalstore.config import AddressSource, GlobalStoreConfig, advertised_address, effective
from globalstore.db import DatabaseError, Lane, Runner
from globalstore.http import HttpApp, serve_http
from globalstore.maintenance.supervision import keep_running
from globalstore.registry import memory_tier_samples, recovery
from globalstore.registry.memory_tier_samples import MemoryTierSampled
from globalstore.registry.runtime import (
    instances,
    replica_lists,
    transport_ends,
    workers,
)
from globalstore.registry.runtime.workers import WorkerRegistered
from globalstore.rpc import Listener
from globalstore.rpc.sockets import listening_sockets
from globalstore.server import grpc_listener
from globalstore.server.certificates import Certificates
from globalstore.server.components import Components, wall_us
from globalstore.server.gauges import Gauges
from globalstore.telemetry import get_logger
from globalstore.telemetry.labels import ARTIFACTS_MAX
from globalstore.telemetry.memory_tiers import NODES_MAX

_log = get_logger("globalstore.server")

# Keys that take effect on SIGHUP. Whether there is TLS is settled at the start, and so is which
# file has the tokens; its lines are read anew.
_RELOADED = (
    "observability.logging.level",
    "server.grpc.tls.cert_file",
    "server.grpc.tls.key_file",
    "server.grpc.tls.client_ca_file",
)


def _new_cluster_id(now_us: int) -> str:
    moment = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}Z_{secrets.token_hex(4)}"


class Server(Components):
    """One Global Store: its parts, and the order in which they start and stop."""

    def __init__(
        self,
        config: GlobalStoreConfig,
        wall: Callable[[], int] = wall_us,
        runner: Runner = Runner.THREADS,
    ) -> None:
        super().__init__(config, wall, runner)
        self._stopping = trio.Event()
        self.listener: Listener | None = None
        self._certificates: Certificates | None = None

    def reload(self, config: GlobalStoreConfig) -> None:
        """Take over what may change while running; name the rest. Nothing here raises."""
        chosen = effective(config)
        for key, value in effective(self.config).items():
            if chosen[key] != value and not key.startswith(_RELOADED):
                _log.warning("needs a restart", key=key)
        try:
            if self._certificates is not None:
                self._certificates.take_up(config)
            if self.tokens is not None:
                self.tokens.reload()
        except (grpc_listener.TlsUnusable, TokenFileUnusable) as error:
            _log.error("files not reloaded, the old ones stay in use", reason=str(error))
        else:
            _log.info("configuration reloaded")

    def stop(self) -> None:
        """Begin to stop; ``run`` returns when that is done."""
        self._stopping.set()

    async def run(
        self, *, task_status: trio.TaskStatus[ServerInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until ``stop`` is called; the started value says where.

        Raises StartRefused, PortBusy, CannotListen, TlsUnusable or TokenFileUnusable when it
        cannot start, and the database's own error when that fails for good.
        """
        self._log_policy()
        async with self.store, self.queues, trio.open_nursery() as nursery:
            metrics_port = await self._start_http(nursery)
            await self._recover()
            self.listener = grpc_listener.listener(self.context, self.grpc_health, self.tokens)
            await self.listener.bind()
            if self.config.server.grpc.tls.enabled:
                self._certificates = Certificates(
                    self.config, self.listener, self.metrics.server.tls_cert_expiry.set
                )
            self.stalls.on_second = Gauges(self, self.listener).look
            self.context.info = self._server_info(self.listener, metrics_port)
            await nursery.start(self.listener.serve)
            self._start_background(nursery)
            # What exists now lives as long as the process; looking through it again and again
            # would stop the event loop for some 20 ms each time.
            gc.collect()
            gc.freeze()
            self.grpc_health.set_all(ServingStatus.SERVING)
            self.health.not_ready.clear("startup")
            _log.info("ready")
            task_status.started(self.context.info)
            await self._until_stopped()
            await self._drain(self.listener)
            nursery.cancel_scope.cancel()
        if self.store.failure is not None:
            raise self.store.failure

    def _log_policy(self) -> None:
        path = self.config.database.path
        _log.info("database", path=str(path.resolve()) if path else "in-memory")
        policy = self.config.worker_policy
        _log.info(
            "maintenance policy",
            heartbeat_timeout_s=policy.heartbeat_timeout,
            cleanup_interval_s=policy.cleanup_interval,
            optimize_interval_s=self.config.database.optimize_interval,
            transport_ttl_s=policy.effective_transport_ttl,
            transport_retention_s=policy.transport_retention,
        )

    async def _start_http(self, nursery: trio.Nursery) -> int:
        server = self.config.server
        sockets = await listening_sockets(server.listen.host, server.metrics_port, reuse_port=False)
        port: int = sockets[0].getsockname()[1]
        app = HttpApp(self.metrics.registry, self.health)
        await nursery.start(serve_http, app, sockets)
        _log.info("http listening", address=server.listen.host, port=port)
        return port

    async def _recover(self) -> None:
        """Set right what an earlier server left, and take its workers and transports over."""
        began = trio.current_time()
        now_us = self.wall_us()
        self.cluster = await self.store.write(
            recovery.recover, _new_cluster_id(now_us), now_us, lane=Lane.CONTROL
        )
        active = await self.store.read(workers.active_workers)
        self.workers.restore(active)
        for worker in active:
            self.instances.worker_registered(WorkerRegistered(worker))
        self.instances.restore(await self.store.read(instances.active_instances))
        self.transport_expiry.restore(await self.store.read(transport_ends.in_progress))
        self.metrics.replicas.restore(
            await self.store.read(replica_lists.totals),
            await self.store.read(replica_lists.totals_by_artifact, ARTIFACTS_MAX),
        )
        self.metrics.transports.active.set(len(self.transport_expiry))
        await self._recover_leases()
        seconds = trio.current_time() - began
        self.metrics.server.recovery_seconds.set(seconds)
        self.metrics.server.recovery_rows.labels("workers").set(len(self.workers))
        self.metrics.server.recovery_rows.labels("instances").set(len(self.instances))
        self.metrics.server.recovery_rows.labels("transports").set(len(self.transport_expiry))
        _log.info(
            "recovered",
            cluster_id=self.cluster.cluster_id,
            workers_unconfirmed=self.cluster.workers_unconfirmed,
            transports_in_progress=len(self.transport_expiry),
            counters_corrected=self.cluster.counters_corrected,
            seconds=round(seconds, 3),
        )

    async def _recover_leases(self) -> None:
        """Go on with every lease where an earlier server stopped."""
        await self.lease_clock.restore(self.store)
        await self.leases.restore()
        for sample in await self.store.read(memory_tier_samples.latest_of_all, NODES_MAX):
            self.commit_counts.memory_tier_sampled(MemoryTierSampled(sample))

    def _server_info(self, listener: Listener, metrics_port: int) -> ServerInfo:
        advertised = advertised_address(self.config.server, listener.port)
        warn = advertised.source is AddressSource.FALLBACK
        (_log.warning if warn else _log.info)(
            "advertise", address=str(advertised), source=advertised.source.value
        )
        path = self.config.database.path
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
        tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "stalls": self.stalls.run,
            "heartbeat reaper": self.reaper.run,
            "heartbeat writer": self.heartbeats.run,
            "instance reaper": self.instance_reaper.run,
            "instance heartbeat writer": self.instance_heartbeats.run,
            "transport expiry": self.transport_expiry.run,
            "refusal reasons": self.refusals.run,
            "chunk reports": self.chunk_reports.run,
            "lease expiry": self.leases.run,
            "lease clock": partial(self.lease_clock.watch, self.store),
            "maintenance": self.maintenance.run,
        }
        if self._certificates is not None:
            tasks["certificates"] = self._certificates.run
        for name, task in tasks.items():
            nursery.start_soon(
                keep_running, name, task, self.health.failing.set, self.health.failing.clear
            )

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
        await trio.sleep(self.config.shutdown.drain_delay)
        self.queues.stop()
        report = await listener.drain(self.config.shutdown.grace_period)
        try:
            await self.heartbeats.flush()
            await self.instance_heartbeats.flush()
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
