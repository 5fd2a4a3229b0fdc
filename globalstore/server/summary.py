"""What the process is made of at a moment, for the log: its tasks, its memory, its components."""

import gc
import logging
import os
import resource
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trio

from globalstore.api.turns import in_turns
from globalstore.server.components import Components
from globalstore.server.sockets import Transport
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# Names of tasks and types of objects that are told, the most frequent first.
_NAMES_MAX: Final = 20

# Tasks that are looked at before others get a turn: less than a millisecond of the event loop.
_TASKS_PER_TURN: Final = 500


async def log_tasks() -> None:
    """Write how many tasks there are, by name."""
    tasks: Counter[str] = Counter()
    async for turn in in_turns(_tasks(), _TASKS_PER_TURN):
        tasks.update(task.name for task in turn)
    _log.info("tasks", total=tasks.total(), names=dict(tasks.most_common(_NAMES_MAX)))


async def log_memory() -> None:
    """Write what the process holds; at DEBUG, what types the objects of its heap have."""
    _log.info("memory", **await trio.to_thread.run_sync(_memory))
    if _log.is_enabled_for(logging.DEBUG):
        _log.debug("heap", types=await trio.to_thread.run_sync(_types))


def log_components(components: Components, transport: Transport) -> None:
    """Write what the components of a server that serves hold."""
    database = components.store.statistics()
    _log.info(
        "components",
        connections=transport.statistics().connections,
        handlers=components.handler_slots.busy,
        waiting_for_a_handler=components.handler_slots.waiting,
        waiting_for_a_source=len(components.queues),
        waiting_for_a_drain=len(components.drains),
        waiting_for_a_realization=len(components.realization_waiters),
        live_workers=len(components.workers.live()),
        waiting_writes=database.waiting_control + database.waiting_normal + database.waiting_bulk,
        wal_bytes=database.wal_bytes,
    )


def _tasks() -> Iterator[trio.lowlevel.Task]:
    """Yield all tasks; those that come or go meanwhile may be missed."""
    root = trio.lowlevel.current_root_task()
    left = [] if root is None else [root]
    while left:
        task = left.pop()
        yield task
        for nursery in task.child_nurseries:
            left.extend(nursery.child_tasks)


def _memory() -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "resident_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "allocated_blocks": sys.getallocatedblocks(),
        "threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),
    }


def _types() -> dict[str, int]:
    """Return how many objects of the most frequent types the cycle collector knows."""
    found = Counter(
        f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
    )
    return dict(found.most_common(_NAMES_MAX))
