"""ListKeys, ShowKey, ListArtifacts, ShowArtifact: the catalog as operators see it."""

from google.protobuf.timestamp_pb2 import Timestamp

from globalstore.api.context import Handlers
from globalstore.api.encoding import timestamp
from globalstore.api.room import PAGE_BYTES_MAX, Room, add_page
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.registry import catalog_lists
from globalstore.registry.catalog.disk_locations import DiskLocation
from globalstore.registry.catalog_lists import ENTRIES_MAX, Generation, ListedArtifact, ListedKey
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import looked_up
from globalstore.rules.refusals import NotFound
from globalstore.rules.values import existing, existing_or_blank

_PAGE_SIZE = 100
# A page of this many artifacts is about 300 kB, well below what common clients accept.
_PAGE_SIZE_MAX = 1000

# Records that are made before other calls get a turn: less than a millisecond of the event loop.
_RECORDS_PER_TURN = 50

_ID_KINDS = {1: "MI2", 2: "CGID"}
_PLACE_KINDS = {1: "MANAGED", 2: "IMPORTED"}


class CatalogListHandlers(Handlers):
    """The operators' calls about keys and artifacts."""

    async def ListKeys(
        self, message: admin.ListKeysRequest, request: Call
    ) -> admin.ListKeysResponse:
        """List keys page by page."""
        lease_us = self.context.clock.lease_us()
        keys, next_after = await self.context.read(
            catalog_lists.list_keys,
            existing_or_blank("prefix", message.prefix),
            existing_or_blank("after", message.after),
            _page_size(message.page_size),
            message.include_absent,
            lease_us,
        )
        response = admin.ListKeysResponse(next_after=next_after)
        count = await add_page(
            response.keys, keys, lambda key: _key(key, lease_us), _RECORDS_PER_TURN
        )
        if count < len(keys):
            response.next_after = keys[count - 1].key
        return response

    async def ShowKey(self, message: admin.ShowKeyRequest, request: Call) -> admin.ShowKeyResponse:
        """Show a key and its targets, the latest first."""
        name = existing("key", message.key)
        lease_us = self.context.clock.lease_us()
        shown = await self.context.read(catalog_lists.show_key, name, lease_us)
        if shown is None:
            raise NotFound(f"there never was a key {name[:80]!r}")
        key, generations = shown
        response = admin.ShowKeyResponse(key=_key(key, lease_us))
        count = await add_page(
            response.generations, generations[:ENTRIES_MAX], _generation, _RECORDS_PER_TURN
        )
        response.is_truncated = count < len(generations)
        return response

    async def ListArtifacts(
        self, message: admin.ListArtifactsRequest, request: Call
    ) -> admin.ListArtifactsResponse:
        """List artifacts page by page."""
        artifacts, next_after = await self.context.read(
            catalog_lists.list_artifacts,
            existing_or_blank("prefix", message.prefix),
            existing_or_blank("after", message.after),
            _page_size(message.page_size),
        )
        response = admin.ListArtifactsResponse(next_after=next_after)
        count = await add_page(response.artifacts, artifacts, _artifact, _RECORDS_PER_TURN)
        if count < len(artifacts):
            response.next_after = artifacts[count - 1].artifact_id
        return response

    async def ShowArtifact(
        self, message: admin.ShowArtifactRequest, request: Call
    ) -> admin.ShowArtifactResponse:
        """Show an artifact and what points at it."""
        artifact_id = looked_up("artifact_id", message.artifact_id)
        about = await self.context.read(
            catalog_lists.show_artifact, artifact_id, self.context.clock.lease_us()
        )
        found = about.artifact
        if found is None and not (about.sealed_to or about.sealed_from or about.places):
            raise NotFound(f"nothing is known of an artifact {artifact_id[:120]!r}")
        response = admin.ShowArtifactResponse(
            artifact=(
                admin.ArtifactRecord(artifact_id=artifact_id) if found is None else _artifact(found)
            ),
            sealed_to=about.sealed_to,
        )
        room = Room(PAGE_BYTES_MAX)
        response.sealed_from.extend(room.fitting(about.sealed_from[:ENTRIES_MAX]))
        response.keys.extend(room.fitting(about.keys[:ENTRIES_MAX]))
        await add_page(response.places, about.places[:ENTRIES_MAX], _place, _RECORDS_PER_TURN, room)
        response.is_truncated = any(
            len(shown) < len(known)
            for shown, known in (
                (response.sealed_from, about.sealed_from),
                (response.keys, about.keys),
                (response.places, about.places),
            )
        )
        return response


def _page_size(wanted: int) -> int:
    return min(wanted or _PAGE_SIZE, _PAGE_SIZE_MAX)


def _key(key: ListedKey, lease_us: int) -> admin.KeyRecord:
    record = admin.KeyRecord(
        key=key.key,
        kind=key.kind.name,
        generation=key.generation,
        updated_at=timestamp(key.updated_at_us),
    )
    mapping = key.mapping
    if mapping is not None:
        record.artifact_id = mapping.artifact_id
        record.version_set_id = mapping.version_set_id
        record.replica_uuid = mapping.replica_uuid
        record.daemon_address = mapping.daemon_address
        if mapping.ttl_s is not None:
            record.ttl_seconds = mapping.ttl_s
        if mapping.expires_at_us is not None:
            record.expires_in_seconds = (mapping.expires_at_us - lease_us) / 1_000_000
    return record


def _generation(generation: Generation) -> admin.KeyGeneration:
    return admin.KeyGeneration(
        generation=generation.generation,
        artifact_id=generation.artifact_id,
        version_set_id=generation.version_set_id,
        selection_hash=generation.selection_hash,
        began_at=timestamp(generation.began_at_us),
        ended_at=_timestamp(generation.ended_at_us),
    )


def _timestamp(us: int | None) -> Timestamp | None:
    return None if us is None else timestamp(us)


def _artifact(artifact: ListedArtifact) -> admin.ArtifactRecord:
    return admin.ArtifactRecord(
        artifact_id=artifact.artifact_id,
        id_kind=_ID_KINDS.get(artifact.id_kind, ""),
        index_multihash=artifact.index_multihash,
        data_multihash=artifact.data_multihash,
        schema_version=artifact.schema_version,
        encoding=artifact.encoding,
        total_size=artifact.total_size,
        index_size=artifact.index_size,
        replica_count=artifact.replica_count,
        available_count=artifact.available_count,
        created_at=timestamp(artifact.created_at_us),
        updated_at=timestamp(artifact.updated_at_us),
    )


def _place(place: DiskLocation) -> admin.ArtifactPlace:
    return admin.ArtifactPlace(
        relative_path=place.relative_path,
        kind=_PLACE_KINDS[place.kind],
        is_deleted=place.deleted_at_us is not None,
    )
