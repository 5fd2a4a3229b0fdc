"""The signals of the operating system: none kills without a line, none is lost."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import PATIENCE_S, Client, Process, running, write_config

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.server import process_signals
from globalstore.server.process_signals import STOPPING, TAKEN, name_of

# Their default does not end a process, or they tell of a fault of the program itself.
HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
NOBODY_CAN = {"SIGKILL", "SIGSTOP"}
ERRORS_OF_CALLS = {"SIGPIPE", "SIGXFSZ"}

IGNORED = sorted(
    TAKEN
    - STOPPING
    - {process_signals.RELOADING, process_signals.REOPENING, process_signals.SUMMARISING}
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    logging = {"level": "DEBUG"}
    with running(tmp_path_factory.mktemp("signals"), observability={"logging": logging}) as started:
        yield started


def test_every_signal_is_taken_but_those_with_a_reason_not_to_be() -> None:
    left = {name_of(number) for number in signal.valid_signals() if number not in TAKEN}
    assert left == HARMLESS | FAULTS | NOBODY_CAN | ERRORS_OF_CALLS


def test_signals_that_mean_nothing_are_told_and_change_nothing(process: Process) -> None:
    for number in IGNORED:
        process.signal(number)
    process.wait_for(f"signal ignored signal=.*{name_of(IGNORED[0])}")
    with Client(process.port) as client:
        assert (
            client.admin("GetServerInfo", wire.GetServerInfoRequest()).listen_port == process.port
        )


@pytest.mark.parametrize("number", sorted(STOPPING), ids=name_of)
def test_a_signal_that_stops_ends_the_server_cleanly(tmp_path: Path, number: int) -> None:
    with running(tmp_path) as process:
        process.signal(number)
        assert process.wait() == 0
        assert any(f"stopping reason={name_of(number)}" in line for line in process.lines)


def test_usr1_opens_the_log_files_anew(tmp_path: Path) -> None:
    log = tmp_path / "store.log"
    with running(tmp_path, observability={"logging": {"file": str(log)}}) as process:
        log.rename(tmp_path / "store.log.1")
        process.signal(signal.SIGUSR1)
        process.wait_for("log files opened anew")
        assert process.stop() == 0
    assert " stopped " in log.read_text()
    assert " stopped " not in (tmp_path / "store.log.1").read_text()


def test_usr2_tells_tasks_memory_and_components(process: Process) -> None:
    with Client(process.port) as client:
        client.admin("GetServerInfo", wire.GetServerInfoRequest())
        process.signal(signal.SIGUSR2)
        tasks = process.wait_for(r" tasks total=(\d+) names=(.*)")
        assert int(tasks[1]) > 5
        assert "accept" in tasks[2] or "serve" in tasks[2]
        memory = process.wait_for(r" memory resident_bytes=(\d+) .*open_files=(\d+)")
        assert int(memory[1]) > 1 << 20
        assert int(memory[2]) > 3
        process.wait_for(r" components connections=\d+ .*wal_bytes=\d+")
        process.wait_for(r" heap types=.*dict")


# It wakes up now and then: a signal right before a wait would otherwise be handled after it only.
EARLY = """
import time
from globalstore.server import process_signals
process_signals.take_early()
print("taken", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("number", sorted(TAKEN), ids=name_of)
def test_before_the_server_takes_them_an_end_is_an_end_and_the_rest_is_nothing(
    early: subprocess.Popen[str], number: int
) -> None:
    if number not in STOPPING:
        early.send_signal(number)
        number = signal.SIGTERM
    early.send_signal(number)
    _, error = early.communicate(timeout=PATIENCE_S)
    assert early.returncode == 0
    assert error == f"stopped by {name_of(number)} before it served\n"


@pytest.fixture
def early() -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", EARLY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(process_signals.__file__).parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "taken\n"
    yield child
    child.kill()
    child.wait()


def test_signals_are_taken_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from globalstore.server import process_signals\n"
        "process_signals.take_early = lambda: sys.exit(' '.join(sys.modules))\n"
        "from globalstore.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"--config={tmp_path / 'none.yaml'}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    loaded = set(done.stderr.split())
    assert "globalstore.cli.serve" in loaded
    heavy = {"attr", "cattrs", "trio", "sqlite3", "ssl", "google.protobuf", "yaml", "purerpc"}
    assert loaded & heavy == set()


def test_to_check_a_configuration_is_ended_by_a_signal_as_any_command_is(tmp_path: Path) -> None:
    """Exit code 0 says that a file is valid, so an end by a signal must not have it."""
    fifo = tmp_path / "config.yaml"
    os.mkfifo(fifo)
    child = subprocess.Popen(
        [sys.executable, "-m", "globalstore", "--check-config", f"--config={fifo}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with fifo.open("wb"):  # from here on the command is reading
        child.terminate()
        assert child.wait(PATIENCE_S) == -signal.SIGTERM


def test_a_summary_that_the_host_does_not_allow_ends_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        files = len(os.listdir(f"/proc/{process.child.pid}/fd"))
        resource.prlimit(process.child.pid, resource.RLIMIT_NOFILE, (files, files))
        process.signal(signal.SIGUSR2)
        process.wait_for("summary not written to its end")
        assert process.stop() == 0


def test_a_closed_standard_error_is_not_taken_by_what_is_opened_next(tmp_path: Path) -> None:
    log = tmp_path / "store.log"
    config = write_config(
        tmp_path,
        database={"db_file": str(tmp_path / "store.db")},
        observability={"logging": {"file": str(log)}},
    )
    command = f'exec "{sys.executable}" -m globalstore --config="{config}" <&- 2>&-'
    child = subprocess.Popen(["/bin/bash", "-c", command])
    while not (log.exists() and " ready" in log.read_text()):
        assert child.poll() is None
    files = [os.readlink(f"/proc/{child.pid}/fd/{number}") for number in (0, 2)]
    child.terminate()
    assert child.wait(PATIENCE_S) == 0
    assert files == [os.devnull] * 2
    assert (tmp_path / "store.db").read_bytes().startswith(b"SQLite format 3")


LATE = """
import os, signal, sys
from globalstore.server import process_signals
process_signals.take_early()
process_signals.leave_to_server()
os.kill(os.getpid(), signal.SIGTERM)
sys.exit(4)
"""


def test_once_the_server_has_taken_them_no_signal_changes_how_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (4, "")
