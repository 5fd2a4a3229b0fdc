"""Loggers and outputs: levels, context, limits, rotation, and readers that stall."""

import fcntl
import json
import logging
import os
import stat
import threading

import pytest
import trio

from globalstore import telemetry
from globalstore.telemetry import outputs
from globalstore.telemetry.logging import LIMITED_CROWD
from globalstore.telemetry.outputs import LogFileUnusable


class Capture:
    """A configured logging whose standard error is a file."""

    def __init__(self, directory):
        self.directory = directory
        self.stderr = directory / "stderr"
        self.descriptor = os.open(self.stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.writers = []

    def start(self, level="INFO", **options):
        self.writers.append(telemetry.configure(level, descriptor=self.descriptor, **options))
        return self.writers[-1]

    def lines(self, path=None):
        assert self.writers[-1].wait_written(10)
        return [line.split(" ", 1)[1] for line in (path or self.stderr).read_text().splitlines()]

    def stop(self):
        for writer in self.writers:
            writer.close()
        os.close(self.descriptor)
        logging.getLogger("globalstore").setLevel(logging.NOTSET)


@pytest.fixture
def capture(tmp_path):
    made = Capture(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def log(request):
    return telemetry.get_logger(f"globalstore.{request.node.name}")


def test_events_below_the_level_are_not_written(capture):
    writer = capture.start("WARN")
    log = telemetry.get_logger("globalstore.level")
    for level in ("ERROR", "warning", "INFO", "DEBUG"):
        writer.set_level(level)
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e")
    assert " ".join(line.split()[-1] for line in capture.lines()) == "e w e i w e d i w e"


@pytest.mark.parametrize(("level", "steps", "seen"), [("DEBUG", 2, "12"), ("INFO", 2, "")])
def test_detail_below_debug_is_written_up_to_the_step_asked_for(capture, level, steps, seen):
    capture.start(level, vlog_level=steps)
    log = telemetry.get_logger("globalstore.detail")
    for step in (1, 2, 3):
        log.vlog(step, str(step))
    assert "".join(line[-1] for line in capture.lines()) == seen


def test_an_unknown_level_is_refused_and_changes_nothing(capture):
    writer = capture.start("INFO")
    with pytest.raises(ValueError, match="expected DEBUG, INFO, WARN or ERROR, got 'LOUD'"):
        writer.set_level("LOUD")
    assert telemetry.get_logger("globalstore.x").is_enabled_for(logging.INFO)


def test_libraries_are_heard_from_warn_upwards(capture):
    capture.start("DEBUG")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble %s", "here\nthere")
    assert capture.lines() == ["WARN some.library trouble here\\nthere"]


def test_bound_fields_are_added_and_given_ones_win(capture):
    capture.start()
    log = telemetry.get_logger("globalstore.bound").bind(worker_id="w", kind="bound")
    log.info("event", kind="given")
    log.bind(daemon_id="d").info("event")
    assert capture.lines() == [
        "INFO globalstore.bound event kind=given worker_id=w",
        "INFO globalstore.bound event worker_id=w kind=bound daemon_id=d",
    ]


async def test_every_event_of_a_call_carries_its_fields_and_no_other_calls(capture, nursery):
    capture.start()
    log = telemetry.get_logger("globalstore.calls")
    turn = [trio.Event(), trio.Event()]

    async def call(method, worker_id, mine, other):
        with telemetry.call_context(method=method):
            telemetry.add_call_fields(worker_id=worker_id)
            mine.set()
            await other.wait()
            with telemetry.call_context(request_id=f"r-{worker_id}"):
                log.info("inside")
            log.info("after")
        log.info("outside")

    async with trio.open_nursery() as calls:
        calls.start_soon(call, "/A", "1", *turn)
        calls.start_soon(call, "/B", "2", *reversed(turn))
    assert sorted(capture.lines()) == [
        "INFO globalstore.calls after method=/A worker_id=1",
        "INFO globalstore.calls after method=/B worker_id=2",
        "INFO globalstore.calls inside method=/A worker_id=1 request_id=r-1",
        "INFO globalstore.calls inside method=/B worker_id=2 request_id=r-2",
        "INFO globalstore.calls outside",
        "INFO globalstore.calls outside",
    ]


async def test_a_worker_thread_keeps_the_fields_of_its_call():
    with telemetry.call_context(method="/A"):
        assert await trio.to_thread.run_sync(telemetry.call_fields) == {"method": "/A"}
    assert telemetry.call_fields() == {}


async def test_a_repeated_event_is_written_once_a_minute_with_a_count(capture, log, mock_clock):
    capture.start()
    for _ in range(5):
        log.limited("w-1", "unknown worker")
    log.limited("w-2", "unknown worker")
    mock_clock.jump(59.9)
    log.limited("w-1", "unknown worker")
    mock_clock.jump(0.2)
    log.limited("w-1", "unknown worker", level=logging.ERROR)
    mock_clock.jump(61)
    log.limited("w-1", "unknown worker")
    assert [line.split(" ", 2)[2] for line in capture.lines()] == [
        "unknown worker",
        "unknown worker",
        "unknown worker suppressed=5",
        "unknown worker",
    ]


def test_a_limiter_forgets_the_oldest_key_rather_than_grow():
    now = [0.0]
    limit = telemetry.RateLimit(seconds=60, keys_max=3, clock=lambda: now[0])
    for key in ("a", "b", "c", "d"):
        now[0] += 1
        assert limit.suppressed(key) == 0
    assert len(limit) == 3
    assert limit.suppressed("d") is None
    assert limit.suppressed("a") == 0


def test_a_message_passes_so_often_whatever_keys_clients_invent():
    now = [0.0]
    limit = telemetry.RateLimit(seconds=60, clock=lambda: now[0])
    passed = [limit.suppressed(f"w-{number}", "unknown worker") for number in range(5000)]
    assert passed == [0] * LIMITED_CROWD + [None] * (5000 - LIMITED_CROWD)
    assert limit.suppressed("w-1", "another message") is None, "the same key"
    assert limit.suppressed("other", "another message") == 0
    now[0] = 60.0
    assert limit.suppressed("w-4999", "unknown worker") == 5000 - LIMITED_CROWD
    assert limit.suppressed("w-4998", "unknown worker") == 0


def test_a_clock_that_starts_anew_lets_the_event_through():
    now = [1000.0]
    limit = telemetry.RateLimit(clock=lambda: now[0])
    assert limit.suppressed("a") == 0
    now[0] = 1.0
    assert limit.suppressed("a") == 0


def test_an_exception_is_written_with_its_traceback(capture):
    capture.start()
    try:
        raise KeyError("lost")
    except KeyError:
        telemetry.get_logger("globalstore.errors").exception("cannot go on", reference="r-1")
    [line] = capture.lines()
    assert line.startswith("ERROR globalstore.errors cannot go on reference=r-1 traceback=")
    assert "KeyError: 'lost'" in line


def test_files_get_the_same_events_and_json_lines(capture, tmp_path):
    capture.start(file=str(tmp_path / "log"), sink_file=str(tmp_path / "sink"))
    with telemetry.call_context(method="/A"):
        telemetry.get_logger("globalstore.files").info("event", n=1, lease_token="hush")
    assert capture.lines() == ["INFO globalstore.files event n=1 lease_token=*** method=/A"]
    assert capture.lines(tmp_path / "log") == capture.lines()
    event = json.loads((tmp_path / "sink").read_text())
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "INFO",
        "logger": "globalstore.files",
        "message": "event",
        "n": 1,
        "lease_token": "***",
        "method": "/A",
    }
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "sink").stat().st_mode & 0o777 == 0o600


