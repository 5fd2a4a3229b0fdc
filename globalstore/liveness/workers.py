"""Which workers are being heard, as of this instant, in memory.

A heartbeat touches nothing else: no database read, no write on its path. Lifetimes are measured on
trio's clock, so that a step of the wall clock changes nobody's age.
"""

from collections.abc import Callable, Iterable

import attrs
import trio

from globalstore.liveness.alarm import Alarm
from globalstore.registry.runtime.workers import WorkerRegistered, WorkerState
from globalstore.registry.signals import WorkerEnded, WorkerReconciled, WorkerReplicasChanged
from globalstore.rules.deadlines import Deadlines
from globalstore.rules.values import signed64


@attrs.define(eq=False)
class LiveWorker:
    """An active worker and what was last heard of it.

    ``heartbeat_at`` is on trio's clock, None until the worker speaks after a restart of the server.
    ``replicas_revision`` changes with what the worker holds; whatever is derived from that is
    kept in ``derived`` with the revision it belongs to. ``expiring`` is set while its end is being
    written: it must not be answered before that is decided.

    ``reported_checksum`` is the digest in its latest heartbeat. ``confirmed`` is the fingerprint of
    an inventory, with the revision of the replicas that is known to agree with it. ``gap_since`` is
    when a reconcile first came that skipped a number, if none was accepted since.
    """

    state: WorkerState
    heartbeat_at: float | None
    last_heartbeat_us: int
    mem_pool_available_size: int
    accepting: bool
    capability_flags: int
    written_at: float
    replicas_revision: int = 0
    derived: dict[object, tuple[int, object]] = attrs.Factory(dict)
    expiring: trio.Event | None = None
    reported_checksum: str = ""
    confirmed: tuple[int, int] | None = None
    gap_since: float | None = None

    @property
    def key(self) -> int:
        return self.state.worker_key


@attrs.frozen
class Heartbeat:
    """What a heartbeat says; ``capability_flags`` None leaves them as they are."""

    mem_pool_available_size: int
    accepting: bool
    capability_flags: int | None
    state_checksum: str = ""


