"""Events: a level, a message that never varies, and fields that do.

    log = get_logger("globalstore.workers")
    log.info("worker registered", worker_id=worker_id, generation=3)

Within ``call_context`` every event carries the fields of the call as well. Nothing here waits:
see ``globalstore.telemetry.outputs`` for how lines get out.
"""

import contextvars
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import attrs
import trio

# How often one event with one key is written.
LIMITED_SECONDS: Final = 60.0

# How many events with one message, whatever their keys, are written in that time: enough to see
# what it is about. A client that invents ids must not decide how long our log is.
LIMITED_CROWD: Final = 20

# Keys remembered by a limiter: more than there are workers, bounded whatever clients invent.
LIMITED_KEYS_MAX: Final = 10_000

_EMPTY: Final[dict[str, object]] = {}
_call_fields: contextvars.ContextVar[dict[str, object]] = contextvars.ContextVar(
    "call_fields", default=_EMPTY
)


class call_context:  # noqa: N801 (used like a function, as contextlib's are)
    """A context in which every event carries these fields, such as method, worker_id, request_id.

    The fields of an inner one are added to those of the outer one. It costs one small dictionary,
    whether anything is logged or not.
    """

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> Self:
        outer = _call_fields.get()
        self._token = _call_fields.set(outer | self._fields if outer else self._fields)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _call_fields.reset(self._token)


def add_call_fields(**fields: object) -> None:
    """Let every later event of the current call carry these fields too.

    They last until the innermost ``call_context`` ends; outside of one, as long as the task.
    """
    _call_fields.set(_call_fields.get() | fields)


def call_fields() -> dict[str, object]:
    """Return a copy of the fields that the current call adds to its events."""
    return dict(_call_fields.get())


def _monotonic() -> float:
    try:
        return trio.current_time()
    except RuntimeError:  # not inside trio: start-up, or another thread
        return time.monotonic()


@attrs.define
class _Crowd:
    """The events with one message: since when they are counted, how many passed and did not."""

    since: float
    passed: int = 0
    held: int = 0


class RateLimit:
    """Lets an event with a key through once per period, of each message a few, and counts the rest.

    Beyond ``keys_max`` keys the one that passed longest ago is forgotten. ``clock`` is monotonic
    time in seconds.
    """

    def __init__(
        self,
        seconds: float = LIMITED_SECONDS,
        keys_max: int = LIMITED_KEYS_MAX,
        clock: Callable[[], float] = _monotonic,
    ) -> None:
        self._seconds = seconds
        self._keys_max = keys_max
        self._clock = clock
        self._passed: OrderedDict[str, tuple[float, int]] = OrderedDict()
        # Messages are written in the program, so there are not many.
        self._crowds: dict[str, _Crowd] = {}

    def __len__(self) -> int:
        return len(self._passed)

    def suppressed(self, key: str, message: str = "") -> int | None:
        """Return how many were held back since the last that passed; None: hold this back now.

        They are those with this key, and those of the message that were too many.
        """
        now = self._clock()
        found = self._passed.get(key)
        if found is not None and 0 <= now - found[0] < self._seconds:
            self._passed[key] = (found[0], found[1] + 1)
            return None
        crowd = self._crowds.setdefault(message, _Crowd(now))
        if not 0 <= now - crowd.since < self._seconds:
            crowd.since, crowd.passed = now, 0
        if crowd.passed >= LIMITED_CROWD:
            crowd.held += 1
            return None
        crowd.passed += 1
        held, crowd.held = crowd.held, 0
        self._passed[key] = (now, 0)
        self._passed.move_to_end(key)
        if len(self._passed) > self._keys_max:
            self._passed.popitem(last=False)
        return held + (0 if found is None else found[1])


class Logger:
    """Writes events under a name, with the fields it was bound to."""

    __slots__ = ("_fields", "_limit", "_logger")

    def __init__(self, logger: logging.Logger, fields: dict[str, object], limit: RateLimit) -> None:
        self._logger = logger
        self._fields = fields
        self._limit = limit

    def __repr__(self) -> str:
        return f"<Logger {self._logger.name} {self._fields}>"

    def bind(self, **fields: object) -> "Logger":
        """Return a logger that adds these fields to each of its events."""
        return Logger(self._logger, self._fields | fields, self._limit)

    def is_enabled_for(self, level: int) -> bool:
        """Tell whether events of this level (``logging.DEBUG`` …) are written at all."""
        return self._logger.isEnabledFor(level)

    def debug(self, message: str, /, **fields: object) -> None:
        """Write a call or another detail."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """Write a change of state."""
        if self._logger.isEnabledFor(logging.INFO):
            self._write(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """Write something that works and yet needs a look."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._write(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        """Write something that does not work."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, message, fields)

    def exception(
        self, message: str, /, error: BaseException | None = None, **fields: object
    ) -> None:
        """Write an error with the traceback of ``error``, by default the exception being handled.

        ``message`` says what could not be done.
        """
        if self._logger.isEnabledFor(logging.ERROR):
            self._write(logging.ERROR, message, fields, error or sys.exception())

    def vlog(self, step: int, message: str, /, **fields: object) -> None:
        """Write detail below DEBUG; ``step`` counts from 1, a greater one is needed more rarely."""
        level = max(1, logging.DEBUG - max(1, step))
        if self._logger.isEnabledFor(level):
            self._write(level, message, fields)

    def limited(
        self, key: str, message: str, /, *, level: int = logging.WARNING, **fields: object
    ) -> None:
        """Write an event at most once per key and minute, and a message at most 20 times.

        ``key`` is what counts as the same event, such as "heartbeat of w-1", for each name of a
        logger. The field ``suppressed`` is added when some were held back before.
        """
        if not self._logger.isEnabledFor(level):
            return
        count = self._limit.suppressed(key, message)
        if count is not None:
            self._write(level, message, fields | {"suppressed": count} if count else fields)

    def _write(
        self,
        level: int,
        message: str,
        fields: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        context = fields | {k: v for k, v in self._fields.items() if k not in fields}
        context |= {k: v for k, v in _call_fields.get().items() if k not in context}
        trace = (type(error), error, error.__traceback__) if error is not None else None
        record = logging.LogRecord(self._logger.name, level, "", 0, message, (), trace)
        record.fields = context
        self._logger.handle(record)


_limits: dict[str, RateLimit] = {}


def get_logger(name: str) -> Logger:
    """Return the logger of a noun; its name is dotted, such as ``globalstore.workers``."""
    return Logger(logging.getLogger(name), {}, _limits.setdefault(name, RateLimit()))
