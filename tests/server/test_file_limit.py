"""Open files: as many as the configuration promises, and some for those who ask how it goes."""

import re
import socket
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from server_process import PATIENCE_S, Client, Process, started, write_config
from servers import worker_request

from globalstore.server.file_limit import FILES_RESERVED


def limits(process: Process) -> str:
    text = Path(f"/proc/{process.child.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+) +(\d+)", text)
    assert found is not None
    return " ".join(found.groups())


def alive(process: Process) -> list[int]:
    answers = []
    for path in ("livez", "ready", "metrics"):
        url = f"http://127.0.0.1:{process.http_port}/{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            answers.append(answer.status)
    return answers


def test_the_soft_limit_is_raised_to_what_the_connections_take(tmp_path: Path) -> None:
    config = write_config(tmp_path, server={"limits": {"max_connections": 1000}})
    with started(config, files_max=(500, 5000)) as process:
        assert limits(process) == f"{1000 + FILES_RESERVED} 5000"
        assert not any("open files" in line for line in process.lines)


def test_a_hard_limit_that_is_too_low_is_told_with_both_numbers(tmp_path: Path) -> None:
    config = write_config(tmp_path, server={"limits": {"max_connections": 1000}})
    with started(config, files_max=(500, 900)) as process:
        line = process.wait_for("open files").string
        assert f"needed={1000 + FILES_RESERVED} allowed=900 max_connections=1000" in line
        assert "LimitNOFILE" in line


def test_a_server_without_files_for_connections_answers_probes(tmp_path: Path) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(started(write_config(tmp_path), files_max=(300, 300)))
        assert alive(process) == [200, 200, 200]
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", process.port)))
            for _ in range(400)
        ]
        process.wait_for('end for new ones reason="the server has as many open files')
        assert alive(process) == [200, 200, 200]
        for client in clients:
            client.close()
        with Client(process.port) as caller:
            caller.runtime("RegisterWorker", worker_request(), wait_for_ready=True)
        process.wait_for("connections accepted again refused=")
        assert sum("connections refused" in line for line in process.lines) <= 2
        assert not any("Traceback" in line for line in process.lines)
