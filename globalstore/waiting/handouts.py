"""What calls hand out to one caller alone, until somebody has it for good.

A call that hands something out holds its name from the beginning until the answer has arrived, see
``Call.if_undelivered``. Calls of one name get the same thing, as repeats of a request do; it is
given back when the last of them ends without having delivered it, and while that is going on
another call of the name waits. What nobody holds any more has been delivered.
"""

from collections.abc import Awaitable, Callable, Hashable
from weakref import WeakValueDictionary

import attrs
import trio

from globalstore.rpc import Call

GiveBack = Callable[[], Awaitable[None]]

# Giving back is one transaction. A call that is answered without the thing waits so long for it.
_GIVE_BACK_S = 5.0


@attrs.define(eq=False)
class Handout:
    """One thing, and how many calls may have yet to deliver it.

    ``give_back`` is None as long as it was handed to nobody.
    """

    holders: int = 0
    give_back: GiveBack | None = None
    returned: trio.Event | None = None

    def answered(self, call: Call, give_back: GiveBack, *, made: bool) -> None:
        """Take in that a call is answered with the thing.

        ``made`` unless somebody had it before. Then the call does not answer for it, or a client
        that gives up on an extension would lose what it has; but it does if those who were handed
        the thing before have not received it yet, or may just be handed it.
        """
        if made or self.give_back is not None:
            self.give_back = give_back
        elif self.holders == 1:
            call.undo = None
            self.holders = 0

    async def unanswered(self, call: Call) -> None:
        """Take in that a call is answered without the thing."""
        call.undo = None
        with trio.move_on_after(_GIVE_BACK_S, shield=True):
            await self.undelivered()

    async def undelivered(self) -> None:
        """Take in that a call ended and its client does not have the thing."""
        self.holders -= 1
        if self.holders == 0:
            await self.take_back()

    async def take_back(self) -> None:
        """Give back what was handed out, if anything was."""
        give_back, self.give_back = self.give_back, None
        if give_back is not None:
            if self.returned is None:
                self.returned = trio.Event()
            try:
                await give_back()
            finally:
                self.returned.set()
                self.returned = None


class Handouts:
    """What is being handed out, by name. Nothing is kept of what has arrived."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[Hashable, Handout] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<Handouts [open: {len(self)}]>"

    async def returned(self, name: Hashable) -> None:
        """Wait while the thing of a name is being given back."""
        while (handout := self._open.get(name)) is not None and handout.returned is not None:
            await handout.returned.wait()

    def hold(self, call: Call, name: Hashable) -> Handout:
        """Have a call answer for the thing of a name until it is delivered."""
        handout = self.of(name)
        handout.holders += 1
        call.if_undelivered(handout.undelivered)
        return handout

    def of(self, name: Hashable) -> Handout:
        """Return the handout of a name, which is forgotten when nobody holds it."""
        handout = self._open.get(name)
        if handout is None:
            handout = self._open[name] = Handout()
        return handout
