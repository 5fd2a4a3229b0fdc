"""When each member last sent a heartbeat, which members are silent, and what is not yet stored.

Workers and instances share it. A heartbeat touches nothing else: no database read, no write on its
path. Lifetimes are measured on trio's clock, so that a step of the wall clock changes no age.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import trio

from globalstore.liveness.alarm import Alarm
from globalstore.rules.deadlines import Deadlines

# Part of the timeout after which a heartbeat is stored although it brings nothing new. What is
# stored only has to be near enough for a reader of the file, so most heartbeats are never written.
_STORED_EVERY = 1 / 3


class Heartbeats:
    """The heartbeats of all active members of one kind, by their keys.

    ``timeout_s`` is the silence after which a member counts as gone; ``grace_s`` later it is to be
    expired. ``check_stall`` is called before a member is judged by the clock: if the server itself
    was stalled, it first postpones the deadlines.
    """

    def __init__(
        self, timeout_s: float, grace_s: float, check_stall: Callable[[], object] = lambda: None
    ) -> None:
        self.timeout_s = timeout_s
        self.grace_s = grace_s
        self.check_stall = check_stall
        self._expire_at: Deadlines[int] = Deadlines()
        self._expiring: dict[int, trio.Event] = {}
        self._alarm = Alarm(self._expire_at.next)
        self._stored_at: dict[int, float] = {}
        self._unwritten: dict[int, None] = {}
        self._some_unwritten = trio.Event()

    def __repr__(self) -> str:
        return f"<Heartbeats [members: {len(self._stored_at)}, expiring: {len(self._expiring)}]>"

    # Members that come, send heartbeats and go.

    def restored(self, key: int) -> None:
        """Take in an active member of an earlier server, which has sent this one no heartbeat."""
        now = trio.current_time()
        self._stored_at[key] = now
        self._set_expiry(key, now)

    def registered(self, key: int) -> None:
        """Take in that a member registered; that counts as a heartbeat, and is stored."""
        self.received(key)
        self._stored_at[key] = trio.current_time()
        self._unwritten.pop(key, None)
        self._decide(key)

    def received(self, key: int) -> None:
        """Take in a heartbeat of a member: its lifetime begins anew."""
        self.check_stall()  # or the stall would be added to a deadline that begins now
        self._set_expiry(key, trio.current_time())

    def changed(self, key: int, *, news: bool) -> None:
        """Take in that a member changed; without ``news`` that is stored only now and then."""
        if news or trio.current_time() - self._stored_at[key] >= self.timeout_s * _STORED_EVERY:
            self._unwritten[key] = None
            self._some_unwritten.set()

    def ended(self, key: int) -> None:
        """Take in that a member became inactive."""
        del self._stored_at[key]
        self._unwritten.pop(key, None)
        self._expire_at.discard(key)
        self._decide(key)

    def _set_expiry(self, key: int, now: float) -> None:
        if self._expire_at.set(key, now + self.timeout_s + self.grace_s):
            self._alarm.sooner()

    # Expiry.

    async def wait_due(self) -> None:
        """Return when some member is to be expired."""
        await self._alarm.wait()

    def postpone(self, seconds: float) -> None:
        """Give every member more time: the server itself was stalled that long."""
        self._expire_at.postpone_all(seconds)

    def take_silent(self, limit: int) -> list[int]:
        """Return up to ``limit`` members that are to be expired now, unless a heartbeat comes
        first.
        """
        return list(islice(self._expire_at.pop_due(trio.current_time()), limit))

    def begin_expiry(self, key: int) -> bool:
        """Mark a silent member as expiring; False when a heartbeat came or it ended since it was
        taken.

        While it is expiring its calls must not be answered: see ``decided``.
        """
        if key not in self._stored_at or key in self._expire_at:
            return False
        self._expiring[key] = trio.Event()
        return True

    def end_expiry(self, keys: Iterable[int]) -> None:
        """Let the answers of expiring members go on; those that are active are tried again."""
        now = trio.current_time()
        for key in keys:
            if self._decide(key) and key in self._stored_at:
                self._expire_at.set(key, now + self.grace_s)
        self._alarm.sooner()

    def is_expiring(self, key: int) -> bool:
        """Tell whether a member's end is being written."""
        return key in self._expiring

    async def decided(self, key: int) -> None:
        """Return when it is known whether a member has ended. A cancelled wait changes nothing."""
        event = self._expiring.get(key)
        if event is not None:
            await event.wait()

    def _decide(self, key: int) -> bool:
        event = self._expiring.pop(key, None)
        if event is None:
            return False
        event.set()
        return True

    # What is to be stored.

    @property
    def unwritten(self) -> int:
        """How many members have liveness that is not stored yet."""
        return len(self._unwritten)

    async def wait_unwritten(self) -> None:
        """Return when there is liveness to store."""
        while not self._unwritten:
            self._some_unwritten = trio.Event()
            await self._some_unwritten.wait()

    def take_unwritten(self, limit: int) -> list[int]:
        """Return up to ``limit`` members whose liveness is to be stored; it counts as stored."""
        taken = list(islice(self._unwritten, limit))
        now = trio.current_time()
        for key in taken:
            del self._unwritten[key]
            self._stored_at[key] = now
        return taken
