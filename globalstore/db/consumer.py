"""What empties a queue: a thread, or a task of the event loop."""

import threading
from collections.abc import Callable

import trio

from globalstore.db.options import Runner
from globalstore.db.queues import TicketQueue
from globalstore.db.ticket import Ticket

RunBatch = Callable[[list[Ticket]], None]


async def consume(queue: TicketQueue, run: RunBatch, runner: Runner) -> None:
    """Run batches from a queue until it is closed and empty.

    Raises what ``run`` raises. When cancelled, a thread is left to itself: it ends with its batch,
    or with the process if the disk never answers.
    """
    if runner is Runner.INLINE:
        await _consume_inline(queue, run)
        return
    await trio.to_thread.run_sync(
        _consume_blocking,
        queue,
        run,
        abandon_on_cancel=True,
        # A slot of its own: it lives as long as the store and must not take one from others.
        limiter=trio.CapacityLimiter(1),
    )


def _consume_blocking(queue: TicketQueue, run: RunBatch) -> None:
    wakeup = threading.Lock()
    wakeup.acquire()
    while True:
        batch = queue.take(wakeup.release)
        if batch:
            run(batch)
        elif queue.closed:
            return
        else:
            wakeup.acquire()


async def _consume_inline(queue: TicketQueue, run: RunBatch) -> None:
    lot = trio.lowlevel.ParkingLot()
    while True:
        batch = queue.take(lot.unpark)
        if batch:
            run(batch)
            await trio.lowlevel.checkpoint()
        elif queue.closed:
            return
        else:
            await lot.park()
