"""RegisterReplica, UnregisterReplica, ListReplicasV2, BatchGetReplicaCounts."""

import base64
import binascii
import hashlib
import struct

from globalstore.api.bounds.fields import COUNTED_IDS_MAX
from globalstore.api.context import Handlers
from globalstore.api.encoding import token
from globalstore.api.room import PAGE_BYTES_MAX, add_page
from globalstore.api.runtime import memory_info
from globalstore.api.turns import in_turns
from globalstore.db import Transaction
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.artifacts import INDEX_SCHEMA, Description, TensorIndex
from globalstore.registry.idempotency import Basis
from globalstore.registry.new_ids import new_id
from globalstore.registry.runtime import replica_lists, replicas
from globalstore.registry.runtime.replica_lists import Filters
from globalstore.registry.runtime.replica_rows import Replica
from globalstore.registry.runtime.replicas import ReplicaRegistration
from globalstore.rpc import Call
from globalstore.rules import descriptors
from globalstore.rules.artifact_ids import looked_up, stored
from globalstore.rules.refusals import InvalidArgument, Refusal
from globalstore.rules.values import existing, identifier, positive, storable, uuid_bytes, uuid_text

_PAGE_SIZE = 100
# A page of this many replicas is about 300 kB, well below what common clients accept.
_PAGE_SIZE_MAX = 1000
# Records that are made before other calls get a turn: less than a millisecond of the event loop.
_RECORDS_PER_TURN = 50
# Ids to count that are taken in, or answered, before other calls get a turn: some 0.5 ms.
_IDS_PER_TURN = 500


