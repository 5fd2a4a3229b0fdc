"""The commands of the page about moving over do what it says they do."""

from pathlib import Path

from consoles import ROOT, check, commands_of, needed
from server_process import Client, running
from servers import worker_request


def test_moving_over_goes_as_told(tmp_path: Path) -> None:
    needed("uv", "curl", "bash")
    commands = commands_of((ROOT / "docs" / "upgrading.md").read_text())
    assert len(commands) > 3
    (tmp_path / "server").mkdir()
    with running(tmp_path / "server") as process, Client(process.port) as client:
        client.runtime("RegisterWorker", worker_request())
        there = f"127.0.0.1:{process.http_port}"
        check([(each.replace("127.0.0.1:8001", there), told) for each, told in commands], tmp_path)
