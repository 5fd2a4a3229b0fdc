"""Which instances are being heard, as of this instant, in memory.

As with workers, a heartbeat touches nothing else, and lifetimes are measured on trio's clock.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice

import attrs
import trio

from globalstore.liveness.alarm import Alarm
from globalstore.registry.runtime.instances import InstanceRegistered, InstanceState, LivenessRow
from globalstore.registry.runtime.workers import WorkerRegistered
from globalstore.registry.signals import InstanceEnded, WorkerEnded
from globalstore.rules.deadlines import Deadlines
from globalstore.rules.values import signed64

# Instances that may be active: eight engines on each of 4096 nodes. With every text as long as it
# may be they would take some 300 MB. Registrations that are under way at once may pass it.
ACTIVE_MAX = 32_768


@attrs.frozen(eq=False)
class LiveInstance:
    """An instance and what was last heard of it; every heartbeat makes a new one.

    ``heartbeat_at`` is on the clock of ``Instances``, None if this server has not heard it, or not
    since it ended.
    """

    state: InstanceState
    heartbeat_at: float | None
    last_heartbeat_us: int
    named_worker_id: str
    capability_flags: int

    @property
    def key(self) -> int:
        return self.state.instance_key


def unheard(state: InstanceState) -> LiveInstance:
    """Return an instance as it is stored, without a word of its own."""
    return LiveInstance(
        state, None, state.last_heartbeat_us, state.named_worker_id, state.capability_flags
    )


@attrs.frozen
class InstanceList:
    """All active instances at one instant, whose times are ``now`` and ``wall_us``.

    ``active`` has the one heard longest ago first; ``workers`` are the active ones of the daemons.
    """

    active: dict[int, LiveInstance]
    workers: dict[str, str]
    now: float
    wall_us: int

    def worker_id(self, instance: LiveInstance) -> str:
        """Return the worker that an instance named, or else that of its daemon, or blank."""
        return instance.named_worker_id or self.workers.get(instance.state.daemon_id, "")

    def silent_s(self, instance: LiveInstance) -> float:
        """Return how long an instance was silent; infinite for one that was not heard."""
        return float("inf") if instance.heartbeat_at is None else self.now - instance.heartbeat_at

    def _age_s(self, instance: LiveInstance) -> float:
        """Return how old the latest heartbeat is, by the wall clock if there is nothing better."""
        if instance.heartbeat_at is None:
            return (self.wall_us - instance.last_heartbeat_us) / 1_000_000
        return self.now - instance.heartbeat_at

    def order(self, instance: LiveInstance) -> tuple[float, str]:
        """Return what puts the latest heartbeat first; ties by id."""
        return self._age_s(instance), instance.state.instance_id

    def latest_first(self, *ended: Iterable[LiveInstance]) -> Iterator[LiveInstance]:
        """Yield the active and the ended instances in order; lazily, for it may take long.

        Each of ``ended`` comes in that order. An instance that is active again is left out there.
        """
        active = (
            instance
            for _, together in groupby(reversed(self.active.values()), self._age_s)
            for instance in sorted(together, key=self.order)
        )
        gone = [filter(self._is_gone, instances) for instances in ended]
        return heapq.merge(active, *gone, key=self.order)

    def _is_gone(self, instance: LiveInstance) -> bool:
        return instance.key not in self.active


class Instances:
    """All active instances, and the worker of each daemon.

    ``timeout_s`` is the silence after which an instance is not connected; ``grace_s`` later it is
    to be expired. ``on_capabilities`` is called with the flags before and after when those of an
    active instance change, 0 for one that is not there. ``check_stall`` is called before anybody
    is judged by the clock: it postpones first if the server itself was stalled.
    """

    def __init__(
        self,
        timeout_s: float,
        grace_s: float,
        *,
        on_capabilities: Callable[[int, int], None] = lambda before, after: None,
        check_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self.timeout_s = timeout_s
        self._grace_s = grace_s
        self._on_capabilities = on_capabilities
        self._check_stall = check_stall
        # The one heard longest ago comes first, so that no list has to be sorted.
        self._live: dict[int, LiveInstance] = {}
        self._keys: dict[str, int] = {}
        self._stalled_s = 0.0
        self._heard_last = float("-inf")
        self._expire_at: Deadlines[int] = Deadlines()
        self._expiring: dict[int, trio.Event] = {}
        self._alarm = Alarm(self._expire_at.next)
        self._written_at: dict[int, float] = {}
        self._unwritten: dict[int, None] = {}
        self._some_unwritten = trio.Event()
        self._noting_ended: list[list[LiveInstance]] = []
        self._workers: dict[str, str] = {}
        self._daemons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"<Instances [active: {len(self)}, expiring: {len(self._expiring)}]>"

    # What the database tells.

    def restore(self, instances: Iterable[InstanceState]) -> None:
        """Take over the instances of an earlier server, the one heard longest ago first.

        They are active, but not heard by this server.
        """
        now = trio.current_time()
        for state in instances:
            self._put(unheard(state))
            self._written_at[state.instance_key] = now
            self._expire_at.set(state.instance_key, now + self.timeout_s + self._grace_s)
        self._alarm.sooner()

    def registered(self, signal: InstanceRegistered) -> None:
        """An instance registered; that counts as a heartbeat."""
        state = signal.instance
        before = self._live.get(state.instance_key)
        # What was said last may not be stored yet, and is never turned back.
        said_us = before.last_heartbeat_us if before else 0
        instance = attrs.evolve(
            unheard(state),
            heartbeat_at=self._hear(state.instance_key),
            last_heartbeat_us=max(state.last_heartbeat_us, said_us),
        )
        self._put(instance)
        self._written_at[instance.key] = trio.current_time()
        self._unwritten.pop(instance.key, None)
        self._decided(instance.key)

    def ended(self, signal: InstanceEnded) -> None:
        """An instance became inactive."""
        instance_key = signal.instance_key
        instance = self._live.pop(instance_key, None)
        if instance is None:
            return
        del self._keys[instance.state.instance_id]
        del self._written_at[instance_key]
        self._unwritten.pop(instance_key, None)
        self._expire_at.discard(instance_key)
        self._on_capabilities(instance.capability_flags, 0)
        for noted in self._noting_ended:
            noted.append(attrs.evolve(instance, heartbeat_at=None))
        self._decided(instance_key)

    # Which worker an instance belongs to.

    def worker_registered(self, signal: WorkerRegistered) -> None:
        """A worker is active: the one that instances of its daemon belong to."""
        worker = signal.worker
        self._workers[worker.daemon_id] = worker.worker_id
        self._daemons[worker.worker_key] = worker.daemon_id

    def worker_ended(self, signal: WorkerEnded) -> None:
        """A worker became inactive."""
        daemon_id = self._daemons.pop(signal.worker_key, None)
        if daemon_id is not None:
            del self._workers[daemon_id]

    def worker_id(self, daemon_id: str, named_worker_id: str) -> str:
        """Return the worker that was named, or else the active one of the daemon, or blank."""
        return named_worker_id or self._workers.get(daemon_id, "")

    # What the instances tell.

    def find(self, instance_id: str) -> LiveInstance | None:
        """Return an active instance."""
        key = self._keys.get(instance_id)
        return None if key is None else self._live[key]

    async def decided(self, instance_id: str) -> LiveInstance | None:
        """Return an active instance, after waiting for the outcome if its end is being written."""
        while (instance := self.find(instance_id)) and instance.key in self._expiring:
            await self._expiring[instance.key].wait()
        return instance

    def heartbeat(
        self, instance: LiveInstance, named_worker_id: str, flags: int | None, now_us: int
    ) -> None:
        """Take in a heartbeat of an active instance; ``now_us`` is wall time, to be stored.

        ``flags`` None leaves them as they are.
        """
        key = instance.key
        flags = instance.capability_flags if flags is None else flags
        changed = (named_worker_id, flags) != (instance.named_worker_id, instance.capability_flags)
        last_us = max(instance.last_heartbeat_us, now_us)
        self._put(LiveInstance(instance.state, self._hear(key), last_us, named_worker_id, flags))
        # Most heartbeats are never written, as those of workers.
        if changed or trio.current_time() - self._written_at[key] >= self.timeout_s / 3:
            self._unwritten[key] = None
            self._some_unwritten.set()

    def _put(self, instance: LiveInstance) -> None:
        before = self._live.pop(instance.key, None)
        self._on_capabilities(before.capability_flags if before else 0, instance.capability_flags)
        self._live[instance.key] = instance
        self._keys[instance.state.instance_id] = instance.key

    def _hear(self, key: int) -> float:
        """Begin the lifetime of an instance anew; return the time on the clock that is ours."""
        self._check_stall()  # or the stall would be added to a deadline that begins now
        if self._expire_at.set(key, trio.current_time() + self.timeout_s + self._grace_s):
            self._alarm.sooner()
        self._heard_last = self._now()
        return self._heard_last

    def _now(self) -> float:
        """Return trio's time less what the server was stalled; it never goes back."""
        return max(trio.current_time() - self._stalled_s, self._heard_last)

    # Who is there.

    def list_now(self, wall_us: int) -> InstanceList:
        """Return all active instances as they are now."""
        self._check_stall()
        return InstanceList(dict(self._live), dict(self._workers), self._now(), wall_us)

    @contextmanager
    def noting_ended(self) -> Iterator[list[LiveInstance]]:
        """Note the instances that end within: a list is read of the ended ones meanwhile."""
        noted: list[LiveInstance] = []
        self._noting_ended.append(noted)
        try:
            yield noted
        finally:
            self._noting_ended = [each for each in self._noting_ended if each is not noted]

    # What is due.

    async def wait_due(self) -> None:
        """Return when some instance is to be expired."""
        await self._alarm.wait()

    def postpone(self, seconds: float) -> None:
        """Give everybody more time: the server itself was stalled that long."""
        self._stalled_s += seconds
        self._expire_at.postpone_all(seconds)

    def take_silent(self, limit: int) -> list[LiveInstance]:
        """Return up to ``limit`` instances that are to be expired; each is marked as expiring."""
        due = islice(self._expire_at.pop_due(trio.current_time()), limit)
        silent = [self._live[key] for key in due]
        for instance in silent:
            self._expiring[instance.key] = trio.Event()
        return silent

    def give_back(self, silent: Iterable[LiveInstance]) -> None:
        """End ``take_silent``: those that have neither ended nor registered are tried again."""
        for instance in silent:
            if self._decided(instance.key) and instance.key in self._live:
                self._expire_at.set(instance.key, trio.current_time() + self._grace_s)
        self._alarm.sooner()

    def _decided(self, key: int) -> bool:
        """Let heartbeats go on that wait for the end of an instance; False when it had none."""
        event = self._expiring.pop(key, None)
        if event is None:
            return False
        event.set()
        return True

    async def wait_unwritten(self) -> None:
        """Return when there is liveness to store."""
        while not self._unwritten:
            self._some_unwritten = trio.Event()
            await self._some_unwritten.wait()

    def take_unwritten(self, limit: int) -> list[LivenessRow]:
        """Return what is to be stored of up to ``limit`` instances; it counts as written."""
        taken = list(islice(self._unwritten, limit))
        for key in taken:
            del self._unwritten[key]
            self._written_at[key] = trio.current_time()
        return [liveness_row(self._live[key]) for key in taken]


def liveness_row(instance: LiveInstance) -> LivenessRow:
    """Return what an instance said last, as it is stored."""
    return {
        "instance_key": instance.key,
        "generation": instance.state.generation,
        "last_heartbeat": instance.last_heartbeat_us,
        "named_worker_id": instance.named_worker_id,
        "capability_flags": signed64(instance.capability_flags),
    }
