"""Whatever a message of the catalog says, the answer is an answer and never INTERNAL."""

import hashlib
import random
from typing import Any

import purerpc
import pytest
import trio
from google.protobuf.message import Message
from key_calls import ready, upsert
from purerpc import StatusCode
from servers import Serving, configuration, serving
from test_any_input import MESSAGES_PER_CALL, scramble

from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash
from globalstore.rules.artifact_ids import Scheme, digests_of, scheme_of

EXPECTED = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
}

_METHODS = [
    method.name for method in wire.DESCRIPTOR.services_by_name["ArtifactCatalogService"].methods
]
_ASKED = ["ListKeys", "ShowKey", "ListArtifacts", "ShowArtifact"]


def selection() -> Any:
    return common.ArtifactSelection(artifact_id="model")


def joining() -> Any:
    return wire.BeginOrJoinGroupRealizationRequest(
        version=wire.VersionReference(explicit_selection=selection()),
        context=wire.GroupRealizationContext(
            group_kind="k", group_id="g", part_id="0", total_parts=2, required_part_ids=["0", "1"]
        ),
    )


def base(method: str, transaction_id: str, cluster_id: str) -> Message:
    """A request that would do, to be damaged a little or a lot."""
    group = {"transaction_id": transaction_id}
    described = common.ArtifactDescriptor(artifact_id="model", index_multihash=multihash.of(b"{}"))
    seal = wire.ArtifactBinding(from_artifact_id="cgid:abc", to_artifact_id="model")
    part = wire.GroupVersionSetPart(part_id="0", selection=selection())
    staged = wire.StagedBindingValueRef(binding_id="b", binding_value_id="v", staging_token="t")
    arguments: dict[str, dict[str, Any]] = {
        "UpsertArtifactMetadata": {"descriptor": described, "canonical_index_data": b"{}"},
        "GetArtifactIndex": {"tensor_index_key": "0" * 64},
        "UpsertArtifactBinding": {"binding": seal},
        "UpsertArtifactDiskLocation": {
            "artifact_id": "model", "cluster_id": cluster_id, "relative_path": "a/b"
        },
        "UpsertKeyMapping": {"key": "k", "artifact_id": "model"},
        "SwapKeyMapping": {"key": "k", "new_artifact_id": "model"},
        "RegisterGroupVersionSet": {"realization_kind": 1, "parts": [part]},
        "ReportGroupRealizationPrepared": group | {"part_id": "0", "staged_value": staged},
        "PublishGroupRealization": group,
        "WaitGroupRealizationPublished": group,
        "AbortGroupRealization": group,
        "GetGroupRealization": group,
    }  # fmt: skip
    if method == "BeginOrJoinGroupRealization":
        begin: Message = joining()
        return begin
    kind = getattr(admin if method in _ASKED else wire, f"{method}Request")
    usual = {"artifact_id": "model", "key": "k"}
    if method not in arguments:
        fields = {field.name for field in kind.DESCRIPTOR.fields}
        arguments[method] = {name: value for name, value in usual.items() if name in fields}
    request: Message = kind(**arguments[method])
    return request


@pytest.mark.parametrize("method", [*_METHODS, *_ASKED])
async def test_no_message_is_answered_with_an_internal_error(method: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    config = configuration(worker_policy={"group_realization": {"enabled": True}})
    async with serving(config) as store:
        await ready(store, "model")
        await upsert(store, "k", "model")
        begun = await store.catalog.BeginOrJoinGroupRealization(joining())
        for _ in range(MESSAGES_PER_CALL):
            request: Any = base(method, begun.transaction_id, store.info.cluster_id)
            scramble(rng, request, rng.choice([0.05, 0.2, 0.6]))
            if method == "WaitGroupRealizationPublished":
                request.ClearField("deadline_unix_nanos")
            with trio.fail_after(30):
                code = await code_of(store, method, request)
            assert code in EXPECTED, f"{code} for {request}"
        # And the server is as well as before.
        await ready(store, "another")
        await check_invariants(store)


# Every column in which an artifact id is kept.
_IDS = """
SELECT artifact_id FROM artifacts UNION SELECT from_artifact_id FROM artifact_bindings
UNION SELECT to_artifact_id FROM artifact_bindings UNION SELECT artifact_id FROM disk_locations
UNION SELECT artifact_id FROM selections
"""


async def check_invariants(store: Serving) -> None:
    """What holds of the catalog at all times, as the contract lists it."""
    for digest, data in await store.read("SELECT index_digest, index_data FROM tensor_indexes"):
        assert hashlib.sha256(data).digest() == digest
    described = "SELECT artifact_id, index_multihash, data_multihash FROM artifacts"
    for artifact_id, *multihashes in await store.read(described):
        if scheme_of(artifact_id) is Scheme.MI2:
            assert digests_of(artifact_id) in {None, tuple(multihashes)}
    schemes = {scheme_of(artifact_id) for (artifact_id,) in await store.read(_IDS)}
    assert not schemes & {Scheme.MSA1, Scheme.BYTE_ARTIFACT}
    ended = "SELECT count(*) FROM group_transactions WHERE (state >= 5) != (ended_at IS NOT NULL)"
    assert await store.read(ended) == [(0,)]
    incomplete = (
        "SELECT count(*) FROM group_transactions t WHERE state = 5 AND (prepared_count !="
        " total_parts OR prepared_count != (SELECT count(*) FROM group_members m"
        " WHERE m.transaction_key = t.transaction_key AND is_prepared))"
    )
    assert await store.read(incomplete) == [(0,)]


async def code_of(store: Serving, method: str, request: Any) -> StatusCode:
    service = store.catalog
    if method in _ASKED:
        service = store.operators
    try:
        await getattr(service, method)(request)
    except purerpc.RpcFailedError as error:
        code: StatusCode = error.status.status_code
        return code
    return StatusCode.OK
