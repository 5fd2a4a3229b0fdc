"""What a daemon has to tell the store, kept until the store has taken it."""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import purerpc
import trio

from globalstore.client.store import StoreClient, Unreachable
from globalstore.rpc import StatusCode

# Messages that wait: some minutes of a busy daemon's registrations and completions. They are kept
# as functions that make them, so a full queue is small.
WAITING_MAX = 1024

# Deadline of an attempt and the pause after one that failed, in seconds.
_TIMEOUT_S = 10.0
_PAUSE_S = 1.0

# What an answer says that may have changed by the next attempt.
_PASSING = frozenset({StatusCode.UNAVAILABLE, StatusCode.ABORTED})


class OutboxFull(Exception):
    """The store was away for so long that no more can be kept for it; nothing was queued."""


@attrs.define(eq=False)
class _Message:
    method: str
    make: Callable[[], Any]
    closed: trio.Event = attrs.field(factory=trio.Event)
    answer: Any = None
    error: Exception | None = None


class Outbox:
    """Delivers messages one after another, in the order in which they were posted.

    Each has to be safe to repeat. ``ready`` returns when the store may be spoken to; it is asked
    before every attempt.
    """

    def __init__(self, client: StoreClient, ready: Callable[[], Awaitable[None]]) -> None:
        self._client = client
        self._ready = ready
        self._post, self._messages = trio.open_memory_channel[_Message](WAITING_MAX)

    def __repr__(self) -> str:
        return f"<Outbox [waiting: {len(self)}]>"

    def __len__(self) -> int:
        return self._post.statistics().current_buffer_used

    async def deliver(self, method: str, make: Callable[[], Any]) -> Any:
        """Post a message and return the store's answer, which may take as long as an outage.

        ``make`` returns the message when it is about to be sent, or None when there is nothing to
        tell any more. Raises OutboxFull at once, and purerpc's RpcFailedError when the store
        refuses. Cancelled while waiting: the message stays in the queue and is delivered all the
        same.
        """
        message = _Message(method, make)
        try:
            self._post.send_nowait(message)
        except trio.WouldBlock:
            raise OutboxFull(
                f"{method}: {WAITING_MAX} messages wait for the store already; try again when it"
                " can be reached"
            ) from None
        await message.closed.wait()
        if message.error is not None:
            raise message.error
        return message.answer

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async for message in self._messages:
            try:
                message.answer = await self._delivered(message)
            except purerpc.RpcFailedError as error:
                message.error = error
            message.closed.set()

    async def _delivered(self, message: _Message) -> Any:
        while True:
            await self._ready()
            request = message.make()
            if request is None:
                return None
            try:
                return await self._client.call(
                    "runtime", message.method, request, timeout_s=_TIMEOUT_S, repeatable=True
                )
            except Unreachable:
                pass
            except purerpc.RpcFailedError as error:
                if error.status.status_code not in _PASSING:
                    raise
            await trio.sleep(self._client.jittered(_PAUSE_S))
