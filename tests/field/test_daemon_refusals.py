"""What daemons are told when they are refused.

Their clients repeat UNAVAILABLE, INTERNAL, UNKNOWN and DEADLINE_EXCEEDED, three times, and nothing
else; older ones show the trailers of a call, but neither its details nor a body that is an error.
"""

import threading
from contextlib import suppress
from urllib.parse import unquote

import grpc
import pytest
import trio
import trio.lowlevel
import trio.testing
from purerpc import StatusCode
from servers import (
    configuration,
    refused,
    serving,
    serving_over_tcp,
    worker_request,
)

from globalstore import db
from globalstore.api.middleware.status_codes import REASON, status_of
from globalstore.db import Lane, Runner, limits
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.daemon_locks import DaemonLockFull
from globalstore.rules.refusals import Refusal, ResourceExhausted, Unavailable
from globalstore.text.printing import printable
from globalstore.waiting.drains import Drains


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (db.QueueFull("full"), StatusCode.UNAVAILABLE),
        (DaemonLockFull("full"), StatusCode.UNAVAILABLE),
        (Unavailable("full"), StatusCode.UNAVAILABLE),
        (db.Full("disk"), StatusCode.RESOURCE_EXHAUSTED),
        (ResourceExhausted("cap"), StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_only_what_a_repeat_does_not_cure_is_resource_exhausted(
    error: Exception, code: StatusCode
) -> None:
    status = status_of(error)
    assert status is not None
    assert status.code is code


async def test_a_registration_that_finds_its_lock_crowded_may_be_repeated() -> None:
    config = configuration(worker_policy={"control_reducer": {"queue_capacity": 1}})
    async with serving(config) as store, trio.open_nursery() as nursery:
        async with store.components.daemon_locks.hold("d1", "maintenance"):
            nursery.start_soon(store.register, "d1")
            await trio.testing.wait_all_tasks_blocked()
            async with refused(StatusCode.UNAVAILABLE, "queue_capacity"):
                await store.register("d1")
        await trio.testing.wait_all_tasks_blocked()
        assert (await store.register("d1")).status == wire.STATUS_OK


async def test_a_completion_that_finds_the_queue_full_may_be_repeated() -> None:
    """One that were final would leave the slot of its source taken until its time to live."""
    async with serving(runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        granted = await store.claim()
        began, free = threading.Event(), threading.Event()
        block = store.components.store.write
        nursery.start_soon(block, lambda tx: (began.set(), free.wait(30)))
        assert await trio.to_thread.run_sync(began.wait, 30)
        try:
            async with trio.open_nursery() as crowd:
                # Some more than there is room for: the server writes something itself now and then.
                for _ in range(limits.WRITE_QUEUE_MAX + 10):
                    crowd.start_soon(_nothing, store.components.store)
                await trio.testing.wait_all_tasks_blocked()
                async with refused(StatusCode.UNAVAILABLE, "try again later"):
                    await store.complete(granted.transport_id)
                free.set()
        finally:
            free.set()
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK


async def _nothing(store: db.Store) -> None:
    with suppress(db.QueueFull):
        await store.write(lambda tx: None, lane=Lane.CONTROL)


def test_one_more_waiting_drain_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("globalstore.waiting.drains._WAITERS_MAX", 1)
    drains = Drains()
    with (
        drains.waiting(("a", ""), 1),
        pytest.raises(Unavailable, match="try later"),
        drains.waiting(("a", ""), 2),
    ):
        pass


# The reason in a trailer.


async def trailers_of(port: int, request: wire.RegisterWorkerRequest) -> dict[str, str]:
    """Return the trailers of a RegisterWorker call of a stock client."""

    def call() -> dict[str, str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            register = channel.unary_unary(
                "/tensorcast.global_store.v1.ClusterRuntimeService/RegisterWorker",
                request_serializer=wire.RegisterWorkerRequest.SerializeToString,
                response_deserializer=wire.RegisterWorkerResponse.FromString,
            )
            try:
                _, ended = register.with_call(request)
            except grpc.RpcError as error:
                ended = error
            return dict(ended.trailing_metadata())

    return await trio.to_thread.run_sync(call)


async def test_every_refused_registration_says_why_in_a_trailer() -> None:
    async with serving_over_tcp() as store:
        port = store.info.listen_port
        trailers = await trailers_of(port, worker_request(node_address="localhost"))
        assert "node_address is 'localhost'" in trailers[REASON]
        owner = await store.register("d1")
        claims = worker_request(
            "d2", is_recovery_registration=True, previous_worker_id=owner.worker_id
        )
        trailers = await trailers_of(port, claims)
        assert owner.worker_id in trailers[REASON]
        assert "another daemon" in trailers[REASON]
        assert REASON not in await trailers_of(port, worker_request("d2"))


@pytest.mark.parametrize(
    "text", ["plain", "café 100 %", "line\nbreak", "\x00\x7f", "x" * 5000, "日本" * 400, "\ud800"]
)
def test_a_reason_is_short_printable_and_comes_back_as_it_is_shown(text: str) -> None:
    status = status_of(Refusal(text)) or status_of(Unavailable(text))
    assert status is not None
    ((name, value),) = status.trailers
    assert name == REASON
    assert isinstance(value, str)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= 12 * 256
    if "\ud800" not in text:
        assert unquote(value) == printable(text)[:256]


def test_every_kind_of_refusal_and_of_database_error_has_a_reason() -> None:
    of_calls = [kind for kind in db.DatabaseError.__subclasses__() if kind is not db.StartRefused]
    for kind in (*Refusal.__subclasses__(), *of_calls):
        status = status_of(kind("why"))
        # A broken constraint is a defect of ours, and told as one.
        if kind is not db.Constraint:
            assert status is not None, kind
            assert status.trailers == ((REASON, "why"),)
