"""RegisterGroupVersionSet, and version sets as messages."""

from collections.abc import Iterable
from typing import cast

import trio

from globalstore.api.catalog.realization_calls import realization_call
from globalstore.api.context import Handlers
from globalstore.api.encoding import Joined
from globalstore.db import Lane
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import version_sets
from globalstore.registry.catalog.version_sets import Described
from globalstore.rpc import Call
from globalstore.rules import realizations as rules
from globalstore.rules.artifact_ids import stored
from globalstore.rules.realizations import ByteSpace, Manifest, Part, RealizationKind, Selection
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import identifier, required, storable

# Sets of more parts are put together in a thread: some 20 µs a part.
_PARTS_AT_ONCE = 32

# Larger sets are written when no other operation waits: thousands of parts take it some 50 ms.
_BULK_PARTS = 200

_SPACES = {
    common.BYTE_SPACE_KIND_CANONICAL: rules.CANONICAL_SPACE,
    common.BYTE_SPACE_KIND_VIEW: rules.VIEW_SPACE,
}
_SPACE_KINDS = {number: kind for kind, number in _SPACES.items()}
KINDS = {
    RealizationKind.SAME_SELECTION: wire.GROUP_REALIZATION_KIND_SAME_SELECTION,
    RealizationKind.PER_PART_SELECTION: wire.GROUP_REALIZATION_KIND_PER_PART_SELECTION,
}


class VersionSetHandlers(Handlers):
    """The call by which a version set is recorded."""

    @realization_call("register")
    async def RegisterGroupVersionSet(
        self, message: wire.RegisterGroupVersionSetRequest, request: Call
    ) -> wire.RegisterGroupVersionSetResponse:
        """Record which selection each part gets; moves no key."""
        count = len(message.parts)
        if not count:
            raise InvalidArgument("parts is required: a version set has at least one part")
        described = Described(
            identifier("namespace", message.namespace),
            identifier("key", message.key),
            storable("key_generation", message.key_generation)
            if message.HasField("key_generation")
            else None,
        )
        apart = count > _PARTS_AT_ONCE
        if apart:
            self.context.handler_slots.release(request)
            wanted = await trio.to_thread.run_sync(_manifest, message)
        else:
            wanted = _manifest(message)
        registered = await self.context.write(
            request,
            version_sets.register_version_set,
            wanted,
            described,
            self.context.clock.wall_us(),
            lane=Lane.NORMAL if count <= _BULK_PARTS else Lane.BULK,
        )
        answer = (
            await trio.to_thread.run_sync(_answer, registered) if apart else _answer(registered)
        )
        return cast(wire.RegisterGroupVersionSetResponse, answer)


def selection(field: str, message: common.ArtifactSelection) -> Selection:
    """Return a checked selection; its ids without surrounding space, all else as sent."""
    artifact_id = stored(f"{field}.artifact_id", message.artifact_id)
    view_id = identifier(f"{field}.view_id", message.view_id)
    if (artifact_id, view_id) != (message.artifact_id, message.view_id):
        kept = common.ArtifactSelection()
        kept.CopyFrom(message)
        kept.artifact_id, kept.view_id = artifact_id, view_id
        message = kept
    encoded = message.SerializeToString(deterministic=True)
    return Selection(
        encoded,
        artifact_id,
        view_id,
        message.selection_hash or rules.computed_hash(encoded),
        message.logical_layout_hash,
    )


def of_artifact(artifact_id: str) -> Selection:
    """Return the selection of a whole artifact."""
    return selection("selection", common.ArtifactSelection(artifact_id=artifact_id))


def reference(manifest_hash: bytes) -> wire.GroupVersionSetRef:
    """Return the message that names a set."""
    return wire.GroupVersionSetRef(
        version_set_id=rules.VERSION_SET_PREFIX + manifest_hash.hex(),
        manifest_hash=manifest_hash,
        manifest_generation=1,
    )


def part_message(part: Part) -> wire.GroupVersionSetPart:
    """Return a part as the wire has it."""
    return wire.GroupVersionSetPart(
        part_id=part.part_id,
        selection=common.ArtifactSelection.FromString(part.selection.encoded),
        requested_byte_space=common.ByteSpaceRef(
            kind=_SPACE_KINDS[part.space.kind], id=part.space.id
        ),
        selection_hash=part.selection.selection_hash,
        logical_layout_hash=part.selection.logical_layout_hash,
        part_metadata_json=part.metadata_json,
    )


def _answer(registered: Manifest) -> Joined:
    answer = Joined()
    answer.add(
        wire.RegisterGroupVersionSetResponse(
            status=wire.STATUS_OK,
            version_set=reference(registered.manifest_hash),
            realization_kind=KINDS[registered.kind],
        )
    )
    for part in registered.parts:
        answer.add(wire.RegisterGroupVersionSetResponse(parts=[part_message(part)]))
    return answer


def _manifest(message: wire.RegisterGroupVersionSetRequest) -> Manifest:
    kind = next((k for k, number in KINDS.items() if number == message.realization_kind), None)
    if kind is None:
        raise InvalidArgument(
            f"realization_kind is {message.realization_kind}, expected SAME_SELECTION or"
            " PER_PART_SELECTION"
        )
    parts: dict[str, Part] = {}
    for number, entry in enumerate(message.parts):
        part = _part(f"parts[{number}]", entry)
        if part.part_id in parts:
            raise InvalidArgument(f"parts[{number}].part_id is {part.part_id[:80]!r} once more")
        parts[part.part_id] = part
    if kind is RealizationKind.SAME_SELECTION:
        _check_same(parts.values())
    return rules.manifest(kind, parts.values())


def _part(field: str, message: wire.GroupVersionSetPart) -> Part:
    part_id = required(f"{field}.part_id", message.part_id)
    chosen = selection(f"{field}.selection", message.selection)
    space = _space(f"{field}.requested_byte_space", message.requested_byte_space, chosen.view_id)
    return Part(part_id, chosen, space, message.part_metadata_json)


def _space(field: str, message: common.ByteSpaceRef, view_id: str) -> ByteSpace:
    space_id = identifier(f"{field}.id", message.id)
    if not message.kind and not space_id:
        return rules.effective_space(ByteSpace(0, ""), view_id)
    if message.kind not in _SPACES:
        raise InvalidArgument(f"{field}.kind is {message.kind}, expected CANONICAL or VIEW")
    if message.kind == common.BYTE_SPACE_KIND_CANONICAL:
        if space_id:
            raise InvalidArgument(f"{field}: only a VIEW has an id")
    elif not space_id:
        raise InvalidArgument(f"{field}: requested_byte_space required: a VIEW has an id")
    elif view_id and space_id != view_id:
        raise InvalidArgument(f"{field}.id is {space_id[:80]!r}, but the selection's view is not")
    return ByteSpace(_SPACES[message.kind], space_id)


def _check_same(parts: Iterable[Part]) -> None:
    first, *others = parts
    if any(other.selection.encoded != first.selection.encoded for other in others):
        raise InvalidArgument("parts: SAME_SELECTION requires identical selections")
    if any(other.space != first.space for other in others):
        raise InvalidArgument("parts: SAME_SELECTION requires identical byte spaces")
