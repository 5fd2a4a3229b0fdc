"""UpsertArtifactDiskLocation, ListArtifactDiskLocations."""

from globalstore.api.context import Handlers
from globalstore.api.encoding import timestamp
from globalstore.api.turns import in_turns
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import disk_locations
from globalstore.registry.catalog.disk_locations import DiskLocation
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import stored, stored_before
from globalstore.rules.paths import existing_path, relative_path
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import required

_KINDS: dict[int, wire.DiskLocationKind] = {
    wire.DISK_LOCATION_KIND_UNSPECIFIED: wire.DISK_LOCATION_KIND_MANAGED,
    wire.DISK_LOCATION_KIND_MANAGED: wire.DISK_LOCATION_KIND_MANAGED,
    wire.DISK_LOCATION_KIND_IMPORTED: wire.DISK_LOCATION_KIND_IMPORTED,
}

# Bytes of a location in a list at least: ids of the artifact and the cluster, a path, two times.
_LOCATION_BYTES_MIN = 48

# Locations that are made into messages before other calls get a turn: less than a millisecond.
_LOCATIONS_PER_TURN = 100


class DiskLocationHandlers(Handlers):
    """The calls about what lies on the shared disk."""

    async def UpsertArtifactDiskLocation(
        self, message: wire.UpsertArtifactDiskLocationRequest, request: Call
    ) -> wire.UpsertArtifactDiskLocationResponse:
        """Record where an artifact lies, or for good that it lies there no longer."""
        kind = _KINDS.get(message.kind)
        check_id = stored_before if message.is_deleted else stored
        artifact_id = check_id("artifact_id", message.artifact_id)
        cluster_id = required("cluster_id", message.cluster_id)
        checked = existing_path if message.is_deleted else relative_path
        path = checked("relative_path", message.relative_path)
        if kind is None:
            raise InvalidArgument(
                f"kind is {message.kind}, expected MANAGED, IMPORTED or unspecified"
            )
        await self.context.write(
            request,
            disk_locations.upsert_disk_location,
            artifact_id,
            cluster_id,
            path,
            kind,
            message.is_deleted,
            self.context.clock.wall_us(),
        )
        return wire.UpsertArtifactDiskLocationResponse(status=wire.STATUS_OK)

    async def ListArtifactDiskLocations(
        self, message: wire.ListArtifactDiskLocationsRequest, request: Call
    ) -> wire.ListArtifactDiskLocationsResponse:
        """List where an artifact lies; an unknown one lies nowhere."""
        artifact_id = stored_before("artifact_id", message.artifact_id)
        room = self.context.list_room("delete places that are gone, and leave out the deleted ones")
        limit = room.bytes_max // _LOCATION_BYTES_MIN + 1
        cluster_id, found = await self.context.read(
            disk_locations.locations, artifact_id, message.include_deleted, limit
        )
        response = wire.ListArtifactDiskLocationsResponse(status=wire.STATUS_OK)
        async for turn in in_turns(found, _LOCATIONS_PER_TURN):
            made = [_message(artifact_id, cluster_id, location) for location in turn]
            room.take(made)
            response.locations.extend(made)
        return response


def _message(
    artifact_id: str, cluster_id: str, location: DiskLocation
) -> wire.ArtifactDiskLocation:
    deleted_at_us = location.deleted_at_us
    return wire.ArtifactDiskLocation(
        artifact_id=artifact_id,
        cluster_id=cluster_id,
        relative_path=location.relative_path,
        kind=_KINDS[location.kind],
        created_at=timestamp(location.created_at_us),
        updated_at=timestamp(location.updated_at_us),
        is_deleted=deleted_at_us is not None,
        deleted_at=None if deleted_at_us is None else timestamp(deleted_at_us),
    )
