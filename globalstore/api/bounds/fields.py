"""The bounds of every field of every request, each with its reason.

A string is bounded as an id is unless it is named here; every bytes field and every list must be
named. What stands here is checked before a handler runs, and handlers do not check it again; they
refuse what is blank, malformed or longer than the thing itself may be, never more than is allowed
here.
"""

from collections.abc import Mapping
from operator import attrgetter

import attrs

from globalstore.config import GlobalStoreConfig
from globalstore.rules.refusals import InvalidArgument, Refusal, ResourceExhausted
from globalstore.rules.values import TEXT_BYTES_MAX


@attrs.frozen
class Bound:
    """A bound and why it is what it is.

    ``most`` is of bytes for a string, bytes or message, of entries for a list or map. ``key`` is
    the setting that has the number; ``most`` is its default then. ``refusal`` is what more is
    answered with.
    """

    most: int
    reason: str
    key: str = ""
    refusal: type[Refusal] = InvalidArgument

    def under(self, config: GlobalStoreConfig) -> "Bound":
        """Return this bound as configured."""
        return attrs.evolve(self, most=attrgetter(self.key)(config)) if self.key else self


# What handlers share with bounds: different ids, all labels together, what is kept of a text.
COUNTED_IDS_MAX = 10_000
LABEL_BYTES_MAX = 4096
DETAIL_CHARACTERS_MAX = 4096

TEXT = Bound(
    2 * TEXT_BYTES_MAX,
    f"An id, key, address or path of {TEXT_BYTES_MAX} bytes, and white space around it.",
)

_FREE_TEXT = Bound(
    1 << 20,
    f"The end of a trace. The first {DETAIL_CHARACTERS_MAX} characters are kept; a report of how"
    " something ended must not fail for its length.",
)
_DISK_PATH = Bound(
    8192, "Ignored. A path has up to 4096 bytes on Linux, and in URIs some are escaped."
)
_MEMORY_KEY = Bound(
    64 << 10, "Descriptors of registered memory have some hundred bytes, or some thousand."
)
_VERIFICATION = Bound(
    512 << 10, "Checksums by which a receiver verifies what it read; goes out with every claim."
)
_TENSOR_NAME = Bound(
    4096, "Data, never stripped: module paths of models have some hundred bytes at most."
)
_INDEX = Bound(
    16 << 20,
    "Some 200 000 tensors.",
    key="registration.max_index_bytes",
    refusal=ResourceExhausted,
)
_ABOUT_TENSORS = attrs.evolve(
    _INDEX, reason="Speaks of the tensors of one index; as long as that may be."
)
_READABLE_LAYOUT = Bound(1 << 20, "For people only; goes out with every look at the layout.")
_HASH = Bound(1024, "Several times the longest digest in use.")
_CAPABILITY = Bound(16 << 10, "A signed token; common ones have some kilobytes.")
_OPAQUE_RECORD = Bound(
    2 << 20, "Kept and given back whole: with its ids it fits what stock clients take."
)
_SNAPSHOT = Bound(1 << 20, "Given back whole with its operation, the result beside the snapshot.")
_PROGRESS = Bound(64 << 10, "A line for people, given back whole with its operation.")
_LABEL = Bound(LABEL_BYTES_MAX, "All names and values of an instance together have no more.")
_PART_METADATA = Bound(64 << 10, "What a scheduler notes of a rank is a small part of this.")
_TIER_CONFIG = Bound(
    64 << 10,
    "Some keys and numbers, with room to spare. Up to 200 samples of every node carry one.",
)

_STORE = "tensorcast.global_store.v1."
_COMMON = "tensorcast.common.v1."
_LAYOUT = "tensorcast.layout.v1."
_OPERATION = "tensorcast.operation.v1."
_TIERS = "tensorcast.memory_tier.v1."

