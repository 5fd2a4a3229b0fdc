"""The gRPC services, put together from the faces of the nouns.

An RPC that no face implements yet answers UNIMPLEMENTED.
"""

from typing import Any

from globalstore.api.admin import AdminFace
from globalstore.api.application import Application
from globalstore.api.artifacts import ArtifactsFace
from globalstore.api.bindings import BindingsFace
from globalstore.api.catalog_lists import CatalogListsFace
from globalstore.api.chunks import ChunksFace
from globalstore.api.disk_locations import DiskLocationsFace
from globalstore.api.explaining import ExplainingFace
from globalstore.api.group_joins import GroupJoinsFace
from globalstore.api.group_reports import GroupReportsFace
from globalstore.api.groups import GroupsFace
from globalstore.api.instances import InstancesFace
from globalstore.api.keys import KeysFace
from globalstore.api.memory_tiers import MemoryTiersFace
from globalstore.api.reconcile import ReconcileFace
from globalstore.api.replica_lifecycle import ReplicaLifecycleFace
from globalstore.api.replicas import ReplicasFace
from globalstore.api.shard_leases import ShardLeasesFace
from globalstore.api.transport_windows import TransportWindowsFace
from globalstore.api.transports import TransportsFace
from globalstore.api.version_sets import VersionSetsFace
from globalstore.api.workers import WorkersFace
from globalstore.gen.globalstore_admin.v1 import admin_grpc
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