def test_after_a_rename_and_reopen_lines_go_to_the_new_file(capture, tmp_path):
    path = tmp_path / "log"
    writer = capture.start(file=str(path), sink_file=str(tmp_path / "sink"))
    log = telemetry.get_logger("globalstore.rotation")
    log.info("before")
    assert writer.wait_written(10)
    path.rename(tmp_path / "log.1")
    log.info("still old")
    writer.reopen()
    log.info("new")
    assert capture.lines(path) == ["INFO globalstore.rotation new"]
    assert capture.lines(tmp_path / "log.1") == [
        "INFO globalstore.rotation before",
        "INFO globalstore.rotation still old",
    ]


def test_a_file_that_cannot_be_reopened_stays_in_use(capture, tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    writer = capture.start(file=str(directory / "log"))
    directory.rename(tmp_path / "moved")
    writer.reopen()
    telemetry.get_logger("globalstore.rotation").info("event")
    assert any("cannot be reopened" in line for line in capture.lines())
    assert capture.lines(tmp_path / "moved" / "log") == ["INFO globalstore.rotation event"]


def test_a_file_that_cannot_be_opened_is_refused_and_changes_nothing(tmp_path):
    before = logging.getLogger().handlers[:]
    (tmp_path / "file").touch()
    with pytest.raises(LogFileUnusable, match=r"logging.sink_file .*Not a directory; .*path"):
        telemetry.configure(sink_file=str(tmp_path / "file" / "log"))
    assert logging.getLogger().handlers == before


def test_a_log_file_that_is_a_pipe_without_a_reader_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(LogFileUnusable, match=r"logging.file .*No such device or address"):
        telemetry.configure(file=str(tmp_path / "log"))


@pytest.mark.parametrize("name", ["file", "sink_file"])
def test_the_directory_of_a_log_file_is_made_and_private(tmp_path, capture, name):
    path = tmp_path / "new" / "deeper" / "log"
    writer = capture.start(**{name: str(path)})
    telemetry.get_logger("globalstore.new").info("event")
    writer.close()
    assert "event" in path.read_text()
    for directory in (path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_full_disk_is_told_once_on_standard_error(capture):
    writer = capture.start(file="/dev/full")
    log = telemetry.get_logger("globalstore.full")
    for number in range(3):
        log.info("event", number=number)
        assert writer.wait_written(10)
    lines = capture.lines()
    assert sum("log file cannot be written" in line for line in lines) == 1
    assert sum("event number" in line for line in lines) == 3


class Pipe:
    """A standard error that nobody reads yet."""

    def __init__(self, *, blocking=True):
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, blocking)
        self.size = fcntl.fcntl(self.writer, 1032)  # F_GETPIPE_SZ

    def read_all_in_background(self):
        self.received = bytearray()

        def read():
            while data := os.read(self.reader, 1 << 16):
                self.received += data

        self.thread = threading.Thread(target=read)
        self.thread.start()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_stalled_reader_stops_nobody_and_costs_only_the_lines_beyond_the_bound(blocking):
    pipe = Pipe(blocking=blocking)
    writer = telemetry.configure("INFO", descriptor=pipe.writer)
    log = telemetry.get_logger("globalstore.stall")
    written = 0
    while "dropped: 0" in repr(writer):
        log.info("event", number=written, filler="x" * 1000)
        written += 1
        assert written < 100_000
    assert written * 1000 > pipe.size + outputs.QUEUED_CHARS_MAX // 2
    assert not writer.wait_written(0.01)
    pipe.read_all_in_background()
    assert writer.wait_written(20)
    log.info("flows again")
    writer.close()
    os.close(pipe.writer)
    pipe.thread.join(10)
    os.close(pipe.reader)
    lines = pipe.received.decode().splitlines()
    assert [line for line in lines if "log lines were dropped count=1" in line]
    assert lines[-1].endswith("flows again")
    assert sum("event number" in line for line in lines) == written - 1


def test_an_exit_waits_for_a_stalled_reader_only_so_long(monkeypatch):
    monkeypatch.setattr(outputs, "CLOSE_SECONDS_MAX", 0.05)
    pipe = Pipe()
    writer = telemetry.configure("INFO", descriptor=pipe.writer)
    log = telemetry.get_logger("globalstore.stall")
    for _ in range(pipe.size // 1000 + 10):
        log.info("event", filler="x" * 1000)
    writer.close()
    assert "queued" in repr(writer)
    pipe.read_all_in_background()
    assert writer.wait_written(10)
    os.close(pipe.writer)
    pipe.thread.join(10)
    os.close(pipe.reader)


def test_a_closed_writer_leaves_nothing_behind(capture):
    before = threading.active_count()
    writer = capture.start()
    telemetry.get_logger("globalstore.close").info("event")
    writer.close()
    assert capture.lines() == ["INFO globalstore.close event"]
    assert threading.active_count() == before
    assert all(not isinstance(h, outputs.Outputs) for h in logging.getLogger().handlers)
