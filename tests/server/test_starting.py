"""How the server starts, and how it refuses to: exit code and last line."""

import os
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import (
    PATIENCE_S,
    Client,
    Process,
    command,
    refusal,
    running,
    started,
    write_config,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.schema import MIGRATIONS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "globalstore", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in memory that has a cluster token, and an environment with old settings."""
    config = write_config(tmp_path_factory.mktemp("server"), meta={"cluster_token": "sesame-42"})
    with started(config, {"GLOBAL_STORE_PORT": "1", "LOG_LEVEL": "sesame"}) as server:
        yield server
        assert server.stop() == 0
        assert not any("sesame" in line for line in server.lines)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def test_version_names_program_and_schema() -> None:
    done = command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("globalstore 0.")
    assert f"schema {len(MIGRATIONS)}" in done.stdout


def test_a_missing_config_flag_is_a_usage_error() -> None:
    done = command()
    assert done.returncode == 2
    assert last_line(done.stderr).startswith("config: ")
    done = command("serve")
    assert done.returncode == 2
    assert last_line(done.stderr) == "config: --config=FILE is required"


def test_an_unknown_flag_is_a_usage_error() -> None:
    assert command("--port=1").returncode == 2


def test_check_config_opens_neither_port_nor_database(tmp_path: Path) -> None:
    database = tmp_path / "sub" / "store.db"
    config = write_config(tmp_path, database={"db_file": str(database)})
    done = command(f"--config={config}", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert not database.parent.exists()


def test_every_problem_of_a_configuration_is_named_before_anything_is_opened(
    tmp_path: Path,
) -> None:
    database = tmp_path / "store.db"
    config = write_config(
        tmp_path,
        database={"db_file": str(database), "db_fil": 1},
        worker_policy={"heartbeat_timeout": "10m"},
    )
    for flags in ((), ("--check-config",)):
        done = command(f"--config={config}", *flags)
        assert done.returncode == 2
        assert "database.db_fil" in done.stderr
        assert "worker_policy.heartbeat_timeout" in done.stderr
        assert "600s" in done.stderr
        assert last_line(done.stderr).startswith("config: ")
    assert not database.exists()


def test_serve_is_the_verb_that_a_bare_config_means(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert run("serve", f"--config={config}", "--check-config").returncode == 0


def test_a_read_replica_is_refused_rather_than_served_as_a_primary(tmp_path: Path) -> None:
    code, line = refusal(write_config(tmp_path, database={"read_only": True}))
    assert code == 2
    assert line.startswith("config: ")
    assert "database.read_only: this version cannot" in line


def test_a_second_server_on_one_file_names_the_holder(tmp_path: Path) -> None:
    database = {"db_file": str(tmp_path / "store.db")}
    with running(tmp_path, database=database) as first:
        code, line = refusal(write_config(tmp_path, database=database))
        assert code == 3
        assert line.startswith("db-locked: ")
        assert str(first.child.pid) in line


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, but somebody's data " * 100)
    before = path.read_bytes()
    code, line = refusal(write_config(tmp_path, database={"db_file": str(path)}))
    assert code == 3
    assert line.startswith("db-foreign: ")
    assert path.read_bytes() == before


@pytest.mark.parametrize("which", ["grpc", "http"])
@pytest.mark.parametrize("reuseport", [False, True])
def test_a_port_that_is_taken_is_never_shared(tmp_path: Path, which: str, reuseport: bool) -> None:
    with socket.socket() as holder:
        if reuseport:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = {"listen": {"port": port}} if which == "grpc" else {"metrics_port": port}
        code, line = refusal(write_config(tmp_path, server=server))
    assert code == 4
    assert line.startswith("port-busy: ")
    assert str(port) in line


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_an_address_that_this_machine_does_not_have_yet_may_be_tried_again(
    tmp_path: Path, host: str
) -> None:
    code, line = refusal(write_config(tmp_path, server={"listen": {"host": host, "port": 0}}))
    assert code == 4
    assert line.startswith("address: ")
    assert host in line
    assert "correct server.listen.host" in line


@pytest.mark.parametrize("present", [(), ("cert",)])
def test_tls_without_usable_files_never_falls_back_to_plaintext(
    tmp_path: Path, present: tuple[str, ...]
) -> None:
    for name in present:
        (tmp_path / f"{name}.pem").write_text("junk")
    tls = {
        "enabled": True,
        "cert_file": str(tmp_path / "cert.pem"),
        "key_file": str(tmp_path / "key.pem"),
    }
    code, line = refusal(write_config(tmp_path, server={"grpc": {"tls": tls}}))
    assert code == 4
    assert line.startswith("tls: ")
    assert "cert.pem" in line


def test_names_that_were_settings_once_change_nothing_and_are_warned_of(process: Process) -> None:
    line = process.wait_for("GLOBAL_STORE_PORT").string
    assert " WARN " in line
    assert "LOG_LEVEL" in line
    assert "server.listen.port" in line
    assert "sesame" not in line
    assert process.port != 1


def test_a_server_in_memory_warns_that_nothing_survives(process: Process) -> None:
    assert " WARN " in process.wait_for("database.db_file").string or process.wait_for(
        "memory.*lost|lost.*memory"
    )


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    database = tmp_path / "new" / "store.db"
    umask = os.umask(0)
    try:
        with running(tmp_path, database={"db_file": str(database)}):
            assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()
            }
            assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(umask)


def test_server_info_tells_what_was_bound(tmp_path: Path) -> None:
    database = tmp_path / "store.db"
    with running(tmp_path, database={"db_file": str(database)}) as process:
        with Client(process.port) as client:
            info = client.admin("GetServerInfo", wire.GetServerInfoRequest())
        assert info.status == wire.STATUS_OK
        assert (info.listen_host, info.listen_port) == ("127.0.0.1", process.port)
        assert info.advertise_address == f"127.0.0.1:{process.port}"
        assert info.metrics_port == process.http_port
        assert info.db_file == str(database.resolve())
        cluster_id = info.cluster_id
        assert process.stop() == 0
    with (
        running(tmp_path, database={"db_file": str(database)}) as process,
        Client(process.port) as client,
    ):
        again = client.admin("GetServerInfo", wire.GetServerInfoRequest())
        assert again.cluster_id == cluster_id


def test_health_has_the_cluster_token_and_the_log_has_not(process: Process) -> None:
    with Client(process.port) as client:
        answer = client.admin("HealthCheck", wire.HealthCheckRequest())
    assert (answer.status, answer.cluster_token) == (wire.STATUS_OK, "sesame-42")
    # When the server has stopped, its whole log is looked through.
    assert not any("sesame-42" in line for line in process.lines)


def test_the_metrics_show_calls_under_their_names(process: Process) -> None:
    path = "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck"
    counter = f'tc_grpc_server_handled_total{{code="OK",method="{path}"}}'

    def counted() -> float:
        url = f"http://127.0.0.1:{process.http_port}/metrics"
        text = urllib.request.urlopen(url, timeout=PATIENCE_S).read().decode()
        values = [line.split()[-1] for line in text.splitlines() if line.startswith(counter)]
        return float(values[0]) if values else 0.0

    before = counted()
    with Client(process.port) as client:
        client.admin("HealthCheck", wire.HealthCheckRequest())
    assert counted() == before + 1


def test_settings_without_effect_are_named_in_one_line(tmp_path: Path) -> None:
    policy = {"control_reducer": {"coalesce_window": "1s"}}
    with running(tmp_path, worker_policy=policy, backup={"keep_last": 3}) as process:
        line = process.wait_for("without effect").string
        assert " WARN " in line
        assert "backup.keep_last" in line
        assert "worker_policy.control_reducer.coalesce_window" in line
        assert sum("without effect" in each for each in process.lines) == 1


def test_the_first_line_has_what_differs_from_the_defaults_and_no_more(process: Process) -> None:
    [line] = [line for line in process.lines if " starting " in line]
    settings = [word.partition("=")[0] for word in line.partition(" starting ")[2].split()]
    assert settings[:2] == ["version", "config"]
    assert "meta.cluster_token" in settings
    assert len(settings) < 10
    assert '\\"' not in line


def test_all_settings_are_told_at_debug_one_a_line(tmp_path: Path) -> None:
    logging = {"level": "DEBUG"}
    meta = {"description": 'a "b" c', "cluster_token": "hush"}
    with running(tmp_path, meta=meta, observability={"logging": logging}) as server:
        assert server.stop() == 0
    told = [line.partition(" setting ")[2] for line in server.lines if " setting key=" in line]
    assert len(told) > 100
    assert r'key=meta.description value="a \"b\" c"' in told
    assert "key=meta.cluster_token value=***" in told
    assert "key=server.listen.host value=127.0.0.1" in told
