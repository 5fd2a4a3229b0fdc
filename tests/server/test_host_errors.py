"""What the host refuses is no bug: each step of starting, serving and stopping names it.

The steps are walked with the errors that each can meet, in real processes, by a library that lets
calls of the operating system fail (``host_fails.c``).
"""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from server_process import Client, Process, started
from servers import worker_request

from globalstore.server.exit_codes import CODES, HELP

SOURCE = Path(__file__).with_name("host_fails.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("host") / "host_fails.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return library


class Host:
    """A host whose calls can be made to fail, and a configuration that touches all of it."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._rule = folder / "rule"
        self.environment = {"LD_PRELOAD": str(library), "HOST_FAILS": str(self._rule)}
        self.database = folder / "data" / "store.db"
        tokens = folder / "tokens.txt"
        tokens.write_text(f"full {'a' * 64}\n")
        self.config = folder / "config.json"
        logging = {"file": str(folder / "logs" / "text.log"), "sink_file": str(folder / "json.log")}
        self.sections = {
            "server": {"listen": {"port": 0}, "metrics_port": 0},
            "database": {"db_file": str(self.database)},
            "observability": {"logging": logging},
        }
        self.write_config(auth={"token_file": str(tokens)})

    def write_config(self, **server: object) -> None:
        server_section = self.sections["server"] | server
        self.config.write_text(json.dumps(self.sections | {"server": server_section}))

    def fail(self, call: str, number: int, part: str) -> None:
        self._rule.write_text(f"{call}:{number}:{part}\n")

    def mend(self) -> None:
        self._rule.unlink()

    def refusal(self) -> tuple[int, str]:
        """Start a server that must not start; return its exit code and its last line."""
        process = Process(self.config, self.environment)
        code = process.wait()
        assert not any("Traceback" in line for line in process.lines), process.lines
        return code, process.lines[-1]


@pytest.fixture
def host(tmp_path: Path, library: Path) -> Host:
    return Host(tmp_path, library)


FILE_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
)

# Step, word, and what its line names.
STEPS = (
    ("mkdir", "data", "db-filesystem", "database.db_file"),
    ("open", "store.db.lock", "db-filesystem", "database.db_file"),
    ("flock", "store.db.lock", "db-filesystem", "database.db_file"),
    ("flock", "data/store.db", "db-filesystem", "database.db_file"),
    ("open", ".partial", "db-filesystem", "database.db_file"),
    ("write", ".partial", "db-filesystem", "database.db_file"),
    ("sync", "store.db", "db-filesystem", "database.db_file"),
    ("rename", ".partial", "db-filesystem", "database.db_file"),
    ("open", "store.db-wal", "db-filesystem", "database.db_file"),
    ("open", "store.db-shm", "db-filesystem", "database.db_file"),
    ("truncate", "store.db-shm", "db-filesystem", "database.db_file"),
    ("write", "store.db-wal", "migration", "store.db"),
    ("mkdir", "logs", "log-file", "observability.logging.file"),
    ("open", "text.log", "log-file", "observability.logging.file"),
    ("open", "json.log", "log-file", "observability.logging.sink_file"),
    ("open", "tokens.txt", "tls", "server.auth.token_file"),
)
ADDRESS_ERRORS = (
    *(errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAFNOSUPPORT),
    *(errno.EACCES, errno.EMFILE),
)
WALK = [
    (call, FILE_ERRORS[(2 * number + turn) % len(FILE_ERRORS)], part, word, named)
    for number, (call, part, word, named) in enumerate(STEPS)
    for turn in (0, 5)
] + [
    (call, number, "socket", "port-busy" if number == errno.EADDRINUSE else "address", "server.")
    for turn, number in enumerate(ADDRESS_ERRORS)
    for call in [("socket", "bind", "listen")[turn % 3]]
]


@pytest.mark.parametrize(
    ("call", "number", "part", "word", "named"),
    WALK,
    ids=[f"{call}-{part}-{errno.errorcode[number]}" for call, number, part, *_ in WALK],
)
def test_each_step_of_the_start_names_what_the_host_refused(
    host: Host, call: str, number: int, part: str, word: str, named: str
) -> None:
    host.fail(call, number, part)
    code, line = host.refusal()
    assert line.startswith(f"{word}: "), line
    assert code == CODES[word]
    assert named in line
    assert "; " in line, "no cure"


def test_what_was_refused_starts_once_the_host_is_well(host: Host) -> None:
    host.fail("rename", errno.EDQUOT, ".partial")
    assert host.refusal()[0] == 3
    host.mend()
    with started(host.config, host.environment) as process:
        assert process.stop() == 0


def test_a_configuration_that_cannot_be_read_at_this_moment_is_worth_another_try(
    host: Host,
) -> None:
    host.fail("open", errno.EMFILE, "config.json")
    code, line = host.refusal()
    assert (code, line.partition(":")[0]) == (4, "host")
    assert "Too many open files" in line
    host.fail("open", errno.EACCES, "config.json")
    code, line = host.refusal()
    assert (code, line.partition(":")[0]) == (2, "config")


def test_a_disk_that_fails_at_a_commit_ends_the_process_in_one_line(host: Host) -> None:
    host.write_config()
    with (
        started(host.config, host.environment) as process,
        Client(process.port) as client,
    ):
        host.fail("sync", errno.EIO, "store.db-wal")
        with pytest.raises(grpc.RpcError) as refused:
            client.runtime("RegisterWorker", worker_request())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait() == 1
    assert process.lines[-1].startswith("internal: COMMIT failed")
    assert not any("Traceback" in line for line in process.lines)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_quota_that_is_used_up_refuses_writes_until_there_is_space(
    host: Host, number: int
) -> None:
    host.write_config()
    with (
        started(host.config, host.environment) as process,
        Client(process.port) as client,
    ):
        host.fail("write", number, "data/")
        with pytest.raises(grpc.RpcError) as refused:
            client.runtime("RegisterWorker", worker_request())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        host.mend()
        # Nobody writes meanwhile.
        process.wait_for("disk has space again")
        client.runtime("RegisterWorker", worker_request())
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [("write", errno.ENOSPC, 0), ("write", errno.EDQUOT, 0), ("sync", errno.EIO, 1)],
)
def test_a_disk_that_fails_at_the_stop_loses_nothing(
    host: Host, call: str, number: int, code: int
) -> None:
    host.write_config()
    with (
        started(host.config, host.environment) as process,
        Client(process.port) as client,
    ):
        worker = client.runtime("RegisterWorker", worker_request())
        host.fail(call, number, "data/")
        assert process.stop() == code
    assert not any("Traceback" in line for line in process.lines)
    host.mend()
    with (
        started(host.config, host.environment) as process,
        Client(process.port) as client,
    ):
        again = client.runtime("RegisterWorker", worker_request())
        assert again.worker_id == worker.worker_id
        assert process.stop() == 0


def test_a_limit_of_open_files_that_is_too_low_is_told(host: Host) -> None:
    command = [sys.executable, "-m", "globalstore", f"--config={host.config}"]
    process = subprocess.run(
        ["sh", "-c", 'ulimit -n 12; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    last = process.stderr.rstrip().rpartition("\n")[2]
    assert "Traceback" not in process.stderr
    assert CODES[last.partition(":")[0]] == process.returncode != 1
    assert "open files" in last


def test_every_word_is_explained_with_its_code() -> None:
    explained: dict[str, int] = {}
    code = 0
    for line in HELP.splitlines()[1:]:
        if line[2].isdigit():
            code = int(line[2])
        word = line[5:18].strip()
        if word:
            explained[word] = code
    assert explained == dict(CODES)


def test_the_readme_explains_the_exit_codes_as_help_does() -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    assert HELP in readme.read_text()


def test_a_start_that_is_refused_leaves_no_empty_database(host: Host) -> None:
    host.fail("open", errno.EACCES, "tokens.txt")
    assert host.refusal()[0] == 4
    assert not host.database.exists()
