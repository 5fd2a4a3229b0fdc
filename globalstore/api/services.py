"""The gRPC services, put together from the handlers of the nouns.

An RPC that no handler implements yet answers UNIMPLEMENTED.
"""

from typing import Any

from globalstore.api.admin.catalog_lists import CatalogListHandlers
from globalstore.api.admin.server_info import ServerInfoHandlers
from globalstore.api.admin.source_reasons import SourceReasonHandlers
from globalstore.api.catalog.artifacts import ArtifactHandlers
from globalstore.api.catalog.bindings import BindingHandlers
from globalstore.api.catalog.disk_locations import DiskLocationHandlers
from globalstore.api.catalog.keys import KeyHandlers
from globalstore.api.catalog.realization_joins import RealizationJoinHandlers
from globalstore.api.catalog.realization_reports import RealizationReportHandlers
from globalstore.api.catalog.realizations import RealizationHandlers
from globalstore.api.catalog.version_sets import VersionSetHandlers
from globalstore.api.context import HandlerContext
from globalstore.api.memory_tiers import MemoryTierHandlers
from globalstore.api.runtime.chunks import ChunkHandlers
from globalstore.api.runtime.instances import InstanceHandlers
from globalstore.api.runtime.reconcile import ReconcileHandlers
from globalstore.api.runtime.replica_lifecycle import ReplicaLifecycleHandlers
from globalstore.api.runtime.replicas import ReplicaHandlers
from globalstore.api.runtime.shard_leases import ShardLeaseHandlers
from globalstore.api.runtime.transport_windows import TransportWindowHandlers
from globalstore.api.runtime.transports import TransportHandlers
from globalstore.api.runtime.workers import WorkerHandlers
from globalstore.gen.globalstore.admin.v1 import admin_grpc
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_grpc


class ClusterRuntime(
    WorkerHandlers,
    InstanceHandlers,
    ReconcileHandlers,
    ReplicaHandlers,
    ReplicaLifecycleHandlers,
    TransportHandlers,
    TransportWindowHandlers,
    ChunkHandlers,
    ShardLeaseHandlers,
    services.ClusterRuntimeServiceServicer,
):
    """Workers, instances, what workers hold, and transports."""


class ArtifactCatalog(
    ArtifactHandlers,
    BindingHandlers,
    DiskLocationHandlers,
    KeyHandlers,
    VersionSetHandlers,
    RealizationJoinHandlers,
    RealizationReportHandlers,
    RealizationHandlers,
    services.ArtifactCatalogServiceServicer,
):
    """Artifacts, the names that point at them, and the realizations that take them up."""


class ClusterAdmin(ServerInfoHandlers, services.ClusterAdminServiceServicer):
    """The calls about the server itself."""


class MemoryTiers(MemoryTierHandlers, memory_tier_grpc.MemoryTierServiceServicer):
    """Leases on the memory of nodes, and telemetry of it."""


class Admin(SourceReasonHandlers, CatalogListHandlers, admin_grpc.AdminServiceServicer):
    """The operators' calls."""


def all_services(context: HandlerContext) -> list[Any]:
    """Return every service of the contract, and the operators' service."""
    servicers = (
        ClusterRuntime(context),
        ArtifactCatalog(context),
        services.AssemblyViewServiceServicer(),
        services.WorkflowOrchestrationServiceServicer(),
        ClusterAdmin(context),
        MemoryTiers(context),
        Admin(context),
    )
    return [servicer.service for servicer in servicers]
