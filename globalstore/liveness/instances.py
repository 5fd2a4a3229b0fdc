"""All active instances, in memory, with their latest heartbeats."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

import attrs
import trio

from globalstore.liveness.heartbeats import Heartbeats
from globalstore.registry.runtime.instances import InstanceRegistered, InstanceState, LivenessRow
from globalstore.registry.signals import InstanceEnded
from globalstore.rules.values import signed64

# Instances that may be active: eight engines on each of 4096 nodes. With every text as long as it
# may be they would take some 300 MB. Registrations that are under way at once may pass it.
ACTIVE_MAX = 32_768


@attrs.frozen(eq=False)
class LiveInstance:
    """An instance with its latest heartbeat; every heartbeat makes a new one.

    ``heartbeat_at`` is on the clock of ``Instances``, None if no heartbeat reached this server, or
    none since the instance ended.
    """

    state: InstanceState
    heartbeat_at: float | None = None

    @property
    def key(self) -> int:
        """The key of its row."""
        return self.state.instance_key


@attrs.frozen
class InstanceList:
    """All active instances at one instant, whose times are ``now`` and ``wall_us``.

    ``active`` is sorted by the latest heartbeat, the oldest first; ``workers`` are the active
    workers by daemon.
    """

    active: dict[int, LiveInstance]
    workers: dict[str, str]
    now: float
    wall_us: int

    def worker_id(self, instance: LiveInstance) -> str:
        """Return the worker that an instance named, or else that of its daemon, or blank."""
        state = instance.state
        return state.named_worker_id or self.workers.get(state.daemon_id, "")

    def silent_s(self, instance: LiveInstance) -> float:
        """Return how long an instance was silent; infinite for one without a heartbeat."""
        return float("inf") if instance.heartbeat_at is None else self.now - instance.heartbeat_at

    def _age_s(self, instance: LiveInstance) -> float:
        """Return how old the latest heartbeat is, by the wall clock if there is nothing better."""
        if instance.heartbeat_at is None:
            return (self.wall_us - instance.state.last_heartbeat_us) / 1_000_000
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
    """All active instances.

    ``timeout_s`` is the silence after which an instance is not connected; ``grace_s`` later it is
    to be expired. ``on_capabilities`` is called with the flags before and after when those of an
    active instance change, 0 for one that is not there. For ``check_stall`` see ``Heartbeats``.
    """

    def __init__(
        self,
        timeout_s: float,
        grace_s: float,
        *,
        on_capabilities: Callable[[int, int], None] = lambda before, after: None,
        check_stall: Callable[[], object] = lambda: None,
    ) -> None:
        self.heartbeats = Heartbeats(timeout_s, grace_s, check_stall)
        self._on_capabilities = on_capabilities
        # In the order of the latest heartbeats, the oldest first, so that no list has to be sorted.
        self._live: dict[int, LiveInstance] = {}
        self._keys: dict[str, int] = {}
        self._stalled_s = 0.0
        self._last_heartbeat_at = float("-inf")
        self._noting_ended: list[list[LiveInstance]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"<Instances [active: {len(self)}]>"

    @property
    def timeout_s(self) -> float:
        """The silence after which an instance is not connected."""
        return self.heartbeats.timeout_s

    # Signals of commits.

    def restore(self, instances: Iterable[InstanceState]) -> None:
        """Take over the instances of an earlier server, sorted by their latest heartbeat, the
        oldest first.

        They are active, but not connected.
        """
        for state in instances:
            self._put(LiveInstance(state))
            self.heartbeats.restored(state.instance_key)

    def registered(self, signal: InstanceRegistered) -> None:
        """Take in that an instance registered; that counts as a heartbeat."""
        state = signal.instance
        before = self._live.get(state.instance_key)
        if before is not None:
            # The latest heartbeat may not be stored yet; its time never goes back.
            last_us = max(state.last_heartbeat_us, before.state.last_heartbeat_us)
            state = attrs.evolve(state, last_heartbeat_us=last_us)
        self.heartbeats.registered(state.instance_key)
        self._put(LiveInstance(state, self._heartbeat_now()))

    def ended(self, signal: InstanceEnded) -> None:
        """Take in that an instance became inactive."""
        instance = self._live.pop(signal.instance_key, None)
        if instance is None:
            return
        del self._keys[instance.state.instance_id]
        self._on_capabilities(instance.state.capability_flags, 0)
        for noted in self._noting_ended:
            noted.append(LiveInstance(instance.state))
        self.heartbeats.ended(instance.key)

    # Calls of the instances.

    def find(self, instance_id: str) -> LiveInstance | None:
        """Return an active instance."""
        key = self._keys.get(instance_id)
        return None if key is None else self._live[key]

    async def decided(self, instance_id: str) -> LiveInstance | None:
        """Return an active instance, after waiting for the outcome if its end is being written.

        Cancellation changes nothing.
        """
        while (instance := self.find(instance_id)) and self.heartbeats.is_expiring(instance.key):
            await self.heartbeats.decided(instance.key)
        return instance

    def heartbeat(
        self, instance: LiveInstance, named_worker_id: str, flags: int | None, now_us: int
    ) -> None:
        """Take in a heartbeat of an active instance; ``now_us`` is wall time, to be stored.

        ``flags`` None leaves them as they are.
        """
        before = instance.state
        state = attrs.evolve(
            before,
            named_worker_id=named_worker_id,
            capability_flags=before.capability_flags if flags is None else flags,
            last_heartbeat_us=max(before.last_heartbeat_us, now_us),
        )
        news = (state.named_worker_id, state.capability_flags) != (
            before.named_worker_id,
            before.capability_flags,
        )
        self.heartbeats.received(instance.key)
        self._put(LiveInstance(state, self._heartbeat_now()))
        self.heartbeats.changed(instance.key, news=news)

    def _put(self, instance: LiveInstance) -> None:
        before = self._live.pop(instance.key, None)
        flags = instance.state.capability_flags
        self._on_capabilities(before.state.capability_flags if before else 0, flags)
        self._live[instance.key] = instance
        self._keys[instance.state.instance_id] = instance.key

    def _heartbeat_now(self) -> float:
        """Return the time of a heartbeat that comes now, on the clock of this class."""
        self._last_heartbeat_at = self._now()
        return self._last_heartbeat_at

    def _now(self) -> float:
        """Return trio's time less what the server was stalled; it never goes back."""
        return max(trio.current_time() - self._stalled_s, self._last_heartbeat_at)

    # Lists.

    def list_now(self, workers: dict[str, str], wall_us: int) -> InstanceList:
        """Return all active instances as they are now; ``workers`` are the ids by daemon."""
        self.heartbeats.check_stall()
        return InstanceList(dict(self._live), workers, self._now(), wall_us)

    @contextmanager
    def noting_ended(self) -> Iterator[list[LiveInstance]]:
        """Note the instances that end within the block, while the list of ended ones is read."""
        noted: list[LiveInstance] = []
        self._noting_ended.append(noted)
        try:
            yield noted
        finally:
            self._noting_ended = [each for each in self._noting_ended if each is not noted]

    # Expiry and storing.

    def postpone(self, seconds: float) -> None:
        """Give every instance more time: the server itself was stalled that long."""
        self._stalled_s += seconds
        self.heartbeats.postpone(seconds)

    def take_silent(self, limit: int) -> list[LiveInstance]:
        """Return up to ``limit`` instances that are to be expired; each is marked as expiring."""
        keys = self.heartbeats.take_silent(limit)
        return [self._live[key] for key in keys if self.heartbeats.begin_expiry(key)]

    def take_unwritten(self, limit: int) -> list[LivenessRow]:
        """Return what is to be stored of up to ``limit`` instances; it counts as stored."""
        return [liveness_row(self._live[key]) for key in self.heartbeats.take_unwritten(limit)]


def liveness_row(instance: LiveInstance) -> LivenessRow:
    """Return what an instance said last, as it is stored."""
    state = instance.state
    return {
        "instance_key": state.instance_key,
        "generation": state.generation,
        "last_heartbeat": state.last_heartbeat_us,
        "named_worker_id": state.named_worker_id,
        "capability_flags": signed64(state.capability_flags),
    }
