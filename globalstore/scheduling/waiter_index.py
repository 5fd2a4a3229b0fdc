"""All requests that wait for a source, by what they are looked up by."""

from collections.abc import Iterator

from globalstore.registry.runtime.transports import RequestRefused, TransportRequest
from globalstore.registry.signals import GroupKey, Space
from globalstore.rules.deadlines import Deadlines
from globalstore.scheduling.waiters import Queue, Waiter, contradiction


class WaiterIndex:
    """Waiting requests by id, requester and scheduling group, and the queue of each space.

    A queue is there while it has waiters or is being served. ``expiries`` has when all replicas
    will have expired that the waiters of a space may hope for, on trio's clock.
    """

    def __init__(self) -> None:
        self._by_request: dict[str, Waiter] = {}
        self._by_requester: dict[str, set[Waiter]] = {}
        self._by_group: dict[GroupKey, dict[str, TransportRequest]] = {}
        self._queues: dict[Space, Queue] = {}
        self.expiries: Deadlines[Space] = Deadlines()

    def __len__(self) -> int:
        return len(self._by_request)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._by_request.values()))

    def __repr__(self) -> str:
        return f"<WaiterIndex [waiters: {len(self)}, queues: {len(self._queues)}]>"

    def of_request(self, request_id: str) -> Waiter | None:
        """Return the waiter of a request id."""
        return self._by_request.get(request_id)

    def of_requester(self, worker_id: str) -> list[Waiter]:
        """Return the waiters of a requesting worker."""
        return list(self._by_requester.get(worker_id, ()))

    def queue(self, space: Space) -> Queue | None:
        """Return the queue of an artifact and view."""
        return self._queues.get(space)

    def queues(self) -> list[Queue]:
        """Return all queues."""
        return list(self._queues.values())

    def counts(self, space: Space, requester_worker_id: str) -> tuple[int, int]:
        """Return how many requests wait for an artifact and view, and how many of a requester."""
        queue = self._queues.get(space)
        if queue is None:
            return 0, 0
        mine = sum(w.request.space == space for w in self.of_requester(requester_worker_id))
        return len(queue.waiters) + len(queue.newcomers), mine

    def contradicted(
        self, request: TransportRequest, relaxed_kinds: frozenset[str]
    ) -> RequestRefused | None:
        """Hold a request against the waiting ones of its scheduling group."""
        if request.group is None:
            return None
        parts = self._by_group.get(request.group.key, {})
        return contradiction(request, request.group, parts, relaxed_kinds)

    def add(self, waiter: Waiter) -> Queue:
        """Put a waiter into the queue of its space, as a newcomer; return the queue."""
        request = waiter.request
        queue = self._queues.setdefault(request.space, Queue(request.space))
        queue.newcomers[request.request_id] = waiter
        self._by_request[request.request_id] = waiter
        if request.requester_worker_id:
            self._by_requester.setdefault(request.requester_worker_id, set()).add(waiter)
        if request.group is not None:
            self._by_group.setdefault(request.group.key, {})[request.group.part_id] = request
        return queue

    def remove(self, waiter: Waiter) -> None:
        """Forget a waiter; no effect when that was done."""
        request = waiter.request
        if self._by_request.pop(request.request_id, None) is None:
            return
        queue = self._queues[request.space]
        queue.waiters.pop(request.request_id, None)
        queue.newcomers.pop(request.request_id, None)
        self.drop_if_idle(queue)
        if request.requester_worker_id:
            waiting = self._by_requester[request.requester_worker_id]
            waiting.discard(waiter)
            if not waiting:
                del self._by_requester[request.requester_worker_id]
        if request.group is not None:
            parts = self._by_group[request.group.key]
            del parts[request.group.part_id]
            if not parts:
                del self._by_group[request.group.key]

    def drop_if_idle(self, queue: Queue) -> None:
        """Forget a queue that nobody waits in and nobody serves."""
        if not queue.running and not queue.waiters and not queue.newcomers:
            self._queues.pop(queue.space, None)
            self.expiries.discard(queue.space)
