"""The life of a server: opens the store, starts every component in order, stops them in reverse.

Start: tokens and certificates read → database → probes (not ready) → recovery → calls → ready →
background tasks. Stop: not ready → drain delay → calls in flight → heartbeats written → database
closed.
"""

import gc
from collections.abc import Callable
from functools import partial

import trio

from globalstore.api.context import ServerInfo
from globalstore.api.standard.health import ServingStatus
from globalstore.config import GlobalStoreConfig, effective
from globalstore.db import DatabaseError, Examination, Runner
from globalstore.host import HostRefused, is_host_error
from globalstore.leases.wall_clock import wall_us
from globalstore.maintenance.supervision import keep_running
from globalstore.server import summary
from globalstore.server.components import Components
from globalstore.server.gauges import Gauges
from globalstore.server.recovery import recover
from globalstore.server.sockets import Sockets, Transport
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# Keys that take effect on SIGHUP. Whether there is TLS is fixed at the start, and so is which file
# has the tokens; its lines are read anew.
_RELOADED = (
    "observability.logging.level",
    "server.grpc.tls.cert_file",
    "server.grpc.tls.key_file",
    "server.grpc.tls.client_ca_file",
)


class Server:
    """One Global Store: its components, and the order in which they start and stop.

    For the arguments see ``Components``.
    """

    def __init__(
        self,
        config: GlobalStoreConfig,
        wall_us: Callable[[], int] = wall_us,
        runner: Runner = Runner.THREADS,
        examination: Examination | None = None,
    ) -> None:
        self.config = config
        self.components = Components(config, wall_us, runner, examination)
        self._stopping = trio.Event()
        self._stop_reason = ""
        self._is_serving = False
        self.transport: Transport | None = None

    def reload(self, config: GlobalStoreConfig) -> None:
        """Apply what may change while running, and name the rest. Nothing here raises."""
        chosen = effective(config)
        for key, value in effective(self.config).items():
            if chosen[key] != value and not key.startswith(_RELOADED):
                _log.warning("needs a restart", key=key)
        files: list[Callable[[], None]] = []
        if self.transport is not None:
            files.append(partial(self.transport.reload, config))
        if self.components.token_renewal is not None:
            files.append(self.components.token_renewal.take_up)
        complete = True
        for take_up in files:
            try:
                take_up()
            except HostRefused as error:
                complete = False
                _log.error("files not reloaded, the old ones stay in use", reason=str(error))
        if complete:
            _log.info("configuration reloaded")

    def stop(self, reason: str = "asked to") -> None:
        """Begin to stop; ``serve`` returns when that is done. ``reason`` is for the log."""
        self._stop_reason = reason
        self._stopping.set()

    async def summarise(self) -> None:
        """Write to the log what the process is made of, as far as the host allows it."""
        try:
            await summary.log_tasks()
            await summary.log_memory()
            if self._is_serving and self.transport is not None:
                summary.log_components(self.components, self.transport)
        except (DatabaseError, OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, DatabaseError) and not is_host_error(error):
                raise
            _log.error("summary not written to its end", reason=str(error))

    async def run(
        self, *, task_status: trio.TaskStatus[ServerInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve over sockets; see ``serve``."""
        await self.serve(Sockets(self.components), task_status=task_status)

    async def serve(
        self,
        transport: Transport,
        *,
        task_status: trio.TaskStatus[ServerInfo] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve calls that come by ``transport`` until ``stop``; the started value says where.

        Raises StartRefused, and HostRefused by the transport, when it cannot start, and the
        database's own error when that fails for good. When cancelled, calls end without an answer;
        what was answered is on disk.
        """
        components, self.transport = self.components, transport
        async with components.store, components.queues, trio.open_nursery() as nursery:
            self._log_policy()
            await transport.answer_probes(nursery)
            cluster = await recover(components)
            info = await transport.take_calls(nursery, cluster.cluster_id)
            components.context.info = info
            gauges = Gauges(components, transport)
            gauges.look(0.0)
            components.stalls.on_second = gauges.look
            self._start_tasks(nursery, transport)
            # What exists now lives as long as the process; looking through it again and again
            # would stop the event loop for some 20 ms each time.
            gc.collect()
            gc.freeze()
            components.grpc_health.set_all(ServingStatus.SERVING)
            components.health.not_ready.clear("startup")
            _log.info("ready")
            self._is_serving = True
            task_status.started(info)
            await self._until_stopped()
            await self._drain(transport)
            self._is_serving = False
            nursery.cancel_scope.cancel()
        if components.store.failure is not None:
            raise components.store.failure

    def _log_policy(self) -> None:
        _log.info("database", path=str(self.components.store.path or "in-memory"))
        policy = self.config.worker_policy
        _log.info(
            "maintenance policy",
            heartbeat_timeout_s=policy.heartbeat_timeout,
            cleanup_interval_s=policy.cleanup_interval,
            optimize_interval_s=self.config.database.optimize_interval,
            transport_ttl_s=policy.effective_transport_ttl,
            transport_retention_s=policy.transport_retention,
        )

    def _start_tasks(self, nursery: trio.Nursery, transport: Transport) -> None:
        failing = self.components.health.failing
        for name, task in {**self.components.tasks(), **transport.tasks()}.items():
            nursery.start_soon(keep_running, name, task, failing.set, failing.clear)

    async def _until_stopped(self) -> None:
        async with trio.open_nursery() as nursery:

            async def end_with(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_with, self._stopping)
            nursery.start_soon(end_with, self.components.store.failed)

    async def _drain(self, transport: Transport) -> None:
        """Take no more work, let running calls end, and store the heartbeats."""
        components, began = self.components, trio.current_time()
        components.health.not_ready.set("draining", "stopping")
        components.grpc_health.set_all(ServingStatus.NOT_SERVING)
        _log.info("stopping", reason=str(components.store.failure or self._stop_reason))
        await trio.sleep(self.config.shutdown.drain_delay)
        components.queues.stop()
        report = await transport.drain(self.config.shutdown.grace_period)
        try:
            await components.heartbeats.flush()
            await components.instance_heartbeats.flush()
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
