"""All active workers, in memory, and which of them are live."""

from collections.abc import Callable, Iterable
from typing import Self

import attrs
import trio

from globalstore.liveness.alarm import Alarm
from globalstore.liveness.heartbeats import Heartbeats
from globalstore.registry.runtime.sources import Reachable
from globalstore.registry.runtime.worker_rows import WorkerState, worker_fields
from globalstore.registry.runtime.workers import WorkerRegistered
from globalstore.registry.signals import WorkerEnded, WorkerReconciled, WorkerReplicasChanged
from globalstore.rules.deadlines import Deadlines
from globalstore.rules.values import signed64


@attrs.define(eq=False)
class LiveWorker:
    """An active worker and its latest heartbeat.

    Sizes in bytes, ``last_heartbeat_us`` in microseconds since 1970. ``heartbeat_at`` is on trio's
    clock, None until a heartbeat comes after a restart of the server.

    ``replicas_revision`` changes with what the worker holds; whatever is derived from that is kept
    in ``derived`` with the revision it belongs to. ``reported_checksum`` is the digest in its
    latest heartbeat. ``confirmed`` is the fingerprint of an inventory, with the revision of the
    replicas that is known to agree with it. ``gap_since`` is when a reconcile first came that
    skipped a number, if none was accepted since; ``must_register`` when such came for too long.
    """

    key: int
    worker_id: str
    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    mem_pool_total_size: int
    mem_pool_available_size: int
    accepting: bool
    capability_flags: int
    last_heartbeat_us: int
    generation: int
    request_seq: int
    state_version: int
    needs_reconcile: bool
    heartbeat_at: float | None = None
    replicas_revision: int = 0
    derived: dict[object, tuple[int, object]] = attrs.Factory(dict)
    reported_checksum: str = ""
    confirmed: tuple[int, int] | None = None
    gap_since: float | None = None
    must_register: bool = False

    @classmethod
    def of(cls, state: WorkerState) -> Self:
        """Return a worker as it is stored, without a heartbeat to this server."""
        return cls(
            key=state.worker_key,
            worker_id=state.worker_id,
            daemon_id=state.daemon_id,
            node_id=state.node_id,
            node_address=state.node_address,
            grpc_port=state.grpc_port,
            p2p_port=state.p2p_port,
            mem_pool_total_size=state.mem_pool_total_size,
            mem_pool_available_size=state.mem_pool_available_size,
            accepting=state.accepting_new_requests,
            capability_flags=state.capability_flags,
            last_heartbeat_us=state.last_heartbeat_us,
            generation=state.generation,
            request_seq=state.request_seq,
            state_version=state.state_version,
            needs_reconcile=state.needs_reconcile,
        )

    def log_fields(self) -> dict[str, object]:
        """Return what the log says of a worker."""
        return worker_fields(self)


@attrs.frozen
class Heartbeat:
    """What a heartbeat reports; ``capability_flags`` None leaves them as they are."""

    mem_pool_available_size: int
    accepting: bool
    capability_flags: int | None
    state_checksum: str = ""


