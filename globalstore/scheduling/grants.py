"""Sources that were granted, and how they are given back when no call delivered them."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import attrs
import trio

from globalstore.db import DatabaseError, Lane, Store
from globalstore.registry.runtime import transport_ends
from globalstore.registry.runtime.transports import Granted, TransportRequest
from globalstore.rpc import Call
from globalstore.waiting.handouts import Handout, Handouts


@attrs.frozen
class Grants:
    """The grants of one server; ``on_event`` is told of each that was given back."""

    _store: Store
    _handouts: Handouts
    _wall_us: Callable[[], int]
    _on_event: Callable[[str], None]

    async def returned(self, request: TransportRequest) -> None:
        """Wait while the grant of a request is being given back."""
        await self._handouts.returned(_name(request))

    def hold(self, call: Call, request: TransportRequest) -> Handout:
        """Have a call answer for what its request is granted."""
        return self._handouts.hold(call, _name(request))

    def hand_out(self, request: TransportRequest, granted: Granted, nursery: trio.Nursery) -> None:
        """Have a source given back unless one of the calls that hold the request delivers it."""
        handout = self._handouts.of(_name(request))
        if granted.replayed and handout.give_back is None:
            return  # it has arrived with an earlier answer, and that stays true
        handout.give_back = partial(self._give_back, granted)
        if not handout.holders:
            handout.returned = trio.Event()  # a repeat waits from now on
            nursery.start_soon(handout.take_back)

    async def _give_back(self, granted: Granted) -> None:
        with suppress(DatabaseError):  # nothing is lost for good: it ends by its time to live
            ended = await self._store.write(
                transport_ends.withdraw_transport,
                granted.transport_id,
                self._wall_us(),
                lane=Lane.CONTROL,
            )
            if ended:
                self._on_event("given_back")


def _name(request: TransportRequest) -> tuple[str, bytes]:
    """Return what repeats of a request have in common."""
    return request.request_id, request.fingerprint