class ReplicaHandlers(Handlers):
    """The calls by which daemons register replicas, and all clients list and count them."""

    async def RegisterReplica(
        self, message: wire.RegisterReplicaRequest, request: Call
    ) -> wire.RegisterReplicaResponse:
        """Store a replica or refresh the one with the same identity."""
        schema_version = message.schema_version.strip()
        if schema_version not in {"", INDEX_SCHEMA}:
            raise InvalidArgument(
                f"schema_version is {schema_version[:40]!r}, expected {INDEX_SCHEMA}"
            )
        artifact_id = _effective_artifact_id(message)
        index_data, checks = message.tensor_index_data, self.context.index_checks
        digest = b""
        if index_data:
            digest = await checks.digest(request, index_data)
        repeat = await checks.beside(
            request,
            index_data,
            lambda: token(message, "RegisterReplica", message.client_request_id),
        )
        now_us = self.context.clock.wall_us()
        proposed_id = new_id()
        if repeat is None:
            registration = _registration(artifact_id, message, digest)
            replica_id = await self.context.write(
                request, replicas.register_replica, registration, proposed_id, now_us
            )
            return _registered(artifact_id, replica_id)
        checked: ReplicaRegistration | Refusal
        try:
            checked = _registration(artifact_id, message, digest)
        except Refusal as refused:
            checked = refused

        def act(tx: Transaction) -> bytes:
            if isinstance(checked, Refusal):
                raise checked
            return replicas.register_replica(tx, checked, proposed_id, now_us)

        reply = await self.context.once(
            request,
            repeat,
            act,
            lambda id_: _registered(artifact_id, id_),
            _basis(message.worker_id.strip()),
            now_us,
        )
        return wire.RegisterReplicaResponse.FromString(reply.body)

    async def UnregisterReplica(
        self, message: wire.UnregisterReplicaRequest, request: Call
    ) -> wire.UnregisterReplicaResponse:
        """Delete a replica; its transports stay open."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        replica_id = uuid_bytes("replica_id", message.replica_id)
        found = await self.context.write(
            request, replicas.unregister_replica, artifact_id, replica_id
        )
        return wire.UnregisterReplicaResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND
        )

    async def ListReplicasV2(
        self, message: wire.ListReplicasV2Request, request: Call
    ) -> wire.ListReplicasV2Response:
        """List replicas page by page, in the order of their registration."""
        filters = _filters(message)
        size = message.pagination.page_size or _PAGE_SIZE
        after = _after(message.pagination.page_token, filters)
        page = await self.context.read(
            replica_lists.page, filters, after, min(size, _PAGE_SIZE_MAX), PAGE_BYTES_MAX
        )
        response = wire.ListReplicasV2Response(page_info=common.PageInfo(total_size=page.total))
        count = await add_page(response.replicas, page.replicas, _record, _RECORDS_PER_TURN)
        if count < len(page.replicas) or not page.is_last:
            response.page_info.next_page_token = _page_token(page.replicas[count - 1].seq, filters)
        return response

    async def BatchGetReplicaCounts(
        self, message: wire.BatchGetReplicaCountsRequest, request: Call
    ) -> wire.BatchGetReplicaCountsResponse:
        """Count replicas, and the available ones of them, for many artifacts."""
        named: dict[str, None] = {}
        async for turn in in_turns(message.artifact_ids, _IDS_PER_TURN):
            named.update(dict.fromkeys(filter(None, map(str.strip, turn))))
        ids = list(named)
        if len(ids) > COUNTED_IDS_MAX:
            raise InvalidArgument(
                f"artifact_ids has {len(ids)} ids, expected at most {COUNTED_IDS_MAX}"
            )
        counts = await self.context.read(replica_lists.counts, ids) if ids else []
        answer = wire.BatchGetReplicaCountsResponse(status=wire.STATUS_OK)
        async for pairs in in_turns(zip(ids, counts, strict=True), _IDS_PER_TURN):
            for artifact_id, (all_, available) in pairs:
                answer.counts.add(
                    artifact_id=artifact_id, replica_count=all_, available_count=available
                )
        return answer


def _record(replica: Replica) -> wire.ArtifactReplicaRecord:
    return wire.ArtifactReplicaRecord(
        artifact_id=replica.artifact_id, memory_info=memory_info.to_message(replica)
    )


def _effective_artifact_id(message: wire.RegisterReplicaRequest) -> str:
    plain = identifier("artifact_id", message.artifact_id)
    described = identifier("descriptor.artifact_id", message.descriptor.artifact_id)
    if plain and described and plain != described:
        raise InvalidArgument("artifact_id differs from descriptor.artifact_id")
    return described or plain


def _registration(
    artifact_id: str, message: wire.RegisterReplicaRequest, index_digest: bytes
) -> ReplicaRegistration:
    artifact_id = stored("artifact_id", artifact_id)
    info = message.mem_info
    view_id = memory_info.view_of("mem_info.byte_space", info.byte_space)
    if not view_id and info.byte_space.id.strip():
        raise InvalidArgument("mem_info.byte_space: only a VIEW has an id")
    place = memory_info.place(info)
    memory_size = positive("mem_info.memory_size", info.memory_size)
    max_concurrency = positive("max_concurrency", message.max_concurrency)
    worker_id = existing("worker_id", message.worker_id)
    index = None
    if message.tensor_index_data:
        encoding = identifier("encoding", message.encoding)
        index = TensorIndex(message.tensor_index_data, index_digest, encoding)
    return ReplicaRegistration(
        artifact_id=artifact_id,
        view_id=view_id,
        place=place,
        memory_size=memory_size,
        max_concurrency=max_concurrency,
        worker_id=worker_id,
        transfer=memory_info.reported_transfer(info),
        tensor_index_key=_tensor_index_key(info.tensor_index_key, index),
        is_memory_replica=info.is_memory_replica,
        source_process_id=identifier("mem_info.source_process_id", info.source_process_id),
        expires_at_us=memory_info.expires_at_us(info),
        description=_description(artifact_id, message),
        index=index,
    )


def _tensor_index_key(given: str, index: TensorIndex | None) -> str:
    key = identifier("mem_info.tensor_index_key", given)
    if index is None:
        return key
    of_bytes = index.digest.hex()
    if key and key != of_bytes:
        raise InvalidArgument(
            "mem_info.tensor_index_key is not the SHA-256 of tensor_index_data in lower-case hex"
        )
    return of_bytes


def _description(artifact_id: str, message: wire.RegisterReplicaRequest) -> Description | None:
    if not message.HasField("descriptor"):
        return None
    descriptor = message.descriptor
    index_multihash = identifier("descriptor.index_multihash", descriptor.index_multihash)
    data_multihash = identifier("descriptor.data_multihash", descriptor.data_multihash)
    descriptors.check(artifact_id, index_multihash, data_multihash)
    return Description(
        index_multihash,
        data_multihash,
        identifier("descriptor.schema_version", descriptor.schema_version),
        identifier("descriptor.encoding", descriptor.encoding),
        storable("descriptor.total_size", descriptor.total_size),
        descriptors.id_kind(artifact_id, descriptor.id_kind),
    )


def _registered(artifact_id: str, replica_id: bytes) -> wire.RegisterReplicaResponse:
    return wire.RegisterReplicaResponse(
        status=wire.STATUS_OK, artifact_id=artifact_id, replica_id=uuid_text(replica_id)
    )


def _basis(worker_id: str) -> Basis:
    """Return what an answer rests on: its replica, in the same generation of the worker."""

    def holds(tx: Transaction, reply: bytes, generation: int) -> bool:
        answer = wire.RegisterReplicaResponse.FromString(reply)
        replica_id = uuid_bytes("replica_id", answer.replica_id)
        return replicas.is_held_by(tx, replica_id, worker_id, generation)

    return Basis(lambda tx: replicas.worker_generation(tx, worker_id), holds)


def _filters(message: wire.ListReplicasV2Request) -> Filters:
    tier = None
    if message.memory_type != common.MEMORY_TYPE_UNSPECIFIED:
        tier = memory_info.memory_tier("memory_type", message.memory_type)
    return Filters(
        artifact_id=message.artifact_id.strip() or None,
        node_id=message.node_id.strip() or None,
        node_address=message.node_address.strip() or None,
        memory_tier=tier,
        device_id=message.device_id if message.HasField("device_id") else None,
    )


_TOKEN = struct.Struct(">q8s")


def _digest(filters: Filters) -> bytes:
    return hashlib.blake2b(repr(filters).encode(), digest_size=8).digest()


def _page_token(seq: int, filters: Filters) -> str:
    """Return a token that continues after a replica, for the same filters only."""
    return base64.urlsafe_b64encode(_TOKEN.pack(seq, _digest(filters))).decode().rstrip("=")


def _after(page_token: str, filters: Filters) -> int:
    if not page_token:
        return 0
    try:
        raw = base64.b64decode(page_token + "=" * (-len(page_token) % 4), b"-_", validate=True)
        seq, digest = _TOKEN.unpack(raw)
    except (binascii.Error, ValueError, struct.error):
        raise InvalidArgument(
            "pagination.page_token is not one that a list call returned"
        ) from None
    if digest != _digest(filters):
        raise InvalidArgument("pagination.page_token was made for other filters")
    after: int = seq
    return after
