"""What the text of a configuration tells is told before anything is made, and by the check too."""

import os
from pathlib import Path
from typing import Any

import pytest
from server_process import command, refusal, running, write_config


def nested(path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


REFUSED = [
    ("server.listen.host", "[::1]", "without brackets"),
    ("backup.directory", "/backups", "this version makes no scheduled backup"),
    ("observability.otel.enabled", True, "this version exports no traces"),
    ("observability.tracing.chrome_trace_dir", "/traces", "this version writes no trace files"),
    ("high_availability", {"enabled": True}, "remove it"),
    ("worker_policy.progressive_replication", {"enabled": True}, "remove it"),
    ("observability.logging.file", "a\0b", "NUL"),
]


@pytest.mark.parametrize(("path", "value", "said"), REFUSED, ids=[each[0] for each in REFUSED])
def test_the_check_refuses_what_the_start_would_and_neither_makes_anything(
    tmp_path: Path, path: str, value: object, said: str
) -> None:
    database = tmp_path / "data" / "store.db"
    sections = nested(path, value)
    config = write_config(tmp_path, **(sections | {"database": {"db_file": str(database)}}))
    ends = [command(f"--config={config}", *flags) for flags in ((), ("--check-config",))]
    for done in ends:
        assert done.returncode == 2
        assert done.stderr.startswith(f"config: {config}: {path}: ")
        assert said in done.stderr
    assert ends[0].stderr == ends[1].stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.json"]


def test_all_that_is_not_built_is_named_at_once(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, backup={"directory": "/b"}, database={"read_only": True}, meta={}
    )
    done = command(f"--config={config}", "--check-config")
    assert done.returncode == 2
    *lines, last = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["database.read_only", "backup.directory"]
    assert last == f"config: {config}: 2 problems above; correct them and start again"


def test_the_check_warns_of_what_the_start_warns_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBAL_STORE_PORT", "1")
    sections = {
        "worker_policy": {"default_heartbeat_interval": "40s"},
        "backup": {"keep_last": 3},
        "server": {"listen": {"host": "0.0.0.0", "port": 0}, "grpc": {"tls": {"key_file": "k"}}},
    }
    config = write_config(tmp_path, **sections)
    done = command(f"--config={config}", "--check-config")
    assert (done.returncode, done.stdout) == (0, f"{config}: valid\n")
    told = [line.removeprefix("warning: ") for line in done.stderr.splitlines()]
    assert len(told) == 6
    with running(tmp_path, **sections) as process:
        assert process.stop() == 0
    warned = [line for line in process.lines if " WARN " in line]
    for line in told:
        assert any(line in each for each in warned), line
    # The rest is of the host, which the check does not ask.
    assert all("advertise" in line or any(t in line for t in told) for line in warned)


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, database={"db_file": "store.db"})
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    os.chdir(gone)
    gone.rmdir()
    try:
        code, line = refusal(config)
    finally:
        os.chdir(before)
    assert code in {3, 4}
    assert line.partition(":")[0] in {"db-filesystem", "host"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "directory|regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "circle"),
        (lambda path: path.symlink_to("/dev/full"), "not a regular file"),
    ],
    ids=["directory", "pipe", "circle", "device"],
)
def test_what_is_no_file_in_the_place_of_the_database_is_named(
    tmp_path: Path, make: Any, said: str
) -> None:
    path = tmp_path / "store.db"
    make(path)
    code, line = refusal(write_config(tmp_path, database={"db_file": str(path)}))
    assert code == 3
    assert line.startswith("db-filesystem: ")
    assert "database.db_file" in line
    assert any(each in line for each in said.split("|"))


def test_a_path_that_sqlite_cannot_take_is_named(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["x" * 100] * 5, "store.db")
    code, line = refusal(write_config(tmp_path, database={"db_file": str(path)}))
    assert code == 3
    assert "set database.db_file to a shorter path" in line
    assert not (tmp_path / ("x" * 100)).exists()
