"""RegisterGroupVersionSet, and version sets as messages."""

from collections.abc import Iterable
from typing import cast

import trio

from globalstore.api.catalog.realization_calls import group_call
from globalstore.api.context import Application, Encoded
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

# Larger sets are written when nobody else waits: thousands of parts take the writer some 50 ms.
_BULK_PARTS = 200

# Description of a part that is kept: what a scheduler says of a rank is a small part of this.
_METADATA_BYTES_MAX = 64 << 10

# Hashes that makers of selections give: several times the longest digest in use.
_HASH_BYTES_MAX = 1024

_SPACES = {
    common.BYTE_SPACE_KIND_CANONICAL: rules.CANONICAL_SPACE,
    common.BYTE_SPACE_KIND_VIEW: rules.VIEW_SPACE,
}
_SPACE_KINDS = {number: kind for kind, number in _SPACES.items()}
KINDS = {
    RealizationKind.SAME_SELECTION: wire.GROUP_REALIZATION_KIND_SAME_SELECTION,
    RealizationKind.PER_PART_SELECTION: wire.GROUP_REALIZATION_KIND_PER_PART_SELECTION,
}


class VersionSetsFace:
    """The call by which a version for a whole group is recorded."""

    app: Application

    @group_call("register")
    async def RegisterGroupVersionSet(  # noqa: N802
        self, input_message: wire.RegisterGroupVersionSetRequest, request: Call
    ) -> wire.RegisterGroupVersionSetResponse:
        """Record which selection each part of a group gets; moves no key."""
        count = len(input_message.parts)
        most = self.app.config.worker_policy.group_realization.max_parts_per_version_set
        if not count:
            raise InvalidArgument("parts is required: a version set has at least one part")
        if count > most:
            raise InvalidArgument(f"parts has {count} entries, expected at most {most}")
        described = Described(
            identifier("namespace", input_message.namespace),
            identifier("key", input_message.key),
            storable("key_generation", input_message.key_generation)
            if input_message.HasField("key_generation")
            else None,
        )
        apart = count > _PARTS_AT_ONCE
        if apart:
            self.app.slots.release(request)
            wanted = await trio.to_thread.run_sync(_manifest, input_message)
        else:
            wanted = _manifest(input_message)
        registered = await self.app.write(
            request,
            version_sets.register,
            wanted,
            described,
            self.app.wall_us(),
            lane=Lane.NORMAL if count <= _BULK_PARTS else Lane.BULK,
        )
        answer = (
            await trio.to_thread.run_sync(_answer, registered) if apart else _answer(registered)
        )
        return cast(wire.RegisterGroupVersionSetResponse, answer)


def selection(field: str, said: common.ArtifactSelection) -> Selection:
    """Return a checked selection; its ids without surrounding space, all else as sent."""
    artifact_id = stored(f"{field}.artifact_id", said.artifact_id)
    view_id = identifier(f"{field}.view_id", said.view_id)
    for name in ("selection_hash", "logical_layout_hash"):
        if len(getattr(said, name)) > _HASH_BYTES_MAX:
            raise InvalidArgument(f"{field}.{name} is longer than {_HASH_BYTES_MAX} bytes")
    if (artifact_id, view_id) != (said.artifact_id, said.view_id):
        kept = common.ArtifactSelection()
        kept.CopyFrom(said)
        kept.artifact_id, kept.view_id = artifact_id, view_id
        said = kept
    encoded = said.SerializeToString(deterministic=True)
    return Selection(
        encoded,
        artifact_id,
        view_id,
        said.selection_hash or rules.computed_hash(encoded),
        said.logical_layout_hash,
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


def _answer(registered: Manifest) -> Encoded:
    return Encoded(
        wire.RegisterGroupVersionSetResponse(
            status=wire.STATUS_OK,
            version_set=reference(registered.manifest_hash),
            realization_kind=KINDS[registered.kind],
            parts=map(part_message, registered.parts),
        )
    )


def _manifest(message: wire.RegisterGroupVersionSetRequest) -> Manifest:
    kind = next((k for k, number in KINDS.items() if number == message.realization_kind), None)
    if kind is None:
        raise InvalidArgument(
            f"realization_kind is {message.realization_kind}, expected SAME_SELECTION or"
            " PER_PART_SELECTION"
        )
    parts: dict[str, Part] = {}
    for number, said in enumerate(message.parts):
        part = _part(f"parts[{number}]", said)
        if part.part_id in parts:
            raise InvalidArgument(f"parts[{number}].part_id is {part.part_id[:80]!r} once more")
        parts[part.part_id] = part
    if kind is RealizationKind.SAME_SELECTION:
        _check_same(parts.values())
    return rules.manifest(kind, parts.values())


def _part(field: str, said: wire.GroupVersionSetPart) -> Part:
    part_id = required(f"{field}.part_id", said.part_id)
    chosen = selection(f"{field}.selection", said.selection)
    space = _space(f"{field}.requested_byte_space", said.requested_byte_space, chosen.view_id)
    if len(said.part_metadata_json.encode()) > _METADATA_BYTES_MAX:
        raise InvalidArgument(
            f"{field}.part_metadata_json is longer than {_METADATA_BYTES_MAX} bytes"
        )
    return Part(part_id, chosen, space, said.part_metadata_json)


def _space(field: str, said: common.ByteSpaceRef, view_id: str) -> ByteSpace:
    space_id = identifier(f"{field}.id", said.id)
    if not said.kind and not space_id:
        return rules.effective_space(ByteSpace(0, ""), view_id)
    if said.kind not in _SPACES:
        raise InvalidArgument(f"{field}.kind is {said.kind}, expected CANONICAL or VIEW")
    if said.kind == common.BYTE_SPACE_KIND_CANONICAL:
        if space_id:
            raise InvalidArgument(f"{field}: only a VIEW has an id")
    elif not space_id:
        raise InvalidArgument(f"{field}: requested_byte_space required: a VIEW has an id")
    elif view_id and space_id != view_id:
        raise InvalidArgument(f"{field}.id is {space_id[:80]!r}, but the selection's view is not")
    return ByteSpace(_SPACES[said.kind], space_id)


def _check_same(parts: Iterable[Part]) -> None:
    first, *others = parts
    if any(other.selection.encoded != first.selection.encoded for other in others):
        raise InvalidArgument("parts: SAME_SELECTION requires identical selections")
    if any(other.space != first.space for other in others):
        raise InvalidArgument("parts: SAME_SELECTION requires identical byte spaces")
