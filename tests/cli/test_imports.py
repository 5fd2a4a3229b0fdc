"""What a command imports: a start is mostly imports, so each verb has its own and no others."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from server_process import Process, running, write_config

from globalstore.cli import VERBS

# What takes long to import and no command but those that talk like a daemon or serve has need of.
_SLOW = {
    "anyio",
    "attr",
    "cattrs",
    "cryptography",
    "h2",
    "hypercorn",
    "hypothesis",
    "importlib.metadata",
    "prometheus_client",
    "purerpc",
    "sqlite3",
    "tomllib",
    "trio",
    "yaml",
}

# What makes the server, and the tables and messages of others.
_SERVER = {
    "globalstore.api",
    "globalstore.caches",
    "globalstore.config",
    "globalstore.daemon",
    "globalstore.db",
    "globalstore.http",
    "globalstore.leases",
    "globalstore.liveness",
    "globalstore.registry",
    "globalstore.rpc",
    "globalstore.scheduling",
    "globalstore.server",
    "globalstore.telemetry",
}

_ASKING = {
    "artifact": ["artifact", "list"],
    "explain": ["explain", "model"],
    "key": ["key", "list"],
}


def imported(*words: str) -> set[str]:
    """Run a command to its end in a process of its own; return the modules it has loaded then."""
    program = (
        "import sys\n"
        "from globalstore.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout, done.stderr
    return set(done.stderr.split())


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("imports")) as started:
        yield started


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_to_tell_what_there_is_takes_the_command_line_alone(words: list[str]) -> None:
    loaded = imported(*words)
    ours = {name for name in loaded if name.startswith("globalstore")}
    assert ours == {
        "globalstore",
        "globalstore.__main__",
        "globalstore.cli",
        "globalstore.cli.importing",
    }
    assert loaded & (_SLOW | {"google.protobuf", "hpack", "ssl", "asyncio"}) == set()


@pytest.mark.parametrize("verb", _ASKING)
def test_to_ask_a_server_takes_neither_its_parts_nor_those_of_a_daemon(
    verb: str, process: Process
) -> None:
    loaded = imported(*_ASKING[verb], f"--server=127.0.0.1:{process.port}")
    assert "globalstore.client.blocking" in loaded
    assert loaded & (_SLOW - {"h2"} | _SERVER) == set()
    others = {f"globalstore.cli.{other}" for other in VERBS if other != verb}
    assert loaded & others == set()


def test_to_check_a_configuration_takes_nothing_that_serves(tmp_path: Path) -> None:
    loaded = imported("--check-config", f"--config={write_config(tmp_path)}")
    assert "globalstore.config" in loaded
    # The versions of libraries are looked up in what was installed with them.
    needed = {"attr", "cattrs", "tomllib", "importlib.metadata"}
    needless = (_SLOW - needed) | (_SERVER - {"globalstore.config"})
    assert loaded & (needless - {"globalstore.server"}) == set()


def test_a_server_starts_without_what_only_some_of_its_clients_need() -> None:
    program = "import sys, globalstore.server.process; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "globalstore.api.services" in loaded
    needless = {"hypercorn", "yaml", "importlib.metadata", "asyncio", "cryptography", "hypothesis"}
    assert loaded & (needless | {"globalstore.client", "globalstore.daemon"}) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_of_each_what_its_module_says(verb: str) -> None:
    text = import_module(f"globalstore.cli.{verb}").__doc__
    assert text is not None
    assert VERBS[verb] == text.splitlines()[0]


def test_every_module_that_is_a_verb_is_listed() -> None:
    folder = Path(import_module("globalstore.cli").__file__ or "").parent
    runs = {path.stem for path in folder.glob("*.py") if "\ndef run(" in path.read_text()}
    assert runs == set(VERBS)
