"""Requests about groups, with as little said as each test needs."""

from typing import Any

from servers import Serving, configuration

from globalstore.config import GlobalStoreConfig
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

OK, ERROR, NOT_FOUND = wire.STATUS_OK, wire.STATUS_ERROR, wire.STATUS_NOT_FOUND
TIMED_OUT = wire.STATUS_TIMED_OUT

PREPARING = wire.GROUP_REALIZATION_STATE_PREPARING
READY = wire.GROUP_REALIZATION_STATE_READY_TO_PUBLISH
PUBLISHED = wire.GROUP_REALIZATION_STATE_PUBLISHED
ABORTED = wire.GROUP_REALIZATION_STATE_ABORTED
EXPIRED = wire.GROUP_REALIZATION_STATE_EXPIRED

SAME = wire.GROUP_REALIZATION_KIND_SAME_SELECTION
PER_PART = wire.GROUP_REALIZATION_KIND_PER_PART_SELECTION
CANONICAL, VIEW = common.BYTE_SPACE_KIND_CANONICAL, common.BYTE_SPACE_KIND_VIEW

# The vectors of the contract.
SELECTION_HASH = bytes.fromhex("1ecdf2a54ee377fc72f638ed2ba91bb036f144a8cba50a331b1b30addf2dff35")
MANIFEST_HASH = bytes.fromhex("592afe97085c9c1100fcd2f59c72631f6d2cd720909f70289472c031b87ac062")
TRANSACTION = bytes.fromhex("4ae84452e9199d0511496d91bde9ce29664340f140038d8e65ee77bfc964b214")
MEMBER = bytes.fromhex("fc8b24579c3aa188496771717470885f4bc6739ae67d4af3257aa3b5b50f3067")

CODES = {0: "", OK: "OK"}


def on(**policy: Any) -> GlobalStoreConfig:
    """A configuration with groups switched on."""
    return configuration(worker_policy={"group_realization": {"enabled": True} | policy})


EXPLICIT = "GROUP_PUBLISH_AUTHORITY_MODE_COORDINATOR_EXPLICIT"


def selection(artifact_id: str = "aid-shared", **fields: Any) -> Any:
    return common.ArtifactSelection(artifact_id=artifact_id, **fields)


def part(part_id: str, chosen: Any = None, space: Any = None, **fields: Any) -> Any:
    made = wire.GroupVersionSetPart(part_id=part_id, **fields)
    made.selection.CopyFrom(selection() if chosen is None else chosen)
    if space is not None:
        made.requested_byte_space.CopyFrom(space)
    return made


async def register(store: Serving, *parts: Any, kind: int = SAME, **fields: Any) -> Any:
    given = [part(each) if isinstance(each, str) else each for each in parts]
    return await store.catalog.RegisterGroupVersionSet(
        wire.RegisterGroupVersionSetRequest(realization_kind=kind, parts=given, **fields)
    )


def by_key(key: str = "k", **fields: Any) -> Any:
    return wire.VersionReference(key_reference=wire.KeyVersionReference(key=key, **fields))


def by_set(version_set_id: str, **fields: Any) -> Any:
    reference = wire.GroupVersionSetRef(version_set_id=version_set_id, **fields)
    return wire.VersionReference(explicit_version_set=reference)


def by_selection(chosen: Any = None) -> Any:
    return wire.VersionReference(explicit_selection=selection() if chosen is None else chosen)


def joining(part_id: str = "0", version: Any = None, parts: Any = "01", **fields: Any) -> Any:
    """A request to begin or join; what concerns the context may be given by its own names."""
    context = {
        "group_kind": "tp_serving",
        "group_id": "g1",
        "epoch": 7,
        "part_id": part_id,
        "required_part_ids": list(parts),
        "total_parts": len(set(parts)),
    }
    context |= {name: fields.pop(name) for name in list(fields) if name in context}
    return wire.BeginOrJoinGroupRealizationRequest(
        version=by_selection() if version is None else version,
        context=wire.GroupRealizationContext(**context),
        **fields,
    )


async def join(store: Serving, *positional: Any, **fields: Any) -> Any:
    return await store.catalog.BeginOrJoinGroupRealization(joining(*positional, **fields))


STAGED = {"binding_id": "b1", "binding_value_id": "v1", "staging_token": "t1", "staging_epoch": 1}


def reporting(transaction_id: str, part_id: str = "0", **fields: Any) -> Any:
    staged = STAGED | fields.pop("staged", {})
    return wire.ReportGroupRealizationPreparedRequest(
        transaction_id=transaction_id,
        part_id=part_id,
        staged_value=wire.StagedBindingValueRef(**staged),
        **fields,
    )


async def report(store: Serving, transaction_id: str, part_id: str = "0", **fields: Any) -> Any:
    return await store.catalog.ReportGroupRealizationPrepared(
        reporting(transaction_id, part_id, **fields)
    )


async def publish(store: Serving, transaction_id: str, **fields: Any) -> Any:
    return await store.catalog.PublishGroupRealization(
        wire.PublishGroupRealizationRequest(transaction_id=transaction_id, **fields)
    )


async def wait(store: Serving, transaction_id: str, wait_s: float | None = None) -> tuple[int, int]:
    """Wait for the end; None polls. Return status and state."""
    nanos = 0 if wait_s is None else store.components.clock.wall_us() * 1000 + round(wait_s * 1e9)
    answer = await store.catalog.WaitGroupRealizationPublished(
        wire.WaitGroupRealizationPublishedRequest(
            transaction_id=transaction_id, deadline_unix_nanos=nanos
        )
    )
    return answer.status, answer.state


async def abort(store: Serving, transaction_id: str, **fields: Any) -> Any:
    return await store.catalog.AbortGroupRealization(
        wire.AbortGroupRealizationRequest(transaction_id=transaction_id, **fields)
    )


async def show(store: Serving, transaction_id: str) -> Any:
    return await store.catalog.GetGroupRealization(
        wire.GetGroupRealizationRequest(transaction_id=transaction_id)
    )


async def begun(store: Serving, parts: str = "01", **fields: Any) -> str:
    """Begin and let every part join; return the transaction id."""
    for each in parts:
        answer = await join(store, each, parts=parts, **fields)
    return str(answer.transaction_id)


async def published(store: Serving, parts: str = "01", **fields: Any) -> str:
    transaction_id = await begun(store, parts, **fields)
    for each in parts:
        await report(store, transaction_id, each)
    return transaction_id
