"""The kinds of leases, one row each: how they end, are restored at a start, and are logged."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import attrs

from globalstore.db import Transaction
from globalstore.registry import memory_tiers
from globalstore.registry.catalog import keys, realizations
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.runtime import shard_leases
from globalstore.registry.signals import LeaseKind
from globalstore.rules.values import unsigned64
from globalstore.telemetry import Logger, get_logger

_log = get_logger("globalstore.leases")

# Shards that one line of the log names.
_SHARDS_NAMED = 8

E = TypeVar("E")


@attrs.frozen(kw_only=True)
class Kind(Generic[E]):
    """A kind of lease.

    ``expire`` is an operation on the keys whose deadlines have come; it takes the wall clock (µs)
    and the lease clock, emits ``LeasesExpired`` for all of them and returns what ended.
    ``restore`` returns (key, deadline) of each lease that an earlier server left; it takes the time
    of the lease clock. A ``patient`` kind gets more time when the server itself was stalled.
    ``log`` gets what ``expire`` returned, unless that is nothing.
    """

    expire: Callable[[Transaction, list[int], int, LeaseNow], Sequence[E]]
    restore: Callable[[Transaction, int], list[tuple[int, int]]]
    patient: bool
    log: Callable[[Sequence[E]], None]


def lease_kinds(tier_acknowledgement_us: int) -> Mapping[LeaseKind, Kind[Any]]:
    """Return all kinds of leases.

    ``tier_acknowledgement_us`` is how long a wish for memory waits to be acknowledged, 0 for ever.
    """
    return {
        LeaseKind.SHARD_HOME: Kind(
            expire=shard_leases.expire_shard_leases,
            restore=shard_leases.restore_shard_leases,
            patient=False,
            log=_log_shards,
        ),
        LeaseKind.KEY: Kind(
            expire=keys.expire_keys,
            restore=keys.restore_keys,
            patient=False,
            log=partial(_log_count, "keys expired", get_logger("globalstore.keys")),
        ),
        LeaseKind.REALIZATION: Kind(
            expire=realizations.expire_realizations,
            restore=realizations.restore_realizations,
            patient=False,
            log=partial(_log_count, "group realizations expired", get_logger("globalstore.groups")),
        ),
        LeaseKind.MEMORY_TIER: Kind(
            expire=memory_tiers.expire_tier_leases,
            restore=partial(memory_tiers.restore_tier_leases, ttl_us=tier_acknowledgement_us),
            patient=True,
            log=_log_tier_leases,
        ),
    }


def _log_count(text: str, log: Logger, ended: Sequence[object]) -> None:
    log.info(text, count=len(ended))


def _log_shards(ended: Sequence[shard_leases.Expired]) -> None:
    named = [str(unsigned64(each.shard_id)) for each in ended[:_SHARDS_NAMED]]
    _log.info("shard leases expired", count=len(ended), shards=" ".join(named))
    for each in ended:
        _log.debug(
            "shard lease expired",
            shard_id=unsigned64(each.shard_id),
            holder_daemon_id=each.holder,
            generation=each.generation,
        )


def _log_tier_leases(ended: Sequence[tuple[str, str]]) -> None:
    for lease_id, node_id in ended:
        _log.info("memory tier lease not acknowledged", lease_id=lease_id, node_id=node_id)
