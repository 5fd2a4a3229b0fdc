"""Where log lines go: standard error, a text file, a file of JSON lines.

The event loop never waits for a pipe or a disk: it formats an event and puts the line into a
bounded queue that one thread empties. If the reader of our standard error stalls, the queue fills
and further lines are counted instead of kept; the count is written once lines flow again. At exit
``close`` waits a moment for the rest and no longer. A line is lost only by that, or by SIGKILL.
"""

import contextlib
import json
import logging
import os
import select
import threading
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self, TypeAlias

import attrs

from globalstore.host import HostRefused, check_file_to_write, host_step, make_directories
from globalstore.telemetry import text
from globalstore.text.printing import MASK, clipped, printable
from globalstore.text.secret_fields import is_secret

# Some ten thousand lines: seconds of a busy server at DEBUG, and little beside its other memory.
QUEUED_CHARS_MAX: Final = 4 << 20

# How long an exit may wait for a reader that has stalled.
CLOSE_SECONDS_MAX: Final = 2.0

# Longest write at once; keeps one wake-up of the thread short.
_CHUNK_LINES_MAX: Final = 256

DEBUG: Final = logging.DEBUG
LEVEL_NAMES: Final = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARN",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "ERROR",
}
_LEVELS: Final = {"DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40}

# Our own loggers all live below this name; others write from WARN upwards.
ROOT: Final = "globalstore"


_Form: TypeAlias = Callable[[logging.LogRecord], str]
_Lines: TypeAlias = dict[_Form, str]


def level_number(name: str) -> int:
    """Return the number of DEBUG, INFO, WARN (or WARNING) or ERROR.

    Raises ValueError for any other name.
    """
    try:
        return _LEVELS[name.upper()]
    except KeyError:
        raise ValueError(f"expected DEBUG, INFO, WARN or ERROR, got {name!r}") from None


def level_name(number: int) -> str:
    """Return the name that a line shows: DEBUG, INFO, WARN, ERROR; V1, V2 … below DEBUG."""
    if number < DEBUG:
        return f"V{DEBUG - number}"
    return LEVEL_NAMES.get(number, "ERROR" if number > logging.ERROR else "INFO")


def as_line(record: logging.LogRecord) -> str:
    """Return the event as one line of text, without the line end."""
    parts = [
        _time(record.created),
        level_name(record.levelno),
        printable(record.name),
        printable(clipped(record.getMessage())),
    ]
    parts.extend(text.pair(key, value) for key, value in _fields(record).items())
    if stack := _traceback(record):
        parts.append("traceback=" + text.quoted(stack))
    return " ".join(parts)


def as_json(record: logging.LogRecord) -> str:
    """Return the event as one JSON object on one line, without the line end."""
    event: dict[str, object] = {
        "time": _time(record.created),
        "level": level_name(record.levelno),
        "logger": record.name,
        "message": clipped(record.getMessage()),
    }
    for key, value in _fields(record).items():
        name = f"field_{key}" if key in event else key
        event[name] = MASK if is_secret(key) else text.plain(value)
    if stack := _traceback(record):
        event["traceback"] = stack
    return json.dumps(event)


def _time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _traceback(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    whole = "".join(traceback.format_exception(record.exc_info[1]))
    if len(whole) <= text.TRACEBACK_CHARS_MAX:
        return whole
    return f"(+{len(whole) - text.TRACEBACK_CHARS_MAX})…{whole[-text.TRACEBACK_CHARS_MAX :]}"


@attrs.define(eq=False)
class _File:
    """A descriptor that lines are written to, and how to open it anew."""

    form: _Form
    descriptor: int
    path: Path | None = None
    failing: bool = False

    @classmethod
    def opened(cls, setting: str, path: str, form: _Form) -> Self:
        place = Path(path).expanduser()
        with host_step(f"observability.logging.{setting}", place, LogFileUnusable):
            make_directories(place.absolute().parent)
            return cls(form, _open(place), place)

    def write(self, data: bytes) -> OSError | None:
        """Write all of ``data``; the error of the first of a row of failures is returned."""
        try:
            while data:
                data = data[self._write_some(data) :]
        except OSError as error:
            first = not self.failing
            self.failing = True
            return error if first else None
        self.failing = False
        return None

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:  # a pipe that someone who shares it made non-blocking
            poll = select.poll()
            poll.register(self.descriptor, select.POLLOUT)
            poll.poll()
            return 0

    def reopen(self) -> None:
        if self.path is None:
            return
        descriptor = _open(self.path)
        with contextlib.suppress(OSError):
            os.close(self.descriptor)
        self.descriptor, self.failing = descriptor, False


def _open(path: Path) -> int:
    # Without waiting: a pipe that nobody reads is refused (ENXIO) and not waited for.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    os.set_blocking(descriptor, True)
    return descriptor


class LogFileUnusable(HostRefused):
    """A log file cannot be opened for appending."""

    word = "log-file"


def check_log_file(setting: str, path: str) -> None:
    """Refuse a log file that could not be opened; nothing is made. Raises LogFileUnusable."""
    place = Path(path).expanduser()
    with host_step(f"observability.logging.{setting}", place, LogFileUnusable):
        check_file_to_write(place)


class Outputs(logging.Handler):
    """The handler behind every logger, and the thread that writes for it."""

    def __init__(self, descriptor: int, file: str, sink_file: str) -> None:
        """Open the files and start the writing thread.

        Text lines go to ``descriptor``, 2 for standard error, and also to ``file``; JSON lines go
        to ``sink_file``; "" means no such file. Missing directories are made. Raises
        LogFileUnusable when one cannot be opened for appending.
        """
        super().__init__()
        self._files = [_File(as_line, descriptor)]
        if file:
            self._files.append(_File.opened("file", file, as_line))
        if sink_file:
            try:
                self._files.append(_File.opened("sink_file", sink_file, as_json))
            except LogFileUnusable:
                self._close_files()
                raise
        self._forms = list(dict.fromkeys(output.form for output in self._files))
        self._changed = threading.Condition(threading.Lock())
        # None marks where the files are to be opened anew.
        self._queue: deque[_Lines | None] = deque()
        self._queued_chars = 0
        self._dropped = 0
        self._written = True
        self._closing = False
        # A daemon: a reader that has stalled for good must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Outputs [queued: {len(self._queue)}, dropped: {self._dropped}]>"

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the event for every output; counts it as dropped when the queue is full."""
        try:
            lines = {form: form(record) for form in self._forms}
        except Exception as error:  # noqa: BLE001 (a bad record must not end who wrote it)
            notice = _notice("event cannot be written", event=record.name, error=repr(error))
            lines = {form: form(notice) for form in self._forms}
        chars = sum(map(len, lines.values()))
        with self._changed:
            if self._queued_chars + chars > QUEUED_CHARS_MAX or self._closing:
                self._dropped += 1
                return
            self._queued_chars += chars
            self._queue.append(lines)
            self._changed.notify_all()

    def reopen(self) -> None:
        """Open the files anew, after the lines queued so far: for rotation by rename."""
        with self._changed:
            if not self._queue or self._queue[-1] is not None:
                self._queue.append(None)
            self._changed.notify_all()

    def wait_written(self, seconds: float = CLOSE_SECONDS_MAX) -> bool:
        """Block until every queued line is written, at most ``seconds``; False: some are not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and self._written, seconds)

    def close(self) -> None:
        """Write what is queued, waiting ``CLOSE_SECONDS_MAX`` at most, and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS_MAX)
        super().close()

    def _run(self) -> None:
        while self._take():
            pass
        self._close_files()

    def _close_files(self) -> None:
        for output in self._files:
            if output.path is not None:
                # What the disk did not take was told when it was written.
                with contextlib.suppress(OSError):
                    os.close(output.descriptor)

    def _take(self) -> bool:
        """Write one batch; False when closing and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue and not self._dropped:
                return False
            batch: list[_Lines] = []
            reopening = False
            while self._queue and len(batch) < _CHUNK_LINES_MAX and not reopening:
                entry = self._queue.popleft()
                if entry is None:
                    reopening = True
                else:
                    batch.append(entry)
                    self._queued_chars -= sum(map(len, entry.values()))
            dropped, self._dropped = self._dropped, 0
            self._written = False
        failures = self._write(batch)
        if reopening:
            failures.extend(self._reopen_all())
        if dropped:
            failures.append(_notice("log lines were dropped", count=dropped))
        if failures:
            self._files[0].write("".join(f"{as_line(f)}\n" for f in failures).encode())
        with self._changed:
            self._written = True
            self._changed.notify_all()
        return True

    def _write(self, batch: list[_Lines]) -> list[logging.LogRecord]:
        failures = []
        for output in self._files:
            data = "".join(f"{lines[output.form]}\n" for lines in batch)
            error = output.write(data.encode("utf-8", "backslashreplace"))
            if error is not None and output.path is not None:
                failures.append(
                    _notice("log file cannot be written", path=output.path, error=error.strerror)
                )
        return failures

    def _reopen_all(self) -> list[logging.LogRecord]:
        failures = []
        for output in self._files:
            try:
                output.reopen()
            except OSError as error:
                failures.append(
                    _notice(
                        "log file cannot be reopened, the old one stays in use",
                        path=output.path,
                        error=error.strerror,
                    )
                )
        return failures


def _notice(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord(f"{ROOT}.telemetry", logging.ERROR, "", 0, message, (), None)
    record.fields = fields
    return record


class LogWriter:
    """What ``configure`` returns: the means to change and end the logging of the process."""

    def __init__(self, outputs: Outputs, level: str, vlog_level: int) -> None:
        self._outputs = outputs
        self.set_level(level, vlog_level)

    def __repr__(self) -> str:
        return f"<LogWriter [{level_name(logging.getLogger(ROOT).level)}, {self._outputs!r}]>"

    def set_level(self, level: str, vlog_level: int = 0) -> None:
        """Write events from this level upwards from now on: DEBUG, INFO, WARN or ERROR.

        With DEBUG, ``vlog_level`` is the number of steps of further detail; negative means none.
        Raises ValueError for an unknown level.
        """
        number = level_number(level)
        if number == DEBUG:
            number = max(1, DEBUG - max(0, vlog_level))
        logging.getLogger(ROOT).setLevel(number)

    def reopen(self) -> None:
        """Open the log files anew (SIGHUP); a failure is logged and keeps the old file."""
        self._outputs.reopen()

    def wait_written(self, seconds: float = CLOSE_SECONDS_MAX) -> bool:
        """Block until all lines so far are written, at most ``seconds``; False if some are not."""
        return self._outputs.wait_written(seconds)

    def close(self) -> None:
        """Detach from the loggers, write what is queued, close the files. Waits two seconds."""
        logging.getLogger().removeHandler(self._outputs)
        self._outputs.close()


def configure(
    level: str = "INFO",
    *,
    file: str = "",
    sink_file: str = "",
    vlog_level: int = 0,
    descriptor: int = 2,
) -> LogWriter:
    """Send the events of every logger of the process to standard error and to files.

    ``level`` (DEBUG, INFO, WARN or ERROR) is for our own loggers; libraries write from WARN
    upwards. With DEBUG, ``vlog_level`` is the number of steps of further detail. Text lines go to
    ``descriptor``, 2 for standard error, and also to ``file``; ``sink_file`` gets one JSON object
    per event; "" means no such file.

    Raises LogFileUnusable when a file cannot be opened for appending, ValueError for an unknown
    level; nothing is changed then.
    """
    level_number(level)
    outputs = Outputs(descriptor, file, sink_file)
    root = logging.getLogger()
    root.addHandler(outputs)
    root.setLevel(logging.WARNING)
    return LogWriter(outputs, level, vlog_level)
