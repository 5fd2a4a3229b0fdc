"""Writing much without holding others up: slice by slice, each a transaction of its own.

A slice runs alone and after whatever else waits, so that others wait for one slice at most. What is
written in slices is not one transaction: the caller must make sure that a part of it does no harm,
by staging it where nothing reads it or by writing only what is true on its own, and that the last,
small transaction makes it count.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Generic, TypeVar, TypeVarTuple

import attrs
import trio

from globalstore.db.store import Store
from globalstore.db.transaction import Snapshot, Transaction

# Slices that are written before the caller has taken in what an earlier one returned.
_AHEAD = 4

R = TypeVar("R")
Arguments = TypeVarTuple("Arguments")


@attrs.frozen
class Ready(Generic[R]):
    """A slice that needs no transaction, and what it would have returned."""

    result: R


Slice = Callable[[Transaction], R] | Ready[R]


@attrs.frozen
class _Stopped:
    """The guard said no."""


def guarded(
    tx: Transaction, write: Callable[[Transaction], R], guard: Callable[[Snapshot], bool]
) -> R | _Stopped:
    """Write one slice, if they may still go on."""
    return write(tx) if guard(tx) else _Stopped()


async def write_in_slices(
    store: Store,
    slices: Iterable[Slice[R]],
    *,
    guard: Callable[[Snapshot], bool] | None = None,
    on_written: Callable[[R], Awaitable[None]] | None = None,
) -> bool:
    """Write slices one after the other; False when ``guard`` said no before one of them.

    ``guard`` is asked inside the transaction of each. ``on_written`` gets what each slice returned,
    in order, while the next ones are being written. Raises what ``Store.bulk``, ``slices`` and
    ``on_written`` raise. When cancelled, the slice that has begun is finished and no other is
    begun.
    """
    written, results = trio.open_memory_channel[R](_AHEAD)

    # Errors are raised below, out of the nursery, which would wrap them.
    failures: list[Exception] = []
    stopped = False

    async def hand_on() -> None:
        with results:
            try:
                async for result in results:
                    if on_written is not None:
                        await on_written(result)
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    async with trio.open_nursery() as nursery, written:
        nursery.start_soon(hand_on)
        try:
            for each in slices:
                if isinstance(each, Ready):
                    result = each.result
                elif guard is None:
                    result = await store.bulk(each)
                else:
                    outcome = await store.bulk(guarded, each, guard)
                    if isinstance(outcome, _Stopped):
                        stopped = True
                        break
                    result = outcome
                await written.send(result)
        except Exception as error:  # noqa: BLE001
            # What the channel says when ``hand_on`` has failed comes after what failed there.
            failures.append(error)
    if failures:
        raise failures[0]
    return not stopped


async def repeat_in_slices(
    store: Store,
    operation: Callable[[Transaction, *Arguments], int],
    *args: *Arguments,
    until_below: int = 1,
) -> AsyncIterator[int]:
    """Run an operation until it did less than ``until_below``; yield how much it did each time."""
    done = until_below
    while done >= until_below:
        done = await store.bulk(operation, *args)
        yield done
