"""What a verb writes, and what it says when it cannot."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import PATIENCE_S, Process, running
from test_key import command, describe

from globalstore.cli import VERBS, exit_codes, output
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("output")) as started:
        describe(started, *(f"model-{number:04}" for number in range(1100)))
        yield started


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, with ``globalstore`` as the command."""
    function = f'globalstore() {{ "{sys.executable}" -m globalstore "$@"; }}\n'
    return subprocess.run(
        ["/bin/bash", "-c", function + line],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        ("> /dev/full", "standard output: No space left on device"),
        (">&-", "standard output is closed"),
        ("> >(exec true)", "standard output: Broken pipe"),
    ],
)
@pytest.mark.parametrize("form", ["table", "json"])
def test_output_that_cannot_be_written_is_an_error(
    process: Process, redirection: str, reason: str, form: str
) -> None:
    server = f"--server=127.0.0.1:{process.port}"
    done = shell(f"globalstore artifact list --output={form} {server} {redirection}")
    assert done.stderr == f"artifact list: {reason}\n"
    assert done.returncode == exit_codes.UNWRITTEN


@pytest.mark.parametrize(
    "words", ["--version", "--config=configs/global_store.yaml --check-config"]
)
def test_an_answer_of_the_server_that_nobody_takes_is_an_error_too(words: str) -> None:
    done = shell(f"globalstore {words} > /dev/full")
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1] == "host: standard output: No space left on device"


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
def test_errors_that_nobody_takes_change_no_code_and_are_no_output(redirection: str) -> None:
    done = shell(f"globalstore artifact list --server=127.0.0.1:1 {redirection}")
    assert (done.returncode, done.stdout) == (exit_codes.UNREACHABLE, "")
    done = shell(f"globalstore serve {redirection}")
    assert (done.returncode, done.stdout) == (exit_codes.USAGE, "")


def test_what_the_encoding_of_the_output_lacks_is_escaped(process: Process) -> None:
    describe(process, "模型")
    server = f"--server=127.0.0.1:{process.port}"
    done = shell(f"globalstore artifact show 模型 {server}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\u6a21\u578b" in done.stdout


def test_a_list_goes_over_pages_and_says_when_it_is_cut(process: Process) -> None:
    code, out, error = command("artifact", process, "list", "model-", "--limit=1050")
    assert (code, len(out.splitlines())) == (0, 1051)
    assert error == "artifact list: there are more; these are 1050 of them\n"
    code, out, error = command("artifact", process, "list", "model-", "--limit=1100")
    assert (code, len(out.splitlines()), error) == (0, 1101, "")


@pytest.mark.parametrize("limit", ["-1", "0", "x", "1e3", "4294967296", "²"])
@pytest.mark.parametrize("verb", ["artifact", "key"])
def test_a_limit_is_a_whole_number_from_one(verb: str, limit: str) -> None:
    code, out, error = command(verb, None, "list", f"--limit={limit}")
    assert (code, out) == (exit_codes.USAGE, "")
    assert "--limit: expected a whole number from 1 to 4294967295" in error


@pytest.mark.parametrize(
    "words",
    [
        ["set", "k", "a", f"--ttl={1 << 63}"],
        ["set", "k", "a", "--ttl=-1"],
        ["swap", "k", "a", f"--if-generation={1 << 64}"],
        ["swap", "k", "a", "--if-generation=-1"],
        ["get", os.fsdecode(b"\xff")],
    ],
)
def test_what_no_message_can_carry_is_an_error_of_usage(words: list[str]) -> None:
    code, out, error = command("key", None, *words)
    assert (code, out) == (exit_codes.USAGE, "")
    assert "Traceback" not in error


def test_json_has_numbers_where_protobuf_has_strings() -> None:
    shown = admin.ShowKeyResponse()
    shown.key.generation = (1 << 64) - 1
    shown.generations.add(generation=3)
    fields = output.as_dict(shown)
    assert fields["key"]["generation"] == (1 << 64) - 1
    assert [each["generation"] for each in fields["generations"]] == [3]


def test_no_verb_prints_the_help_and_is_an_error_of_usage() -> None:
    code, out, error = command_line()
    assert (code, out) == (exit_codes.USAGE, "")
    assert all(verb in error for verb in VERBS)
    assert error.splitlines()[-1].startswith("config: name a verb")


@pytest.mark.parametrize("verb", ["demo", "explain", "key", "key get", "artifact", "artifact list"])
def test_the_help_of_a_verb_tells_its_exit_codes(verb: str) -> None:
    code, out, _ = command_line(*verb.split(), "--help")
    assert code == 0
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    numbers = {value for value in codes if isinstance(value, int)}
    table = out.partition("exit codes:\n")[2].splitlines()
    assert {int(line.split()[0]) for line in table} == numbers


def command_line(*words: str) -> tuple[int, str, str]:
    """Run the program in a process of its own; return its exit code and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "globalstore", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_files_for_tls_that_cannot_be_used_are_named_with_their_option(tmp_path: Path) -> None:
    empty, folder = tmp_path / "empty.pem", tmp_path / "folder"
    empty.touch()
    folder.mkdir()
    for words, reason in [
        ([f"--ca={empty}"], f"--ca: {empty} has no certificate in PEM"),
        ([f"--ca={folder}"], f"--ca: {folder} cannot be read: Is a directory"),
        (["--ca=/a\0b"], "--ca: /a\\x00b cannot be read: embedded null byte"),
        (
            ["--ca=~nobody-of-this-name/ca"],
            "--ca: ~nobody-of-this-name/ca cannot be read: Could not determine home directory.",
        ),
        (
            ["--token-file=/proc/self/mem"],
            "--token-file: /proc/self/mem cannot be read: Input/output error",
        ),
        ([f"--token-file={folder}"], f"--token-file: {folder} cannot be read: Is a directory"),
        (["--key=/none"], "--key is of use with --ca only, or with a --config that has TLS"),
    ]:
        code, _, error = command("key", None, "list", "--server=h:1", *words)
        assert (code, error) == (exit_codes.USAGE, f"key list: {reason}\n")
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    code, _, error = command(
        "key", None, "list", "--server=h:1", f"--token-file={tmp_path / 'token'}"
    )
    assert (code, error.count("\n")) == (exit_codes.USAGE, 1)
    assert "--token-file: " in error