class Workers:
    """All active workers.

    ``timeout_s`` is the silence after which a worker is not routed to; ``grace_s`` later it is to
    be expired. ``on_routable`` is called when a worker starts to be a possible source,
    ``on_unroutable`` when one is none any more, and ``on_capabilities`` with the flags before and
    after when those of an active worker change, 0 for one that is not there. For ``check_stall``
    see ``Heartbeats``.
    """

    def __init__(
        self,
        timeout_s: float,
        grace_s: float,
        on_routable: Callable[[], None] = lambda: None,
        on_unroutable: Callable[[], None] = lambda: None,
        *,
        on_capabilities: Callable[[int, int], None] = lambda before, after: None,
        check_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self.heartbeats = Heartbeats(timeout_s, grace_s, check_stall)
        self._on_routable = on_routable
        self._on_unroutable = on_unroutable
        self._on_capabilities = on_capabilities
        self._by_id: dict[str, LiveWorker] = {}
        self._by_key: dict[int, LiveWorker] = {}
        self._ids_by_daemon: dict[str, str] = {}
        self._stale_at: Deadlines[int] = Deadlines()
        self._stale_alarm = Alarm(self._stale_at.next)
        self._live: set[int] = set()
        self._accepting: frozenset[int] | None = None
        # Workers whose daemon denied all that its heartbeat affirms.
        self._doubted: set[int] = set()
        self._confirm_by: Deadlines[int] = Deadlines()
        self._confirmation_alarm = Alarm(self._confirm_by.next)

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"<Workers [active: {len(self)}, live: {len(self._live)}]>"

    @property
    def timeout_s(self) -> float:
        """The silence after which a worker is not routed to."""
        return self.heartbeats.timeout_s

    # Signals of commits.

    def restore(self, workers: Iterable[WorkerState]) -> None:
        """Take over the workers of an earlier server: active, but not live."""
        for state in workers:
            worker = LiveWorker.of(state)
            self._put(worker)
            self.heartbeats.restored(worker.key)

    def registered(self, signal: WorkerRegistered) -> None:
        """Take in that a worker registered; that counts as a heartbeat."""
        worker = LiveWorker.of(signal.worker)
        before = self._by_key.get(worker.key)
        if before is not None:
            # The latest heartbeat may not be stored yet; its time never goes back.
            worker.last_heartbeat_us = max(worker.last_heartbeat_us, before.last_heartbeat_us)
            worker.replicas_revision = before.replicas_revision + 1
        self._put(worker)
        self.heartbeats.registered(worker.key)
        self._mark_live(worker)
        if worker.needs_reconcile:
            self._confirm_by.set(worker.key, trio.current_time() + self.timeout_s)
            self._confirmation_alarm.sooner()
        self._routable_changed(gained=True)

    def ended(self, signal: WorkerEnded) -> None:
        """Take in that a worker became inactive."""
        worker = self._by_key.pop(signal.worker_key, None)
        if worker is None:
            return
        del self._by_id[worker.worker_id]
        if self._ids_by_daemon.get(worker.daemon_id) == worker.worker_id:
            del self._ids_by_daemon[worker.daemon_id]
        self._on_capabilities(worker.capability_flags, 0)
        self._stale_at.discard(worker.key)
        self._confirm_by.discard(worker.key)
        self._live.discard(worker.key)
        self._doubted.discard(worker.key)
        self._routable_changed(gained=False)
        self.heartbeats.ended(worker.key)

    def replicas_changed(self, signal: WorkerReplicasChanged) -> None:
        """Take in that what a worker holds, or its availability, changed."""
        worker = self._by_key.get(signal.worker_key)
        if worker is not None:
            worker.replicas_revision += 1

    def reconciled(self, signal: WorkerReconciled) -> None:
        """Take in that an inventory of a worker was accepted."""
        worker = self._by_key.get(signal.worker_key)
        if worker is None:
            return
        worker.gap_since = None
        worker.must_register = False
        self.settled(worker)
        worker.request_seq = signal.request_seq
        worker.state_version = signal.state_version
        if signal.complete:
            worker.needs_reconcile = False
            fingerprint, revision = signal.fingerprint, worker.replicas_revision
            if fingerprint is None or signal.compared_at not in {None, revision}:
                worker.confirmed = None
            else:
                worker.confirmed = fingerprint, revision
            self._confirm_by.discard(worker.key)

    # Calls of the daemons.

    def find(self, worker_id: str) -> LiveWorker | None:
        """Return an active worker."""
        return self._by_id.get(worker_id)

    async def decided(self, worker_id: str) -> LiveWorker | None:
        """Return an active worker, after waiting for the outcome if its end is being written.

        Cancellation changes nothing.
        """
        while (worker := self.find(worker_id)) and self.heartbeats.is_expiring(worker.key):
            await self.heartbeats.decided(worker.key)
        return worker

    def of_key(self, worker_key: int) -> LiveWorker | None:
        """Return an active worker by its key."""
        return self._by_key.get(worker_key)

    def id_of_daemon(self, daemon_id: str) -> str:
        """Return the id of a daemon's active worker, blank if it has none."""
        return self._ids_by_daemon.get(daemon_id, "")

    def ids_by_daemon(self) -> dict[str, str]:
        """Return the ids of all active workers by their daemons, as they are now."""
        return dict(self._ids_by_daemon)

    def heartbeat(self, worker: LiveWorker, heartbeat: Heartbeat, now_us: int) -> None:
        """Take in a heartbeat of an active worker; ``now_us`` is wall time, to be stored."""
        was_routable = worker.accepting and worker.key in self._live
        flags = heartbeat.capability_flags
        if flags is None:
            flags = worker.capability_flags
        news = (heartbeat.accepting, flags) != (worker.accepting, worker.capability_flags)
        worker.mem_pool_available_size = heartbeat.mem_pool_available_size
        worker.accepting = heartbeat.accepting
        self._on_capabilities(worker.capability_flags, flags)
        worker.capability_flags = flags
        worker.reported_checksum = heartbeat.state_checksum
        worker.last_heartbeat_us = max(worker.last_heartbeat_us, now_us)
        self.heartbeats.received(worker.key)
        self._mark_live(worker)
        self.heartbeats.changed(worker.key, news=news)
        if was_routable != worker.accepting:
            self._routable_changed(gained=worker.accepting)

    def request_missing(self, worker: LiveWorker) -> None:
        """Take in that a reconcile skipped a number.

        When that has gone on for longer than the timeout the worker has to register anew, since the
        number that is missing will not come any more.
        """
        now = trio.current_time()
        if worker.gap_since is None:
            worker.gap_since = now
        worker.must_register = now - worker.gap_since > self.timeout_s

    def told_to_register(self, worker: LiveWorker) -> None:
        """Take in that a worker was told to register anew: once, in case that it does not."""
        worker.gap_since = None
        worker.must_register = False

    def doubt(self, worker: LiveWorker) -> None:
        """Take in that a daemon denied what its heartbeat affirms: nobody is sent there now."""
        self._doubted.add(worker.key)
        self._routable_changed(gained=False)

    def is_doubted(self, worker: LiveWorker) -> bool:
        """Tell whether a worker is waiting to say what it holds."""
        return worker.key in self._doubted

    def settled(self, worker: LiveWorker) -> None:
        """Take in that a worker said, without contradiction, what it holds."""
        if worker.key in self._doubted:
            self._doubted.remove(worker.key)
            self._routable_changed(gained=True)

    def _put(self, worker: LiveWorker) -> None:
        before = self._by_key.get(worker.key)
        self._on_capabilities(before.capability_flags if before else 0, worker.capability_flags)
        self._by_id[worker.worker_id] = worker
        self._by_key[worker.key] = worker
        self._ids_by_daemon[worker.daemon_id] = worker.worker_id

    def _mark_live(self, worker: LiveWorker) -> None:
        worker.heartbeat_at = trio.current_time()
        self._live.add(worker.key)
        if self._stale_at.set(worker.key, worker.heartbeat_at + self.timeout_s):
            self._stale_alarm.sooner()

    # Which workers are live and routable.

    def _routable_changed(self, *, gained: bool) -> None:
        self._accepting = None
        if gained:
            self._on_routable()
        else:
            self._on_unroutable()

    async def watch_silence(self) -> None:
        """Let workers that are silent for too long become unroutable at once, until cancelled."""
        while True:
            await self._stale_alarm.wait()
            self._let_age()

    def _let_age(self) -> None:
        self.heartbeats.check_stall()
        silent = list(self._stale_at.pop_due(trio.current_time()))
        if silent:
            self._live.difference_update(silent)
            self._routable_changed(gained=False)

    def live(self) -> frozenset[int]:
        """Return the keys of the live workers, accepting requests or not."""
        self._let_age()
        return frozenset(self._live)

    def accepting(self) -> frozenset[int]:
        """Return the keys of the workers that are live and accept requests, as of now."""
        self._let_age()
        if self._accepting is None:
            self._accepting = frozenset(key for key in self._live if self._by_key[key].accepting)
        return self._accepting

    def routable(self) -> frozenset[int]:
        """Return the keys of the workers that requesters may be sent to: no doubted ones."""
        accepting = self.accepting()
        return accepting - self._doubted if self._doubted else accepting

    def reachable(self) -> Reachable:
        """Return which workers are live, accept requests and may be sent to."""
        return Reachable(self.live(), self.accepting(), self.routable())

    def listed(self, required_flags: int, include_unavailable: bool) -> list[LiveWorker]:
        """Return live workers that have all of the capability bits, the latest heartbeat first."""
        found = [
            worker
            for key in self.live()
            if (worker := self._by_key[key]).capability_flags & required_flags == required_flags
            and (worker.accepting or include_unavailable)
        ]
        found.sort(key=lambda w: (-(w.heartbeat_at or 0.0), w.worker_id))
        return found

    # Expiry and storing.

    def postpone(self, seconds: float) -> None:
        """Give every worker more time: the server itself was stalled that long."""
        self.heartbeats.postpone(seconds)
        for deadlines in (self._stale_at, self._confirm_by):
            deadlines.postpone_all(seconds)
        for worker in self._by_key.values():
            if worker.heartbeat_at is not None:
                worker.heartbeat_at += seconds
            if worker.gap_since is not None:
                worker.gap_since += seconds

    def take_silent(self) -> list[LiveWorker]:
        """Return the workers that are to be expired now, unless a heartbeat comes first."""
        return [self._by_key[key] for key in self.heartbeats.take_silent(len(self._by_key))]

    async def wait_unconfirmed(self) -> None:
        """Return when some worker was to have confirmed its replicas."""
        await self._confirmation_alarm.wait()

    def take_unconfirmed(self) -> list[LiveWorker]:
        """Return the workers that had to confirm their replicas by now."""
        return [self._by_key[key] for key in self._confirm_by.pop_due(trio.current_time())]

    def confirm_later(self, worker_key: int) -> None:
        """Undo ``take_unconfirmed`` for a worker: what had to be written could not be."""
        if worker_key in self._by_key:
            self._confirm_by.set(worker_key, trio.current_time() + self.heartbeats.grace_s)
            self._confirmation_alarm.sooner()

    def take_unwritten(self, limit: int) -> list[dict[str, int]]:
        """Return what is to be stored of up to ``limit`` workers; it counts as stored."""
        return [
            {
                "worker_key": worker.key,
                "last_heartbeat": worker.last_heartbeat_us,
                "mem_pool_available_size": worker.mem_pool_available_size,
                "accepting_new_requests": int(worker.accepting),
                "capability_flags": signed64(worker.capability_flags),
            }
            for worker in map(self._by_key.__getitem__, self.heartbeats.take_unwritten(limit))
        ]

    @property
    def unconfirmed(self) -> int:
        """How many active workers still have to reconcile."""
        return sum(worker.needs_reconcile for worker in self._by_key.values())
