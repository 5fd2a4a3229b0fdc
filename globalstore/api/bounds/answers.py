"""How large each answer can become, and why no client gets more than it takes or asked for.

An answer of some ids, numbers and digests is small, since everything stored came in by a bounded
request. Every other one is named here.
"""

import enum
from collections.abc import Mapping

_RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
_CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
_ASSEMBLY = "/tensorcast.global_store.v1.AssemblyViewService/"
_WORKFLOW = "/tensorcast.global_store.v1.WorkflowOrchestrationService/"
_TIERS = "/tensorcast.memory_tier.v1.MemoryTierService/"
_ADMIN = "/globalstore.admin.v1.AdminService/"


class Extent(enum.Enum):
    """What bounds an answer; the text is for the page of limits."""

    PAGE = "Ends after 1 MiB of entries, or at the page size; its token leads to the next page."
    CUT = "Ends after 1 MiB of entries, and says so by `is_truncated`."
    LIST = (
        "Refused with RESOURCE_EXHAUSTED above `server.limits.max_answer_bytes`, with advice how to"
        " ask for less."
    )
    LIMIT = (
        "Without a limit as a list; with one, the rows that were asked for, up to"
        " `server.limits.max_message_bytes`."
    )
    REQUEST = "In proportion to what the request lists."
    INVENTORY = (
        "In proportion to what the worker lists and holds. Above three quarters of"
        " `server.limits.max_message_bytes` replicas come without memory keys; above all of it the"
        " changes end, and REBASE_REQUIRED is refused with RESOURCE_EXHAUSTED."
    )
    NAMED = "One thing that the request names, as large as it came in."
    SMALL = "Ids, numbers and digests: below 4 MiB whatever came in."


ANSWERS: Mapping[str, Extent] = {
    f"{_RUNTIME}ListReplicasV2": Extent.PAGE,
    f"{_ADMIN}ListKeys": Extent.PAGE,
    f"{_ADMIN}ListArtifacts": Extent.PAGE,
    f"{_ASSEMBLY}ListViews": Extent.PAGE,
    f"{_ADMIN}ShowKey": Extent.CUT,
    f"{_ADMIN}ShowArtifact": Extent.CUT,
    f"{_ADMIN}ExplainSources": Extent.CUT,
    f"{_RUNTIME}ListActiveWorkers": Extent.LIST,
    f"{_RUNTIME}ListActiveInstances": Extent.LIST,
    f"{_RUNTIME}QueryChunkLocations": Extent.LIST,
    f"{_RUNTIME}BatchGetShardHomeLeases": Extent.LIST,
    f"{_CATALOG}ListArtifactDiskLocations": Extent.LIST,
    f"{_CATALOG}GetGroupRealization": Extent.LIST,
    f"{_TIERS}ListOutstandingLeases": Extent.LIST,
    f"{_ASSEMBLY}GetArtifactInfoById": Extent.LIST,
    f"{_ASSEMBLY}ListArtifactLayouts": Extent.LIST,
    f"{_ASSEMBLY}ListAssemblySlotOccupancies": Extent.LIST,
    f"{_RUNTIME}QueryTransportWindow": Extent.LIMIT,
    f"{_RUNTIME}WorkerHeartbeat": Extent.REQUEST,
    f"{_RUNTIME}BatchGetReplicaCounts": Extent.REQUEST,
    f"{_RUNTIME}BatchKeepaliveShardHomeLeases": Extent.REQUEST,
    f"{_CATALOG}RegisterGroupVersionSet": Extent.REQUEST,
    f"{_WORKFLOW}PlanPlacement": Extent.REQUEST,
    f"{_RUNTIME}ReconcileWorkerState": Extent.INVENTORY,
    f"{_CATALOG}GetArtifactIndex": Extent.NAMED,
    f"{_CATALOG}GetArtifactIndexById": Extent.NAMED,
    f"{_ASSEMBLY}GetLayoutSpec": Extent.NAMED,
    f"{_RUNTIME}RequestReplicaTransport": Extent.SMALL,
    f"{_CATALOG}BeginOrJoinGroupRealization": Extent.SMALL,
    f"{_TIERS}RequestMemoryTierLease": Extent.SMALL,
    f"{_TIERS}AcknowledgeMemoryTierLease": Extent.SMALL,
    f"{_TIERS}RevokeMemoryTierLease": Extent.SMALL,
    f"{_CATALOG}ReportGroupRealizationPrepared": Extent.SMALL,
    f"{_ASSEMBLY}UpsertAssemblyAttempt": Extent.SMALL,
    f"{_ASSEMBLY}GetAssemblyAttempt": Extent.SMALL,
    f"{_ASSEMBLY}UpsertAssemblyReadinessCut": Extent.SMALL,
    f"{_ASSEMBLY}GetAssemblyReadinessCut": Extent.SMALL,
    f"{_WORKFLOW}GetOperation": Extent.SMALL,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Extent.SMALL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Extent.SMALL,
}
