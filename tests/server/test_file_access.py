"""What others may do with the files of a server is told at the start, and by the check."""

import os
from pathlib import Path
from typing import Any

import pytest
from rpc.certificates import issue
from server_process import command, refusal, running, write_config

A = "a" * 64


def files(folder: Path) -> dict[str, Any]:
    """Make a configuration that names a file of each kind, all of them private."""
    ca = issue(folder, "ca")
    pair = issue(folder, "server", ca)
    tokens = folder / "tokens"
    tokens.write_text(f"full {A}\n")
    names = {"cert_file": pair.cert_file, "key_file": pair.key_file, "client_ca_file": ca.cert_file}
    for file in (*names.values(), tokens):
        os.chmod(file, 0o600)
    return {"auth": {"token_file": str(tokens)}, "grpc": {"tls": {"enabled": True} | names}}


def told(config: Path) -> list[str]:
    done = command(f"--config={config}", "--check-config")
    assert (done.returncode, done.stdout) == (0, f"{config}: valid\n"), done.stderr
    lines = [line.removeprefix("warning: ") for line in done.stderr.splitlines()]
    return [line for line in lines if "database.db_file" not in line]


def private_config(folder: Path) -> Path:
    config = write_config(folder, server=files(folder))
    config.chmod(0o600)
    return config


def test_of_private_files_nothing_is_said(tmp_path: Path) -> None:
    assert told(private_config(tmp_path)) == []


CASES = [
    ("server.key", 0o644, ["key_file", "mode 0644 lets others read it; chmod it to 0600"]),
    ("server.key", 0o640, ["key_file", "mode 0640 lets others read it"]),
    ("tokens", 0o644, ["token_file", "mode 0644 lets others read it"]),
    ("server.crt", 0o666, ["cert_file", "lets others decide for whom this server passes"]),
    ("ca.crt", 0o622, ["client_ca_file", "lets others decide who gets in"]),
    ("config.json", 0o620, ["config.json", "lets others decide what this server does"]),
]


@pytest.mark.parametrize(("name", "mode", "parts"), CASES)
def test_a_file_that_is_open_to_others_is_named(
    tmp_path: Path, name: str, mode: int, parts: list[str]
) -> None:
    config = private_config(tmp_path)
    (tmp_path / name).chmod(mode)
    (line,) = told(config)
    assert str(tmp_path / name) in line
    assert all(part in line for part in parts), line


def test_a_certificate_and_a_configuration_may_be_read_by_all(tmp_path: Path) -> None:
    config = private_config(tmp_path)
    for name in ("server.crt", "ca.crt", "config.json"):
        (tmp_path / name).chmod(0o644)
    assert told(config) == []


@pytest.mark.parametrize(("mode", "is_told"), [(0o777, True), (0o775, True), (0o1777, False)])
def test_a_directory_in_which_others_may_replace_a_file_is_named(
    tmp_path: Path, mode: int, is_told: bool
) -> None:
    config = private_config(tmp_path)
    tmp_path.chmod(mode)
    lines = told(config)
    tmp_path.chmod(0o700)
    assert len(lines) == (5 if is_told else 0)
    assert all("of its directory lets others replace it" in line for line in lines)


def test_the_start_warns_of_the_same(tmp_path: Path) -> None:
    server = files(tmp_path)
    (tmp_path / "server.key").chmod(0o644)
    with running(tmp_path, server=server) as process:
        line = process.wait_for(r"server\.grpc\.tls\.key_file .*lets others read it").string
        assert " WARN " in line
        assert process.stop() == 0


def spoil(folder: Path, name: str) -> None:
    path = folder / name
    if name == "tokens":
        path.write_text("full nothex\n")
    elif name == "server.key":
        os.replace(issue(folder, "other").key_file, path)
    else:
        path.write_text("junk")


@pytest.mark.parametrize("name", ["tokens", "server.crt", "server.key", "ca.crt"])
@pytest.mark.parametrize("how", ["spoilt", "gone"])
def test_the_check_opens_what_is_named_and_says_what_the_start_says(
    tmp_path: Path, name: str, how: str
) -> None:
    config = private_config(tmp_path)
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        spoil(tmp_path, name)
    code, line = refusal(config)
    done = command(f"--config={config}", "--check-config")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, line)
    assert code == 4
    assert line.startswith("tls: server.")
    assert done.stdout == ""


@pytest.mark.parametrize("kind", ["log", "database"])
@pytest.mark.parametrize("what", ["a part is a file", "a directory", "a circle"])
def test_the_check_refuses_a_place_that_the_start_refuses(
    tmp_path: Path, kind: str, what: str
) -> None:
    path = tmp_path / "place" / "file"
    if what == "a part is a file":
        path.parent.write_text("")
    elif what == "a directory":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.symlink_to(path)
    sections: dict[str, Any] = (
        {"observability": {"logging": {"file": str(path)}}}
        if kind == "log"
        else {"database": {"db_file": str(path)}}
    )
    config = write_config(tmp_path, **sections)
    code, line = refusal(config)
    done = command(f"--config={config}", "--check-config")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, line)


def test_the_check_makes_nothing(tmp_path: Path) -> None:
    new = tmp_path / "new" / "deeper"
    config = write_config(
        tmp_path,
        database={"db_file": str(new / "store.db")},
        observability={"logging": {"file": str(new / "text.log")}},
    )
    assert told(config) == []
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


def test_all_that_is_wrong_is_said_and_last_what_the_start_says(tmp_path: Path) -> None:
    server = files(tmp_path)
    spoil(tmp_path, "tokens")
    spoil(tmp_path, "server.key")
    config = write_config(tmp_path, server=server, database={"db_file": str(tmp_path)})
    _, line = refusal(config)
    lines = command(f"--config={config}", "--check-config").stderr.splitlines()
    words = [each.partition(":")[0] for each in lines if not each.startswith("warning")]
    assert words == ["db-filesystem", "tls", "tls"]
    assert lines[-1] == line
    assert "token_file" in line
