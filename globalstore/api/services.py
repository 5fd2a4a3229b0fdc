"""The gRPC services, put together from the faces of the nouns.

An RPC that no face implements yet answers UNIMPLEMENTED.
"""

from typing import Any

from globalstore.api.admin.catalog_lists import CatalogListsFace
from globalstore.api.admin.server_info import AdminFace
from globalstore.api.admin.source_reasons import ExplainingFace
from globalstore.api.catalog.artifacts import ArtifactsFace
from globalstore.api.catalog.bindings import BindingsFace
from globalstore.api.catalog.disk_locations import DiskLocationsFace
from globalstore.api.catalog.keys import KeysFace
from globalstore.api.catalog.realization_joins import GroupJoinsFace
from globalstore.api.catalog.realization_reports import GroupReportsFace
from globalstore.api.catalog.realizations import GroupsFace
from globalstore.api.catalog.version_sets import VersionSetsFace
from globalstore.api.context import Application
from globalstore.api.memory_tiers import MemoryTiersFace
from globalstore.api.runtime.chunks import ChunksFace
from globalstore.api.runtime.instances import InstancesFace
from globalstore.api.runtime.reconcile import ReconcileFace
from globalstore.api.runtime.replica_lifecycle import ReplicaLifecycleFace
from globalstore.api.runtime.replicas import ReplicasFace
from globalstore.api.runtime.shard_leases import ShardLeasesFace
from globalstore.api.runtime.transport_windows import TransportWindowsFace
from globalstore.api.runtime.transports import TransportsFace
from globalstore.api.runtime.workers import WorkersFace
from globalstore.gen.globalstore.admin.v1 import admin_grpc
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_grpc


class ClusterRuntime(
    WorkersFace,
    InstancesFace,
    ReconcileFace,
    ReplicasFace,
    ReplicaLifecycleFace,
    TransportsFace,
    TransportWindowsFace,
    ChunksFace,
    ShardLeasesFace,
    services.ClusterRuntimeServiceServicer,
):
    """Workers, instances, what workers hold, and transports."""

    def __init__(self, app: Application) -> None:
        self.app = app


class ArtifactCatalog(
    ArtifactsFace,
    BindingsFace,
    DiskLocationsFace,
    KeysFace,
    VersionSetsFace,
    GroupJoinsFace,
    GroupReportsFace,
    GroupsFace,
    services.ArtifactCatalogServiceServicer,
):
    """What artifacts are, the names that point at them, and groups that take them up together."""

    def __init__(self, app: Application) -> None:
        self.app = app


class ClusterAdmin(AdminFace, services.ClusterAdminServiceServicer):
    """The server itself."""

    def __init__(self, app: Application) -> None:
        self.app = app


class MemoryTiers(MemoryTiersFace, memory_tier_grpc.MemoryTierServiceServicer):
    """Leases on the memory of nodes, and telemetry of it."""

    def __init__(self, app: Application) -> None:
        self.app = app


class Admin(ExplainingFace, CatalogListsFace, admin_grpc.AdminServiceServicer):
    """What operators ask."""

    def __init__(self, app: Application) -> None:
        self.app = app


def all_services(app: Application) -> list[Any]:
    """Return every service of the contract, and that of this server's operators."""
    servicers = (
        ClusterRuntime(app),
        ArtifactCatalog(app),
        services.AssemblyViewServiceServicer(),
        services.WorkflowOrchestrationServiceServicer(),
        ClusterAdmin(app),
        MemoryTiers(app),
        Admin(app),
    )
    return [servicer.service for servicer in servicers]
