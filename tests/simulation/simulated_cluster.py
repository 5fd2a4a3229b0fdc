"""An hour in the life of a cluster, in seconds: one seed is one history, event for event."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
import trio.testing
from simulated_daemons import Daemon
from simulated_host import Host, folder_in_memory
from witness import Witness

from globalstore.registry import new_ids

# How often everything is inspected, in simulated seconds.
INSPECT_S = 5.0

# After the last fault everybody is to be registered and in step within so long.
SETTLE_S = 90.0


@attrs.frozen
class Outcome:
    """How a run ended: the hash of all its events, and how often each kind of event came."""

    digest: str
    counts: dict[str, int]


class Cluster:
    """A server, its daemons, and whatever goes wrong with them."""

    def __init__(self, seed: int, daemons: int, host: Host, nursery: trio.Nursery) -> None:
        self._rng = random.Random(f"{seed} faults")
        self._host = host
        self._nursery = nursery
        self._at_work = trio.Lock()
        self.witness = Witness(host)
        self.daemons = [
            Daemon(f"d{number}", self.witness, random.Random(f"{seed} {number}"))
            for number in range(daemons)
        ]

    async def run(self, seconds: float, faults: bool) -> None:
        await self._start_server()
        for daemon in self.daemons:
            self._nursery.start_soon(daemon.run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._inspect)
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as faulty:
                    if faults:
                        await self._break_things(faulty)
                    await trio.sleep_forever()
            self._heal()
            await self._judge()
            nursery.cancel_scope.cancel()

    async def _inspect(self) -> None:
        while True:
            await trio.sleep(INSPECT_S)
            async with self._at_work:
                await self.witness.inspect()

    # What goes wrong.

    async def _break_things(self, nursery: trio.Nursery) -> None:
        kinds = {
            self._crash: 30,
            self._pause: 20,
            self._lose_packets: 20,
            self._leave: 15,
            self._restart_server: 6,
            self._stall_server: 5,
            self._set_wall_clock: 4,
        }
        await trio.sleep(20)
        while True:
            await trio.sleep(round(self._rng.uniform(0.5, 10), 1))
            nursery.start_soon(self._rng.choices([*kinds], [*kinds.values()])[0])

    def _some(self) -> list[Daemon]:
        well = [d for d in self.daemons if d.scope is not None and not d.leaving and not d.lossy]
        well = [d for d in well if d.awake.is_set()]
        return self._rng.sample(well, min(len(well), self._rng.choice([1, 1, 2, 10])))

    async def _for(self, low: float, high: float) -> None:
        await trio.sleep(round(self._rng.uniform(low, high), 1))

    async def _crash(self) -> None:
        for daemon in self._some():
            self.witness.note(daemon.name, "crashes")
            daemon.crash()
            self._nursery.start_soon(self._return, daemon)

    async def _return(self, daemon: Daemon) -> None:
        await self._for(0.5, 90)
        await daemon.ended.wait()
        self.witness.note(daemon.name, "returns")
        await daemon.run()

    async def _leave(self) -> None:
        for daemon in self._some():
            self.witness.note(daemon.name, "leaves")
            daemon.leaving = True
            self._nursery.start_soon(self._return, daemon)

    async def _pause(self) -> None:
        paused = self._some()
        for daemon in paused:
            self.witness.note(daemon.name, "pauses")
            daemon.pause()
        await self._for(2, 90)
        for daemon in paused:
            daemon.resume()

    async def _lose_packets(self) -> None:
        cut_off = self._some()
        for daemon in cut_off:
            self.witness.note(daemon.name, "is cut off")
            daemon.lossy = True
        await self._for(5, 60)
        for daemon in cut_off:
            daemon.lossy = False

    async def _start_server(self) -> None:
        self.witness.started()
        await self._host.start()

    async def _restart_server(self) -> None:
        async with self._at_work:
            with trio.CancelScope(shield=True):
                if self._rng.random() < 0.5:
                    self.witness.note("server", "is killed")
                    await self._host.kill()
                else:
                    self.witness.note("server", "stops")
                    await self._host.stop()
                self.witness.stopped()
                await self._for(0.1, 8)
                await self._start_server()

    async def _stall_server(self) -> None:
        async with self._at_work:
            seconds = round(self._rng.uniform(1, 60), 1)
            self.witness.note("server", "stalls")
            clock = trio.lowlevel.current_clock()
            assert isinstance(clock, trio.testing.MockClock)
            self.witness.stalled(seconds)
            clock.jump(seconds)

    async def _set_wall_clock(self) -> None:
        self.witness.note("wall clock", "is set")
        self._host.wall_step_us += self._rng.randint(-7200, 7200) * 1_000_000

    def _heal(self) -> None:
        for daemon in self.daemons:
            daemon.resume()
            daemon.lossy = False

    async def _judge(self) -> None:
        """Everybody is back, in step, and the store knows what they hold."""
        for daemon in self.daemons:
            await daemon.started.wait()
            daemon.settled = True
        await trio.sleep(SETTLE_S)
        held = await self.witness.held()
        for daemon in self.daemons:
            assert daemon.in_step, daemon.name
            assert held.get(daemon.name, set()) == daemon.memory, daemon.name
            self.witness.note(daemon.name, "holds", str(len(daemon.memory)))


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Let tasks run in an order that follows from the seed, and ids be drawn from it."""
    noise = random.Random(f"{seed} ids")
    run = trio._core._run  # type: ignore[attr-defined]
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, os.urandom, random._urandom  # type: ignore[attr-defined]
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    os.urandom = random._urandom = noise.randbytes  # type: ignore[attr-defined, assignment]
    new_ids._drawn.clear()
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING, os.urandom, random._urandom = before  # type: ignore[attr-defined]
        new_ids._drawn.clear()


def simulate(seed: int, *, daemons: int, minutes: float, faults: bool = True) -> Outcome:
    """Run a cluster for some simulated minutes; raises when anything is not as it must be."""

    async def main() -> Outcome:
        async with trio.open_nursery() as nursery:
            cluster = Cluster(seed, daemons, Host(folder, nursery), nursery)
            try:
                await cluster.run(minutes * 60, faults)
            except BaseException:
                print(*cluster.witness.lines, sep="\n")
                raise
            nursery.cancel_scope.cancel()
        return Outcome(cluster.witness.digest, cluster.witness.counts)

    print("seed", seed)
    with folder_in_memory() as folder, deterministic(seed):
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(main, clock=clock, strict_exception_groups=True)
