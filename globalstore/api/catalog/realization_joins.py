"""BeginOrJoinGroupRealization."""

from functools import lru_cache

import trio

from globalstore.api.catalog import version_sets
from globalstore.api.catalog.realization_calls import (
    STATES,
    accepted,
    identity_of,
    realization_call,
)
from globalstore.api.context import Handlers
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import realization_joins
from globalstore.registry.catalog.realization_joins import Join, KeyReference, SetReference, Terms
from globalstore.rpc import Call
from globalstore.rules.realizations import (
    VERSION_SET_PREFIX,
    Manifest,
    Selection,
    digest_of,
    same_for_all,
)
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import identifier, required, storable

# Longest lifetime of a realization: a century, so that every deadline is a storable number.
_LIFETIME_MS_MAX = 100 * 366 * 86400 * 1000

# Manifests of one selection for all parts, kept because the members of a realization send the same;
# from this many parts on one is made in a thread, which takes some 8 µs a part.
_MANIFESTS_KEPT = 16
_PARTS_AT_ONCE = 64

_ALIASES = frozenset({"", "current", "latest"})


class RealizationJoinHandlers(Handlers):
    """The call by which a realization begins, and its members join."""

    @realization_call("begin")
    async def BeginOrJoinGroupRealization(
        self, message: wire.BeginOrJoinGroupRealizationRequest, request: Call
    ) -> wire.BeginOrJoinGroupRealizationResponse:
        """Join the realization with a realization key, which begins if there is none yet."""
        self.context.handler_slots.release(request)
        policy = self.context.config.worker_policy.group_realization
        join = await _join(message)
        terms = Terms(
            _lifetime_us(policy.default_deadline_ms),
            _lifetime_us(policy.transaction_ttl_ms),
            policy.max_active_transactions,
        )
        context = self.context
        joined = accepted(
            await context.write(
                request,
                realization_joins.begin_or_join,
                join,
                terms,
                version_sets.of_artifact,
                context.clock.wall_us(),
                context.clock.lease_us,
            )
        )
        realization = joined.realization
        return wire.BeginOrJoinGroupRealizationResponse(
            status=wire.STATUS_OK,
            transaction_id=realization.transaction_id,
            version_set=version_sets.reference(realization.version_set.manifest_hash),
            realization_kind=version_sets.KINDS[realization.version_set.kind],
            part=version_sets.part_message(joined.part),
            state=STATES[realization.state],
            transaction_fingerprint=realization.fingerprint,
            key_generation=realization.key_generation or 0,
        )


async def _join(message: wire.BeginOrJoinGroupRealizationRequest) -> Join:
    context = message.context
    group_kind = required("context.group_kind", context.group_kind)
    group_id = required("context.group_id", context.group_id)
    part_id = required("context.part_id", context.part_id)
    required_ids = _required_part_ids(context)
    if part_id not in required_ids:
        raise InvalidArgument(f"context.part_id {part_id[:80]!r} is none of the required_part_ids")
    return Join(
        group_kind=group_kind,
        group_id=group_id,
        epoch=storable("context.epoch", context.epoch),
        part_id=part_id,
        required_part_ids=required_ids,
        version=await _version(message.version, required_ids),
        fingerprint=message.transaction_fingerprint,
        deadline_unix_nanos=storable("deadline_unix_nanos", message.deadline_unix_nanos),
        identity=identity_of(message),
    )


def _required_part_ids(context: wire.GroupRealizationContext) -> list[str]:
    entries = context.required_part_ids
    if not entries:
        raise InvalidArgument("context.required_part_ids is required")
    distinct = sorted({required("context.required_part_ids", entry) for entry in entries})
    if context.total_parts != len(distinct):
        raise InvalidArgument(
            f"context.total_parts is {context.total_parts}, but required_part_ids has"
            f" {len(distinct)} different ids"
        )
    return distinct


def _lifetime_us(milliseconds: int) -> int:
    return min(milliseconds, _LIFETIME_MS_MAX) * 1000


async def _version(
    version: wire.VersionReference, required_ids: list[str]
) -> Manifest | SetReference | KeyReference:
    match version.WhichOneof("value"):
        case "explicit_selection":
            chosen = version_sets.selection(
                "version.explicit_selection", version.explicit_selection
            )
            if len(required_ids) <= _PARTS_AT_ONCE:
                return _same_for_all(chosen, tuple(required_ids))
            return await trio.to_thread.run_sync(_same_for_all, chosen, tuple(required_ids))
        case "explicit_version_set":
            name = "version.explicit_version_set"
            version_set = version.explicit_version_set
            set_id = required(f"{name}.version_set_id", version_set.version_set_id)
            return SetReference(
                set_id, digest_of(VERSION_SET_PREFIX, set_id), version_set.manifest_hash
            )
        case "key_reference":
            name = "version.key_reference"
            by_key = version.key_reference
            if by_key.alias.strip().lower() not in _ALIASES:
                raise InvalidArgument(
                    f"{name}.alias is {by_key.alias[:40]!r}, expected current or latest"
                )
            return KeyReference(
                required(f"{name}.key", by_key.key),
                identifier(f"{name}.namespace", by_key.namespace),
                by_key.expected_generation if by_key.HasField("expected_generation") else None,
            )
        case _:
            raise InvalidArgument("version is required")


@lru_cache(maxsize=_MANIFESTS_KEPT)
def _same_for_all(chosen: Selection, part_ids: tuple[str, ...]) -> Manifest:
    return same_for_all(chosen, part_ids)
