"""Who is told secrets, and that nothing else that the server says has them."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import log_lines
import purerpc
import pytest
import trio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from servers import (
    Serving,
    claim_request,
    configuration,
    memory_info,
    replica_request,
    serving,
    worker_request,
)
from test_tokens import bearer, digest, write

from globalstore.api.middleware.hidden_secrets import hide_secrets
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers
from globalstore.http.exposition import exposition_text
from globalstore.rpc import CallEnded, Cardinality
from globalstore.telemetry import text
from globalstore.text.secret_fields import SECRET

HUSH = "hush-4711"


def secured(folder: Path) -> Any:
    path = write(
        folder, f"full {digest('all')}", f"read {digest('look')}", f"daemon {digest('d')} d1"
    )
    return serving(
        configuration(
            server={"auth": {"token_file": str(path)}},
            meta={"cluster_token": HUSH},
            worker_policy={"group_realization": {"enabled": True}},
        )
    )


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (bearer("all"), HUSH),
        (bearer("d"), HUSH),
        (bearer("look"), ""),
        (bearer("guess"), ""),
        (bearer(""), ""),
        ({}, ""),
        ({"metadata": [("authorization", "Bearer all")] * 2}, ""),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
async def test_the_cluster_token_is_told_to_those_who_may_change_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], told: str, fast: bool
) -> None:
    if not fast:
        # As when many calls come together: the method itself answers.
        monkeypatch.setattr("globalstore.rpc.dispatch._fast_path", lambda *_: None)
    async with secured(tmp_path) as store:
        answer = await store.admin.HealthCheck(wire.HealthCheckRequest(), **call)
        assert (answer.status, answer.cluster_token) == (wire.STATUS_OK, told)


async def test_without_tokens_everybody_is_told_as_daemons_are_used_to() -> None:
    async with serving(configuration(meta={"cluster_token": HUSH})) as store:
        answer = await store.admin.HealthCheck(wire.HealthCheckRequest())
        assert answer.cluster_token == HUSH


async def test_a_token_that_only_reads_sees_replicas_without_their_keys(tmp_path: Path) -> None:
    async with secured(tmp_path) as store:
        worker = await store.runtime.RegisterWorker(worker_request(), **bearer("all"))
        for number in range(450):
            info = memory_info(
                remote_memory_keys=[HUSH, HUSH],
                buffer_sizes=[40, 60],
                verification_json=HUSH,
                device_id=number,
            )
            request = replica_request(worker.worker_id, f"model-{number}", mem_info=info)
            await store.runtime.RegisterReplica(request, **bearer("all"))
        listing = wire.ListReplicasV2Request()
        listing.pagination.page_size = 1000
        for token, key in (("look", ""), ("all", HUSH), ("d", HUSH), ("look", "")):
            listed = await store.runtime.ListReplicasV2(listing, **bearer(token))
            assert len(listed.replicas) == 450
            for replica in listed.replicas:
                shown = replica.memory_info
                assert list(shown.remote_memory_keys) == [key, key]
                assert list(shown.transport.remote_memory_keys) == [key, key]
                assert shown.verification_json == shown.transport.verification_json == key
                assert list(shown.buffer_sizes) == [40, 60]
            assert (HUSH in str(listed)) == bool(key)
        granted = await store.runtime.RequestReplicaTransport(
            claim_request("model-0"), **bearer("d")
        )
        assert list(granted.remote_memory_info.remote_memory_keys) == [HUSH, HUSH]


JOINING = wire.BeginOrJoinGroupRealizationRequest(
    version=wire.VersionReference(
        explicit_selection=common.ArtifactSelection(artifact_id="aid-shared")
    ),
    context=wire.GroupRealizationContext(
        group_kind="tp_serving",
        group_id="g1",
        epoch=7,
        part_id="0",
        required_part_ids=["0", "1"],
        total_parts=2,
    ),
)


async def test_a_token_that_only_reads_sees_realizations_without_what_daemons_staged(
    tmp_path: Path,
) -> None:
    async with secured(tmp_path) as store:
        calls, full = store.catalog, bearer("all")
        joined = await calls.BeginOrJoinGroupRealization(JOINING, **full)
        report = wire.ReportGroupRealizationPreparedRequest(
            transaction_id=joined.transaction_id,
            part_id="0",
            staged_value=wire.StagedBindingValueRef(
                binding_id="b1", binding_value_id="v1", staging_token=HUSH, staging_epoch=1
            ),
        )
        await calls.ReportGroupRealizationPrepared(report, **full)
        request = wire.GetGroupRealizationRequest(transaction_id=joined.transaction_id)
        assert HUSH in str(await calls.GetGroupRealization(request, **full))
        shown = await calls.GetGroupRealization(request, **bearer("look"))
        assert HUSH not in str(shown)
        assert "v1" in {member.staged_value.binding_value_id for member in shown.members}


class OneToken:
    """Tokens of which one call has one that may see secrets."""

    def __init__(self, call: object) -> None:
        self._call = call

    def may_see_secrets(self, call: object) -> bool:
        return call is self._call


async def test_messages_of_a_stream_are_looked_at_one_by_one() -> None:
    closed = False

    async def told(message: Any, request: Any) -> AsyncIterator[Any]:
        nonlocal closed
        try:
            while True:
                yield wire.HealthCheckResponse(status=wire.STATUS_OK, cluster_token=HUSH)
        finally:
            closed = True

    signature = purerpc.RPCSignature(
        Cardinality.UNARY_STREAM, wire.HealthCheckRequest, wire.HealthCheckResponse
    )
    service = purerpc.Service("test")
    service.add_method("HealthCheck", told, signature)
    trusted, other = object(), object()
    hide_secrets([service], OneToken(trusted))  # type: ignore[arg-type]
    method = service.methods["HealthCheck"].method_fn
    for call, token in ((trusted, HUSH), (other, "")):
        closed, stream = False, method(wire.HealthCheckRequest(), call)
        for _ in range(3):
            answer = await anext(stream)
            assert (answer.status, answer.cluster_token) == (wire.STATUS_OK, token)
        await stream.aclose()
        assert closed


METHODS = [
    method
    for module in (wire, tiers)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def fill_secrets(message: Message) -> bool:
    """Put a secret into each secret field of a message, at any depth; False if it has none."""
    filled = False
    for field in message.DESCRIPTOR.fields:
        if field.full_name in SECRET:
            value: Any = HUSH.encode() if field.type == field.TYPE_BYTES else HUSH
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
            filled = True
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = getattr(message, field.name)
            part = inner.add() if field.is_repeated else GetMessageClass(field.message_type)()
            if fill_secrets(part):
                filled = True
                if not field.is_repeated:
                    inner.CopyFrom(part)
    return filled


def requests() -> Iterator[Any]:
    for method in METHODS:
        request = GetMessageClass(method.input_type)()
        if fill_secrets(request):
            yield pytest.param(method.containing_service.name, method.name, request, id=method.name)


STUBS = {
    "ClusterRuntimeService": "runtime",
    "ArtifactCatalogService": "catalog",
    "MemoryTierService": "tiers",
}


def completed(message: Message, worker_id: str) -> Iterator[Message]:
    """Yield a request as it is, and with what else a handler may want before it looks further."""
    yield message
    fuller = type(message)()
    fuller.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.full_name in SECRET or field.is_repeated or field.message_type is not None:
            continue
        if field.name == "worker_id":
            setattr(fuller, field.name, worker_id)
        elif field.type == field.TYPE_STRING:
            setattr(fuller, field.name, "00000000-0000-4000-8000-000000000000")
        elif field.type != field.TYPE_BYTES:
            setattr(fuller, field.name, 1)
    yield fuller


@pytest.mark.parametrize(("service", "method", "request_"), list(requests()))
async def test_neither_a_refusal_nor_the_log_nor_a_metric_repeats_a_secret(
    service: str, method: str, request_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = configuration(worker_policy={"group_realization": {"enabled": True}})
    async with serving(config) as store:
        worker = await store.register("d1")
        for request in completed(request_, worker.worker_id):
            assert HUSH in str(request)
            assert HUSH not in str(await refusal_of(store, service, method, request))
        assert HUSH not in exposition_text(store.components.metrics.registry).decode()
    assert not any(HUSH in line for line in log_lines.told(caplog))


async def refusal_of(store: Serving, service: str, method: str, request: Any) -> Any:
    """Return the status that a call ends with, trailers included; None for an answer."""
    stub = getattr(store, STUBS.get(service, ""), None)
    if stub is None:
        return None
    with trio.move_on_after(1):
        try:
            await getattr(stub, method)(request)
        except purerpc.RpcFailedError as error:
            ended = error.__context__
            return ended.status if isinstance(ended, CallEnded) else HUSH
    return None


def test_a_message_that_is_logged_is_masked() -> None:
    shown = text.pair("replica", memory_info(remote_memory_keys=[HUSH]))
    assert HUSH not in shown
    assert "***" in shown