# Strings that are not bounded as ids are, and every bytes field. In bytes, of strings in UTF-8.
SIZES: Mapping[str, Bound] = {
    f"{_COMMON}MemoryInfo.remote_memory_keys": _MEMORY_KEY,
    f"{_COMMON}ReplicaTransportMetadata.remote_memory_keys": _MEMORY_KEY,
    f"{_COMMON}MemoryInfo.verification_json": _VERIFICATION,
    f"{_COMMON}ReplicaTransportMetadata.verification_json": _VERIFICATION,
    f"{_STORE}RegisterReplicaRequest.disk_path": _DISK_PATH,
    f"{_STORE}RegisterReplicaRequest.tensor_index_data": _INDEX,
    f"{_STORE}UpsertArtifactMetadataRequest.canonical_index_data": _INDEX,
    f"{_STORE}PutLayoutSpecRequest.canonical_index_data": _INDEX,
    f"{_STORE}PutLayoutSpecRequest.layout_json": _READABLE_LAYOUT,
    f"{_STORE}ViewUpsert.view_spec_json": _ABOUT_TENSORS,
    f"{_STORE}RegisterInstanceRequest.LabelsEntry.key": _LABEL,
    f"{_STORE}RegisterInstanceRequest.LabelsEntry.value": _LABEL,
    f"{_STORE}GroupVersionSetPart.part_metadata_json": _PART_METADATA,
    f"{_TIERS}MemoryTierStatus.memory_tier_config_json": _TIER_CONFIG,
    f"{_STORE}GroupPublishAuthority.capability_token": _CAPABILITY,
    f"{_OPERATION}OperationStatus.message": _PROGRESS,
    f"{_OPERATION}OperationError.message": _PROGRESS,
    "google.protobuf.Any.value": _SNAPSHOT,
    **dict.fromkeys(
        (
            f"{_STORE}MarkReplicaUnavailableRequest.reason",
            f"{_STORE}CompleteReplicaTransportRequest.outcome_detail",
            f"{_STORE}AbortGroupRealizationRequest.failure_detail",
            f"{_STORE}ReportPersistenceStatusRequest.last_error",
            f"{_STORE}ReportPersistenceStatusRequest.degraded_reason",
            f"{_STORE}PersistenceShardStatus.last_error",
            f"{_STORE}PersistenceShardStatus.degraded_reason",
            f"{_STORE}PlacementTarget.degraded_reason",
            f"{_TIERS}RevokeMemoryTierLeaseRequest.reason",
        ),
        _FREE_TEXT,
    ),
    **dict.fromkeys(
        (
            f"{_COMMON}ArtifactSelection.tensor_names",
            f"{_COMMON}ViewSpec.TensorsEntry.key",
            f"{_LAYOUT}LayoutSpec.TensorsEntry.key",
            f"{_STORE}PieceProofDigestWrite.tensor_name",
            f"{_STORE}TensorProofCommitmentWrite.tensor_name",
            f"{_STORE}CheckProofCommitmentsMatchRequest.tensor_names",
        ),
        _TENSOR_NAME,
    ),
    **dict.fromkeys(
        (
            f"{_COMMON}ArtifactSelection.logical_layout_hash",
            f"{_COMMON}ArtifactSelection.selection_hash",
            f"{_COMMON}ArtifactSelection.view_subset_hash",
            f"{_STORE}GroupVersionSetPart.selection_hash",
            f"{_STORE}GroupVersionSetPart.logical_layout_hash",
            f"{_STORE}GroupVersionSetRef.manifest_hash",
            f"{_STORE}BeginOrJoinGroupRealizationRequest.transaction_fingerprint",
            f"{_STORE}ReportGroupRealizationPreparedRequest.prepared_value_hash",
            f"{_STORE}ReportGroupRealizationPreparedRequest.member_fingerprint",
            f"{_STORE}LeafWrite.digest",
            f"{_STORE}PieceProofDigestWrite.digest",
            f"{_STORE}TensorProofCommitmentWrite.digest",
        ),
        _HASH,
    ),
    **dict.fromkeys(
        (
            f"{_STORE}AssemblyAttempt.attempt_record_proto",
            f"{_STORE}AssemblyReadinessCut.readiness_cut_proto",
        ),
        _OPAQUE_RECORD,
    ),
}

_BUFFERS = Bound(16_384, "A replica of 1 TiB in buffers of 64 MiB.")
_REPLICAS_OF_WORKER = Bound(262_144, "Beyond what any daemon holds: 100 000 is a large one.")
_CHUNK_IDS = Bound(100_000, "As many chunks as one report of chunks may have.")
_LEASES = Bound(
    10_000,
    "What the writer can do in half of the time for which it may keep others waiting; a daemon with"
    " more leases makes more calls.",
)
_TENSORS = Bound(262_144, "More than an index of 16 MiB can name.")
_OPS = Bound(64, "Steps from a tensor to its view: narrow and transpose, a few times.")
_STATES = Bound(64, "Several times as many states as there are.")
_DIGESTS = Bound(
    16_384,
    "One transaction that keeps nobody waiting for long.",
    key="limits.digest_writes.max_proof_digests_per_request",
    refusal=ResourceExhausted,
)

