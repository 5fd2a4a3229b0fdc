"""Realizations of groups expire by themselves at their deadlines."""

from collections.abc import Callable

from globalstore.db import Lane, Store
from globalstore.leases.clock import LeaseClock
from globalstore.registry.catalog import realizations
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.groups")


async def expire_realizations(
    store: Store, clock: LeaseClock, wall_us: Callable[[], int], transaction_keys: list[int]
) -> None:
    """End realizations whose deadline has passed, and wake who waits for them."""
    expired = await store.write(
        realizations.expire_realizations,
        transaction_keys,
        wall_us(),
        clock.now_us,
        lane=Lane.CONTROL,
    )
    if expired:
        _log.info("group realizations expired", count=expired)
