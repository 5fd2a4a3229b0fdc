"""The token file, what its roles allow, and what is left of calls that are refused."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import log_lines
import pytest
import trio
import trio.testing
from purerpc import StatusCode
from server_process import command, refusal, write_config
from servers import (
    Serving,
    claim_request,
    configuration,
    refused,
    replica_request,
    serving,
    worker_request,
)

from globalstore.api.middleware.token_file import TokenFileUnusable, read_token_file
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

A, B = "a" * 64, "B" * 64


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> dict[str, Any]:
    return {"metadata": [("authorization", f"Bearer {token}")]}


def write(folder: Path, *lines: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return path


def secured(path: Path) -> Any:
    return serving(configuration(server={"auth": {"token_file": str(path)}}))


NOTHING = ["", "\n", " ", " \n", "\r\n", "\t", "null", "null\n", "None", "undefined\n", '""']


@pytest.mark.parametrize("text", NOTHING)
@pytest.mark.parametrize("role", ["full", "read", "daemon"])
def test_the_digest_of_no_token_is_refused(tmp_path: Path, text: str, role: str) -> None:
    line = f"{role} {digest(text).upper()}" + (" d1" if role == "daemon" else "")
    with pytest.raises(TokenFileUnusable, match=r"tokens, line 2: this is the SHA-256 of no token"):
        read_token_file(write(tmp_path, f"full {A}", line))


@pytest.mark.parametrize(
    "lines",
    [
        (f"read {A}", f"full {A.upper()}"),
        (f"daemon {A} d1", f"full {A}"),
        (f"daemon {A} d1", f"daemon {A} d2"),
    ],
)
def test_one_token_in_two_lines_that_differ_is_refused(
    tmp_path: Path, lines: tuple[str, str]
) -> None:
    with pytest.raises(TokenFileUnusable, match=r"line 3: the token of line 1 again"):
        read_token_file(write(tmp_path, lines[0], "# x", lines[1]))


def test_one_line_twice_is_one_token(tmp_path: Path) -> None:
    twice = (f"daemon {A} d1,d2", f"daemon {A} d2,d1")
    assert len(read_token_file(write(tmp_path, *twice, f"full {B}"))) == 2


@pytest.mark.parametrize(
    "line",
    [
        *(f"{role} {A}{more}" for role in ("full", "read") for more in (" d1", " x y")),
        *(f"daemon {A}{more}" for more in ("", " d1,", " ,d1", " d1,,d2", " d1 d2")),
        *(f"admin {A}", f"Full {A}", f"full {A[1:]}", f"full {A[1:]}g", "full", f"full:{A}"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(TokenFileUnusable, match=r"line 2: expected 'full', 'read' or 'daemon'"):
        read_token_file(write(tmp_path, f"full {B}", line))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_file_that_others_may_write_refuses_the_start_and_the_check(
    tmp_path: Path, mode: int
) -> None:
    path = write(tmp_path, f"full {A}", mode=mode)
    config = write_config(tmp_path, server={"auth": {"token_file": str(path)}})
    code, line = refusal(config)
    assert code == 4
    assert line.startswith(f"tls: server.auth.token_file {path}: ")
    assert "chmod it to 0600" in line
    assert command(f"--config={config}", "--check-config").stderr.splitlines()[-1] == line


async def test_a_reload_of_a_file_that_is_refused_keeps_the_tokens_and_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, f"full {digest('one')}")
    async with secured(path) as store:
        for lines, mode in (
            ((f"full {digest('')}",), 0o600),
            ((f"full {A}", f"read {A}"), 0o600),
            ((f"full {A}",), 0o622),
        ):
            write(tmp_path, *lines, mode=mode)
            caplog.clear()
            store.server.reload(store.server.config)
            (line,) = log_lines.told(caplog, logging.ERROR)
            assert "the old ones stay in use" in line
            assert "server.auth.token_file" in line
            await store.runtime.RegisterWorker(worker_request(), **bearer("one"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "none sent"),
        (["Bearer one", "Bearer one"], "more than once"),
        (["Bearer other", "Bearer one"], "more than once"),
        (["Bearer "], "blank"),
        (["Bearer \t "], "blank"),
        (["Basic one"], "expected 'Bearer TOKEN'"),
        (["one"], "expected 'Bearer TOKEN'"),
        (["Bearer one, Bearer one"], "expected a known"),
        ([f"Bearer {digest('one').upper()}"], "the token file has this very text"),
    ],
)
async def test_a_refusal_of_a_token_says_why(tmp_path: Path, fields: list[str], said: str) -> None:
    async with secured(write(tmp_path, f"full {digest('one')}")) as store:
        metadata = [("authorization", field) for field in fields]
        async with refused(StatusCode.UNAUTHENTICATED, said):
            await store.runtime.RegisterWorker(worker_request(), metadata=metadata)


async def test_a_thousand_wrong_tokens_leave_one_line_a_minute_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    async with secured(write(tmp_path, f"full {digest('one')}")) as store:
        for _ in range(1000):
            async with refused(StatusCode.UNAUTHENTICATED):
                await store.runtime.RegisterWorker(worker_request(), **bearer("guess"))
        lines = [line for line in log_lines.told(caplog, logging.WARNING) if "refused" in line]
        assert len(lines) == 1
        assert "reason=unknown" in lines[0]
        assert "guess" not in caplog.text
        counted = store.components.metrics.server.auth_refusals.labels("unknown")
        assert counted._value.get() == 1000


async def _parked(store: Serving, nursery: trio.Nursery, token: str, ends: list[str]) -> None:
    """Leave a claim waiting that was made by a token."""

    async def wait() -> None:
        async with refused(StatusCode.UNAUTHENTICATED, "withdrawn"):
            await store.runtime.RequestReplicaTransport(claim_request(wait_s=600), **bearer(token))
        ends.append(token)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("now", "ended"),
    [
        ((f"full {digest('op')}",), True),
        ((f"full {digest('op')}", f"read {digest('x')}"), True),
        ((f"full {digest('op')}", f"daemon {digest('x')} d1"), True),
        ((f"full {digest('op')}", f"full {digest('x')}", f"read {digest('y')}"), False),
    ],
    ids=["gone", "read", "daemon", "kept"],
)
async def test_a_call_that_waits_ends_when_its_token_is_withdrawn_or_shrinks(
    tmp_path: Path, now: tuple[str, ...], ended: bool
) -> None:
    path = write(tmp_path, f"full {digest('op')}", f"full {digest('x')}")
    async with secured(path) as store, trio.open_nursery() as nursery:
        call = partial(bearer, "op")
        worker = await store.runtime.RegisterWorker(worker_request(), **call())
        await store.runtime.RegisterReplica(replica_request(worker.worker_id), **call())
        await store.runtime.RequestReplicaTransport(claim_request(), **call())
        ends: list[str] = []
        await _parked(store, nursery, "x", ends)
        write(tmp_path, *now)
        store.server.reload(store.server.config)
        await trio.testing.wait_all_tasks_blocked()
        assert bool(ends) is ended
        listed = await store.runtime.ListActiveWorkers(wire.ListActiveWorkersRequest(), **call())
        assert len(listed.workers) == 1
        nursery.cancel_scope.cancel()


async def test_thousands_of_withdrawn_calls_end_in_turns(tmp_path: Path) -> None:
    path = write(tmp_path, f"full {digest('op')}", f"full {digest('x')}")
    async with secured(path) as store, trio.open_nursery() as nursery:
        worker = await store.runtime.RegisterWorker(worker_request(), **bearer("op"))
        await store.runtime.RegisterReplica(replica_request(worker.worker_id), **bearer("op"))
        await store.runtime.RequestReplicaTransport(claim_request(), **bearer("op"))
        ends: list[str] = []
        for _ in range(1000):
            await _parked(store, nursery, "x", ends)
        write(tmp_path, f"full {digest('op')}")
        store.server.reload(store.server.config)
        turns = 0
        while len(ends) < 1000:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 1000 // 32
        listed = await store.runtime.ListActiveWorkers(
            wire.ListActiveWorkersRequest(), **bearer("op")
        )
        assert len(listed.workers) == 1


async def test_a_renewed_file_that_others_may_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, f"full {digest('one')}")
    async with secured(path) as store:
        caplog.clear()
        write(tmp_path, f"full {digest('two')}", mode=0o644)
        store.server.reload(store.server.config)
        (line,) = [x for x in log_lines.told(caplog, logging.WARNING) if str(path) in x]
        assert "lets others read it" in line