# Every list and map, in entries.
COUNTS: Mapping[str, Bound] = {
    f"{_STORE}ReconcileWorkerStateRequest.inventory": _REPLICAS_OF_WORKER,
    f"{_STORE}WorkerHeartbeatRequest.registered_artifact_ids": _REPLICAS_OF_WORKER,
    f"{_COMMON}MemoryInfo.remote_memory_keys": _BUFFERS,
    f"{_COMMON}MemoryInfo.buffer_sizes": _BUFFERS,
    f"{_COMMON}ReplicaTransportMetadata.remote_memory_keys": _BUFFERS,
    f"{_COMMON}ReplicaTransportMetadata.buffer_sizes": _BUFFERS,
    f"{_STORE}RegisterInstanceRequest.labels": Bound(
        64, "Several times what orchestrators put on a process."
    ),
    f"{_STORE}BatchGetReplicaCountsRequest.artifact_ids": Bound(
        10 * COUNTED_IDS_MAX, f"{COUNTED_IDS_MAX} different ids, of which repeats count once."
    ),
    f"{_STORE}BatchUpdateChunkStatesRequest.updates": Bound(100_000, "From the contract."),
    f"{_STORE}QueryChunkLocationsRequest.chunk_indices": Bound(
        250_000, "An artifact of 1 TiB in chunks of 4 MiB."
    ),
    f"{_STORE}BatchKeepaliveShardHomeLeasesRequest.leases": _LEASES,
    f"{_STORE}BatchGetShardHomeLeasesRequest.shard_ids": _LEASES,
    f"{_STORE}RegisterGroupVersionSetRequest.parts": Bound(
        4096,
        "Ranks of the largest group.",
        key="worker_policy.group_realization.max_parts_per_version_set",
    ),
    f"{_STORE}GroupRealizationContext.required_part_ids": Bound(
        1024,
        "Members of the largest realization.",
        key="worker_policy.group_realization.max_total_parts",
    ),
    f"{_COMMON}ArtifactSelection.tensor_names": _TENSORS,
    f"{_COMMON}ViewSpec.tensors": _TENSORS,
    f"{_LAYOUT}LayoutSpec.tensors": _TENSORS,
    f"{_STORE}CheckProofCommitmentsMatchRequest.tensor_names": _TENSORS,
    f"{_COMMON}TensorViewOps.ops": _OPS,
    f"{_LAYOUT}LayoutSpec.expected_view_ids": Bound(65_536, "A view of every rank, many times."),
    f"{_STORE}GetArtifactInfoByIdRequest.leaf_idxs": Bound(
        65_536, "From the contract: so many leaves fit an answer.", refusal=ResourceExhausted
    ),
    f"{_STORE}ViewUpsert.canonical_ranges": Bound(
        65_536, "From the contract.", refusal=ResourceExhausted
    ),
    f"{_STORE}UpdateArtifactViewStateRequest.leaf_writes": attrs.evolve(
        _DIGESTS, key="limits.digest_writes.max_leaf_writes_per_request"
    ),
    f"{_STORE}UpdateArtifactViewStateRequest.proof_digests": _DIGESTS,
    f"{_STORE}WriteTensorProofCommitmentsRequest.commitments": _DIGESTS,
    f"{_STORE}UpdateAssemblySlotOccupancyStateRequest.current_states": _STATES,
    f"{_STORE}ListAssemblySlotOccupanciesRequest.states": _STATES,
    f"{_TIERS}ListOutstandingLeasesRequest.states": _STATES,
    f"{_STORE}PlanPlacementRequest.shards": Bound(
        65_536, "One transaction that keeps nobody waiting for long."
    ),
    f"{_STORE}ReportPersistenceStatusRequest.shard_statuses": Bound(
        65_536, "As many shards as a plan may have."
    ),
    f"{_STORE}PlacementShard.chunk_ids": _CHUNK_IDS,
    f"{_STORE}PersistenceShardStatus.targets": Bound(
        64, "A plan gives a shard its source and one target."
    ),
    f"{_TIERS}RequestMemoryTierLeaseRequest.chunk_ids": _CHUNK_IDS,
    f"{_TIERS}AcknowledgeMemoryTierLeaseRequest.chunk_ids": _CHUNK_IDS,
}

# Messages within requests that come back whole in an answer, in bytes as serialized.
MESSAGES: Mapping[str, Bound] = {
    f"{_COMMON}MemoryInfo": Bound(
        3 << 19,
        "A claim's answer has the memory keys twice, in both forms of the contract, and still fits"
        " what stock clients take.",
    ),
    f"{_COMMON}ArtifactSelection": Bound(
        1 << 20, "Comes back to every member that joins; 10 000 tensors by name."
    ),
}
