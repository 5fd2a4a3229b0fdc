"""UpsertArtifactMetadata, GetArtifactIndex, GetArtifactIndexById."""

import re
from collections.abc import Callable
from typing import TypeVar

from globalstore.api.context import Handlers
from globalstore.db import Lane, Snapshot, Transaction
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry import artifacts
from globalstore.registry.artifacts import INDEX_ENCODING, Description, Larger, TensorIndex
from globalstore.rpc import Call
from globalstore.rules import descriptors, multihash
from globalstore.rules.artifact_ids import Scheme, described, digests_of, looked_up, scheme_of
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument
from globalstore.rules.values import INTEGER_MAX, identifier, required, storable

# Longer indexes are written when no other operation waits: 1 MiB takes some milliseconds.
_BULK_BYTES = 1 << 20

# Answers up to this size are made at once; see ``Call.large_answer``.
_READ_AT_ONCE_BYTES = 1 << 20

Name = TypeVar("Name")

_INDEX_KEY = re.compile(r"[0-9a-f]{64}")


class ArtifactHandlers(Handlers):
    """The calls by which artifacts are described, and their indexes read."""

    async def UpsertArtifactMetadata(
        self, message: wire.UpsertArtifactMetadataRequest, request: Call
    ) -> wire.UpsertArtifactMetadataResponse:
        """Store the description of an artifact, with its index; nothing known is erased."""
        if not message.HasField("descriptor"):
            raise InvalidArgument("descriptor is required")
        descriptor, data = message.descriptor, message.canonical_index_data
        # Both are required before anything about them is checked.
        required("descriptor.artifact_id", descriptor.artifact_id)
        required("descriptor.index_multihash", descriptor.index_multihash)
        if not data:
            raise InvalidArgument("canonical_index_data is required")
        digest = await self.context.index_checks.digest(request, data)
        artifact_id, description = _described(descriptor, digest)
        if description.encoding in {"", INDEX_ENCODING}:
            await self.context.index_checks.check_object(request, "canonical_index_data", data)
        if description.data_multihash and scheme_of(artifact_id) is Scheme.CGID:
            raise InvalidArgument("descriptor.data_multihash is set, but a cgid id has none")
        index = TensorIndex(data, digest, description.encoding, description.schema_version)
        now_us = self.context.clock.wall_us()

        def store(tx: Transaction) -> None:
            artifacts.ensure_artifact(tx, artifact_id, description, index, now_us)

        lane = Lane.NORMAL if len(data) <= _BULK_BYTES else Lane.BULK
        await self.context.write(request, store, lane=lane)
        return wire.UpsertArtifactMetadataResponse(status=wire.STATUS_OK)

    async def GetArtifactIndex(
        self, message: wire.GetArtifactIndexRequest, request: Call
    ) -> wire.GetArtifactIndexResponse:
        """Return the index with a digest."""
        key = required("tensor_index_key", message.tensor_index_key)
        if not _INDEX_KEY.fullmatch(key):
            return wire.GetArtifactIndexResponse(status=wire.STATUS_NOT_FOUND)
        index = await self._index(request, artifacts.index_of_key, bytes.fromhex(key))
        if index is None:
            return wire.GetArtifactIndexResponse(status=wire.STATUS_NOT_FOUND)
        return wire.GetArtifactIndexResponse(
            status=wire.STATUS_OK,
            tensor_index_data=index.data,
            encoding=index.encoding,
            schema_version=index.schema_version,
        )

    async def GetArtifactIndexById(
        self, message: wire.GetArtifactIndexByIdRequest, request: Call
    ) -> wire.GetArtifactIndexByIdResponse:
        """Return the index of an artifact; a sealed assembly is not followed to its target."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        index = await self._index(request, artifacts.index_of_artifact, artifact_id)
        if index is None:
            return wire.GetArtifactIndexByIdResponse(status=wire.STATUS_NOT_FOUND)
        return wire.GetArtifactIndexByIdResponse(
            status=wire.STATUS_OK,
            tensor_index_data=index.data,
            encoding=index.encoding,
            schema_version=index.schema_version,
        )

    async def _index(
        self,
        call: Call,
        query: Callable[[Snapshot, Name, int], TensorIndex | Larger | None],
        name: Name,
    ) -> TensorIndex | None:
        """Return an index; large ones are read in turns, so that unread answers do not pile up."""
        index = await self.context.read(query, name, _READ_AT_ONCE_BYTES)
        if isinstance(index, Larger):
            self.context.handler_slots.release(call)
            await call.large_answer()
            index = await self.context.read(query, name, INTEGER_MAX)
        assert not isinstance(index, Larger), "nothing is larger than the largest integer"
        return index


def _described(descriptor: common.ArtifactDescriptor, digest: bytes) -> tuple[str, Description]:
    """Return the id and its description, checked in the order of the contract.

    ``digest`` is the SHA-256 of the index.
    """
    artifact_id = described("descriptor.artifact_id", descriptor.artifact_id)
    index_multihash = descriptor.index_multihash.strip()
    data_multihash = identifier("descriptor.data_multihash", descriptor.data_multihash)
    if multihash.decode("descriptor.index_multihash", index_multihash) != digest:
        raise FailedPrecondition(
            "descriptor.index_multihash is not the SHA-256 of canonical_index_data"
        )
    of_id = digests_of(artifact_id)
    if of_id is not None:
        if index_multihash != of_id[0]:
            raise FailedPrecondition("descriptor.index_multihash is not that of the artifact id")
        if data_multihash not in {"", of_id[1]}:
            raise FailedPrecondition("descriptor.data_multihash is not that of the artifact id")
    elif data_multihash:
        multihash.decode("descriptor.data_multihash", data_multihash)
    encoding = identifier("descriptor.encoding", descriptor.encoding)
    return artifact_id, Description(
        index_multihash,
        data_multihash,
        identifier("descriptor.schema_version", descriptor.schema_version),
        encoding,
        storable("descriptor.total_size", descriptor.total_size),
        descriptors.id_kind(artifact_id, descriptor.id_kind),
    )