class Workers:
    """All active workers.

    ``timeout_s`` is the silence after which a worker is not routed to; ``grace_s`` later it is to
    be expired. ``on_routable`` is called when a worker starts to be a possible source, and
    ``on_capabilities`` with the flags before and after when those of an active worker change, 0
    for one that is not there. ``check_stall`` is called before anybody is judged by the clock: it
    postpones first if the server itself was stalled.
    """

    def __init__(
        self,
        timeout_s: float,
        grace_s: float,
        on_routable: Callable[[], None] = lambda: None,
        *,
        on_capabilities: Callable[[int, int], None] = lambda before, after: None,
        check_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self.timeout_s = timeout_s
        self._grace_s = grace_s
        self._on_routable = on_routable
        self._on_capabilities = on_capabilities
        self._check_stall = check_stall
        self._by_id: dict[str, LiveWorker] = {}
        self._by_key: dict[int, LiveWorker] = {}
        self._stale_at: Deadlines[int] = Deadlines()
        self._expire_at: Deadlines[int] = Deadlines()
        self._confirm_by: Deadlines[int] = Deadlines()
        self._live: set[int] = set()
        self._routable: frozenset[int] | None = None
        self._unwritten: dict[int, LiveWorker] = {}
        self._some_unwritten = trio.Event()
        self._alarm = Alarm(self._next_due)

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"<Workers [active: {len(self)}, live: {len(self._live)}]>"

    # What the database tells.

    def restore(self, workers: Iterable[WorkerState]) -> None:
        """Take over the workers of an earlier server: active, but not heard by this one."""
        now = trio.current_time()
        for state in workers:
            self._put(
                LiveWorker(
                    state,
                    heartbeat_at=None,
                    last_heartbeat_us=state.last_heartbeat_us,
                    mem_pool_available_size=state.mem_pool_available_size,
                    accepting=state.accepting_new_requests,
                    capability_flags=state.capability_flags,
                    written_at=now,
                )
            )
            self._expire_at.set(state.worker_key, now + self.timeout_s + self._grace_s)
        self._alarm.sooner()

    def registered(self, signal: WorkerRegistered) -> None:
        """A worker registered; that counts as a heartbeat."""
        state, now = signal.worker, trio.current_time()
        before = self._by_key.get(state.worker_key)
        worker = LiveWorker(
            state,
            heartbeat_at=now,
            # What was said last may not be stored yet, and is never turned back.
            last_heartbeat_us=max(
                state.last_heartbeat_us, before.last_heartbeat_us if before else 0
            ),
            mem_pool_available_size=state.mem_pool_available_size,
            accepting=state.accepting_new_requests,
            capability_flags=state.capability_flags,
            written_at=now,
            replicas_revision=before.replicas_revision + 1 if before else 0,
        )
        self._put(worker)
        self._unwritten.pop(worker.key, None)
        self._heard(worker, now)
        if state.needs_reconcile:
            self._confirm_by.set(worker.key, now + self.timeout_s)
            self._alarm.sooner()
        self._routable_changed(gained=True)

    def ended(self, signal: WorkerEnded) -> None:
        """A worker became inactive."""
        worker_key = signal.worker_key
        worker = self._by_key.pop(worker_key, None)
        if worker is None:
            return
        del self._by_id[worker.state.worker_id]
        self._on_capabilities(worker.capability_flags, 0)
        for deadlines in (self._stale_at, self._expire_at, self._confirm_by):
            deadlines.discard(worker_key)
        self._live.discard(worker_key)
        self._unwritten.pop(worker_key, None)
        self._routable_changed(gained=False)
        if worker.expiring is not None:
            worker.expiring.set()

    def replicas_changed(self, signal: WorkerReplicasChanged) -> None:
        """What a worker holds, or its availability, changed."""
        worker = self._by_key.get(signal.worker_key)
        if worker is not None:
            worker.replicas_revision += 1

    def reconciled(self, signal: WorkerReconciled) -> None:
        """An inventory of a worker was accepted."""
        worker = self._by_key.get(signal.worker_key)
        if worker is None:
            return
        worker.gap_since = None
        worker.state = attrs.evolve(
            worker.state,
            request_seq=signal.request_seq,
            state_version=signal.state_version,
            needs_reconcile=worker.state.needs_reconcile and not signal.complete,
        )
        if signal.complete:
            fingerprint, revision = signal.fingerprint, worker.replicas_revision
            if fingerprint is None or signal.compared_at not in {None, revision}:
                worker.confirmed = None
            else:
                worker.confirmed = fingerprint, revision
            self._confirm_by.discard(worker.key)

    # What the daemons tell.

    def find(self, worker_id: str) -> LiveWorker | None:
        """Return an active worker."""
        return self._by_id.get(worker_id)

    def of_key(self, worker_key: int) -> LiveWorker | None:
        """Return an active worker by its key."""
        return self._by_key.get(worker_key)

    def heartbeat(self, worker: LiveWorker, heartbeat: Heartbeat, now_us: int) -> None:
        """Take in a heartbeat of an active worker; ``now_us`` is wall time, to be stored."""
        now = trio.current_time()
        was_routable = worker.accepting and worker.key in self._live
        flags = (
            worker.capability_flags
            if heartbeat.capability_flags is None
            else heartbeat.capability_flags
        )
        changed = (heartbeat.accepting, flags) != (worker.accepting, worker.capability_flags)
        worker.mem_pool_available_size = heartbeat.mem_pool_available_size
        worker.accepting = heartbeat.accepting
        self._on_capabilities(worker.capability_flags, flags)
        worker.capability_flags = flags
        worker.reported_checksum = heartbeat.state_checksum
        worker.last_heartbeat_us = max(worker.last_heartbeat_us, now_us)
        self._heard(worker, now)
        # Liveness is in memory; what is stored only has to be near enough for a reader of the
        # file, so most heartbeats are never written.
        if changed or now - worker.written_at >= self.timeout_s / 3:
            self._unwritten[worker.key] = worker
            self._some_unwritten.set()
        if was_routable != worker.accepting:
            self._routable_changed(gained=worker.accepting)

    def request_missing(self, worker: LiveWorker) -> float:
        """Take in that a reconcile skipped a number; return how long one is missing, in seconds."""
        now = trio.current_time()
        if worker.gap_since is None:
            worker.gap_since = now
        return now - worker.gap_since

    def _put(self, worker: LiveWorker) -> None:
        before = self._by_key.get(worker.key)
        self._on_capabilities(before.capability_flags if before else 0, worker.capability_flags)
        self._by_id[worker.state.worker_id] = worker
        self._by_key[worker.key] = worker

    def _heard(self, worker: LiveWorker, now: float) -> None:
        self._check_stall()  # or the stall would be added to a deadline that begins now
        worker.heartbeat_at = now
        self._live.add(worker.key)
        self._stale_at.set(worker.key, now + self.timeout_s)
        if self._expire_at.set(worker.key, now + self.timeout_s + self._grace_s):
            self._alarm.sooner()

    # Who may be given work.

    def _routable_changed(self, *, gained: bool) -> None:
        self._routable = None
        if gained:
            self._on_routable()

    def _let_age(self) -> None:
        self._check_stall()
        for key in self._stale_at.pop_due(trio.current_time()):
            self._live.discard(key)
            self._routable = None

    def live(self) -> frozenset[int]:
        """Return the keys of the workers heard within the timeout, accepting or not."""
        self._let_age()
        return frozenset(self._live)

    def routable(self) -> frozenset[int]:
        """Return the keys of the workers that are heard and accept requests, as of now."""
        self._let_age()
        if self._routable is None:
            self._routable = frozenset(key for key in self._live if self._by_key[key].accepting)
        return self._routable

    def listed(self, required_flags: int, include_unavailable: bool) -> list[LiveWorker]:
        """Return live workers that have all of the capability bits, last heard first."""
        found = [
            worker
            for key in self.live()
            if (worker := self._by_key[key]).capability_flags & required_flags == required_flags
            and (worker.accepting or include_unavailable)
        ]
        found.sort(key=lambda w: (-(w.heartbeat_at or 0.0), w.state.worker_id))
        return found

    # What is due.

    async def wait_due(self) -> None:
        """Return when some worker is to be expired or was to have confirmed its replicas."""
        await self._alarm.wait()

    def _next_due(self) -> float | None:
        times = [t for t in (self._expire_at.next(), self._confirm_by.next()) if t is not None]
        return min(times, default=None)

    def postpone(self, seconds: float) -> None:
        """Give everybody more time: the server itself was stalled that long."""
        for deadlines in (self._stale_at, self._expire_at, self._confirm_by):
            deadlines.postpone_all(seconds)
        for worker in self._by_key.values():
            if worker.heartbeat_at is not None:
                worker.heartbeat_at += seconds

    def take_silent(self) -> list[LiveWorker]:
        """Return the workers that are to be expired now, unless they are heard before that."""
        return [self._by_key[key] for key in self._expire_at.pop_due(trio.current_time())]

    def begin_expiry(self, worker: LiveWorker) -> bool:
        """Mark a worker as expiring; False when it was heard or ended since it was taken."""
        if self._by_key.get(worker.key) is not worker or worker.key in self._expire_at:
            return False
        worker.expiring = trio.Event()
        return True

    def keep(self, worker: LiveWorker) -> None:
        """Undo ``begin_expiry`` for a worker whose end could not be written: try again later."""
        if worker.expiring is not None:
            worker.expiring.set()
            worker.expiring = None
        if self._by_key.get(worker.key) is worker:
            self._expire_at.set(worker.key, trio.current_time() + self._grace_s)
            self._alarm.sooner()

    def take_unconfirmed(self) -> list[LiveWorker]:
        """Return the workers that had to confirm their replicas by now."""
        return [self._by_key[key] for key in self._confirm_by.pop_due(trio.current_time())]

    async def wait_unwritten(self) -> None:
        """Return when there is liveness to store."""
        while not self._unwritten:
            self._some_unwritten = trio.Event()
            await self._some_unwritten.wait()

    def confirm_later(self, worker_key: int) -> None:
        """Undo ``take_unconfirmed`` for a worker: what had to be written could not be."""
        if worker_key in self._by_key:
            self._confirm_by.set(worker_key, trio.current_time() + self._grace_s)
            self._alarm.sooner()

    def take_unwritten(self, limit: int) -> list[dict[str, int]]:
        """Return what is to be stored of up to ``limit`` workers; it counts as written."""
        now = trio.current_time()
        rows = []
        for key in list(self._unwritten)[:limit]:
            worker = self._unwritten.pop(key)
            worker.written_at = now
            rows.append(
                {
                    "worker_key": key,
                    "last_heartbeat": worker.last_heartbeat_us,
                    "mem_pool_available_size": worker.mem_pool_available_size,
                    "accepting_new_requests": int(worker.accepting),
                    "capability_flags": signed64(worker.capability_flags),
                }
            )
        return rows

    @property
    def unwritten(self) -> int:
        """How many workers have liveness that is not stored yet."""
        return len(self._unwritten)

    @property
    def unconfirmed(self) -> int:
        """How many active workers still have to reconcile."""
        return sum(worker.state.needs_reconcile for worker in self._by_key.values())
