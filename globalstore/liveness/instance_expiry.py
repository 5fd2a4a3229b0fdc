"""The expiry of silent instances."""

from collections.abc import Callable

from globalstore.db import DatabaseError, Lane, Store
from globalstore.liveness.instances import Instances, LiveInstance, liveness_row
from globalstore.liveness.stalls import StallDetector
from globalstore.liveness.workers import Workers
from globalstore.registry.runtime import instances as registry
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.instances")

# Instances that one transaction ends: some milliseconds of the writer. When thousands die at once
# the next batch follows within the second that expiry may take.
_EXPIRED_AT_ONCE = 128


class InstanceReaper:
    """Expires instances that are silent, each at its own deadline."""

    def __init__(
        self,
        store: Store,
        instances: Instances,
        workers: Workers,
        stalls: StallDetector,
        wall_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._instances = instances
        self._workers = workers
        self._stalls = stalls
        self._wall_us = wall_us

    async def run(self) -> None:
        """Expire instances at their deadlines, until cancelled."""
        while True:
            await self._instances.heartbeats.wait_due()
            if self._stalls.check():
                continue
            if silent := self._instances.take_silent(_EXPIRED_AT_ONCE):
                await self._expire(silent)

    async def _expire(self, silent: list[LiveInstance]) -> None:
        """End instances; if that cannot be written now, it is tried again after the grace."""
        ended: set[int] = set()
        try:
            ended = await self._store.write(
                registry.expire_instances,
                [liveness_row(instance) for instance in silent],
                self._wall_us(),
                lane=Lane.CONTROL,
            )
        except DatabaseError as error:
            _log.limited(
                "expiry", "instances not expired", instances=len(silent), reason=str(error)
            )
        finally:
            self._instances.heartbeats.end_expiry(instance.key for instance in silent)
        for instance in silent:
            if instance.key in ended:
                state = instance.state
                _log.info(
                    "instance expired",
                    instance_id=state.instance_id,
                    daemon_id=state.daemon_id,
                    worker_id=state.named_worker_id or self._workers.id_of_daemon(state.daemon_id),
                    engine=state.engine,
                )
