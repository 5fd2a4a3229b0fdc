"""What moves the metrics of who may call."""

import hashlib
import tempfile
from pathlib import Path

import trio
import trio.testing
from moving import Clock, Moves, moves, of
from servers import claim_request, replica_request, worker_request

# Gone when the tests end; nobody else may write it.
_FILE = tempfile.NamedTemporaryFile("w")  # noqa: SIM115
_PATH = Path(_FILE.name)


def _write(*lines: str) -> None:
    _PATH.write_text("".join(f"{line}\n" for line in lines))


def _line(role: str, token: str, ids: str = "") -> str:
    return f"{role} {hashlib.sha256(token.encode()).hexdigest()} {ids}"


_LINES = (_line("full", "all"), _line("read", "look"), _line("daemon", "d1", "d1"))
_write(*_LINES)


@moves(
    of("tc_auth_refusals_total", "reason", "missing", "malformed", "several", "unknown", "role"),
    of("tc_auth_refusals_total", "reason", "daemon"),
    server={"auth": {"token_file": _FILE.name}},
)
async def callers_are_refused(it: Moves, _: Clock) -> None:
    runtime = it.store.runtime
    for header in (
        [],
        ["Basic x"],
        ["Bearer all", "Bearer all"],
        ["Bearer other"],
        ["Bearer look"],
    ):
        metadata = [("authorization", value) for value in header]
        await it.fails(runtime.RegisterWorker(worker_request(), metadata=metadata))
    bound = [("authorization", "Bearer d1")]
    await it.fails(runtime.RegisterWorker(worker_request("d2"), metadata=bound))
    it.look()


@moves(
    of("tc_auth_refusals_total", "reason", "withdrawn"),
    server={"auth": {"token_file": _FILE.name}},
)
async def a_token_is_withdrawn_while_its_call_waits(it: Moves, _: Clock) -> None:
    runtime, renewal = it.store.runtime, it.store.components.token_renewal
    assert renewal is not None
    bearer = [("authorization", "Bearer all")]
    worker = await runtime.RegisterWorker(worker_request(), metadata=bearer)
    await runtime.RegisterReplica(replica_request(worker.worker_id), metadata=bearer)
    await runtime.RequestReplicaTransport(claim_request(), metadata=bearer)
    async with trio.open_nursery() as nursery:
        waiting = runtime.RequestReplicaTransport(claim_request(wait_s=60), metadata=bearer)
        nursery.start_soon(it.fails, waiting)
        await trio.testing.wait_all_tasks_blocked()
        _write(_line("read", "all"))
        try:
            renewal.take_up()
        finally:
            _write(*_LINES)
    it.look()
