"""The standard health service, ``grpc.health.v1``: Check and Watch."""

import enum
from collections import Counter
from collections.abc import AsyncIterator

import trio
from purerpc import Service, StatusCode

from globalstore.gen.grpc.health.v1.health_grpc import HealthServicer
from globalstore.gen.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from globalstore.rpc.call import Call

# Watches of one connection at a time. Clients that watch at all have one for each service.
WATCHES_MAX = 16

_SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class ServingStatus(enum.Enum):
    """Whether a service answers."""

    SERVING = HealthCheckResponse.SERVING
    NOT_SERVING = HealthCheckResponse.NOT_SERVING


class HealthService(HealthServicer):
    """Tells probes which services answer. The name ``""`` stands for the server as a whole."""

    def __init__(self) -> None:
        self._statuses: dict[str, ServingStatus] = {}
        self._changed = trio.Event()
        self._watches: Counter[str] = Counter()

    @property
    def service(self) -> Service:
        """The purerpc service to offer."""
        return super().service

    def set(self, service: str, status: ServingStatus) -> None:
        """Make ``status`` known for ``service``, and to everyone who watches it."""
        if self._statuses.get(service) is not status:
            self._statuses[service] = status
            self._changed.set()
            self._changed = trio.Event()

    def set_all(self, status: ServingStatus) -> None:
        """Make ``status`` known for every service named so far, in one change."""
        self._statuses = dict.fromkeys(self._statuses, status)
        self._changed.set()
        self._changed = trio.Event()

    async def Check(self, message: HealthCheckRequest, request: Call) -> HealthCheckResponse:
        """Answer with the status now; NOT_FOUND for a service never named."""
        status = self._statuses.get(message.service)
        if status is None:
            request.abort(StatusCode.NOT_FOUND, f"service: no service {message.service[:200]!r}")
        return HealthCheckResponse(status=status.value)

    async def Watch(
        self, message: HealthCheckRequest, request: Call
    ) -> AsyncIterator[HealthCheckResponse]:
        """Send the status now and at every change; SERVICE_UNKNOWN while there is none.

        Ends UNAVAILABLE when the server drains; RESOURCE_EXHAUSTED if its connection has
        ``WATCHES_MAX`` already.
        """
        if self._watches[request.peer] >= WATCHES_MAX:
            request.abort(
                StatusCode.RESOURCE_EXHAUSTED,
                f"this connection has {WATCHES_MAX} watches open already",
            )
        self._watches[request.peer] += 1
        try:
            sent = None
            while True:
                changed = self._changed
                status = self._statuses.get(message.service)
                value = _SERVICE_UNKNOWN if status is None else status.value
                if value != sent:
                    sent = value
                    yield HealthCheckResponse(status=value)
                    continue  # it may have changed while the client took its time
                with request.only_waiting():
                    await changed.wait()
        finally:
            self._watches -= Counter((request.peer,))  # leaves none that are 0
