"""Calls that are cut off at a moment of the test's choice."""

import enum
from collections.abc import Awaitable, Callable
from typing import Any

import purerpc
import pytest
import trio
import trio.testing
from servers import Serving


class Moment(enum.Enum):
    """When the client of a call goes, relative to the first write that the call leads to."""

    BEFORE_COMMIT = "the write is about to be queued"
    IN_COMMIT = "the write has begun"
    AFTER_COMMIT = "the write is durable and nobody was answered"
    AFTER_ANSWER = "the answer is on its way"


async def cut(
    store: Serving,
    moment: Moment,
    method: Callable[..., Awaitable[Any]],
    request: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Make a call of a stub in memory and cut it off; what it led to is over on return.

    The database of the store runs in threads, so that there is a moment while it is at work. Fails
    if the call ended before it could be cut off.
    """
    if moment is Moment.AFTER_ANSWER:
        with pytest.raises(purerpc.RpcFailedError):
            await method(request, loses_answer=True)
        return
    write, scope = store.components.store.write, trio.CancelScope()

    async def write_and_cut(operation: Any, *args: Any, **options: Any) -> Any:
        monkeypatch.undo()  # of the call, this write alone

        def begun(tx: Any, *rest: Any) -> Any:
            if moment is Moment.IN_COMMIT:
                trio.from_thread.run_sync(scope.cancel)
            return operation(tx, *rest)

        if moment is Moment.BEFORE_COMMIT:
            scope.cancel()
        result = await write(begun, *args, **options)
        if moment is Moment.AFTER_COMMIT:
            scope.cancel()
        return result

    monkeypatch.setattr(store.components.store, "write", write_and_cut)
    with scope:
        await method(request)
    assert scope.cancelled_caught, "the call ended before it could be cut off"
    await trio.testing.wait_all_tasks_blocked()
    await store.components.store.read(lambda tx: None)
