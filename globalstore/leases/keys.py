"""Keys that have expired are let go."""

from collections.abc import Callable

from globalstore.db import Lane, Store
from globalstore.leases.clock import LeaseClock
from globalstore.registry.catalog import keys
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.keys")


async def expire_keys(
    store: Store, clock: LeaseClock, wall_us: Callable[[], int], mapping_keys: list[int]
) -> None:
    """Let keys whose time has passed point at nothing."""
    expired = await store.write(
        keys.expire_keys, mapping_keys, wall_us(), clock.now_us, lane=Lane.CONTROL
    )
    if expired:
        _log.info("keys expired", count=expired)
