"""Requests that wait for a source: their order, and what wakes them.

A waiter is a parked call: it exists only while its RPC lives and costs neither a thread nor a look
at the database. Whatever may free a source kicks the queue of that artifact and view; one pass at a
time then serves its oldest waiters in one transaction. While a pass is deciding on a waiter
(``deciding``) nothing else may end it, so it is either granted or withdrawn, never both. Its
deadline counts once it had its turn (``attempted``), so that the least patient request still gets
one try.
"""

import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Self

import trio

from globalstore.caches.sources import KnownSources
from globalstore.db import DatabaseError, Store
from globalstore.liveness.alarm import Alarm
from globalstore.liveness.workers import Workers
from globalstore.registry.runtime import transports
from globalstore.registry.runtime.transports import (
    Answer,
    Granted,
    Miss,
    RequestRefused,
    Round,
    TransportRequest,
)
from globalstore.registry.signals import (
    SourceFreed,
    SourcesExpire,
    SourcesFreed,
    Space,
    TransportEnded,
    WorkerEnded,
    WorkerReconciled,
)
from globalstore.rpc import Call
from globalstore.rules.scoring import Mode, Scoring
from globalstore.scheduling.grants import Grants
from globalstore.scheduling.queue_order import ranked
from globalstore.scheduling.waiter_index import WaiterIndex
from globalstore.scheduling.waiters import (
    Policy,
    Queue,
    Waiter,
    Withdrawn,
    event_of,
    groups_of,
    is_suspect,
    next_in_line,
)
from globalstore.waiting.handouts import Handouts

# Newcomers checked in one pass. Each costs the writer two index look-ups; with this bound a burst
# of requests for one artifact is taken in without holding other calls up.
_NEWCOMERS_PER_PASS = 128

# How long after replicas have expired their waiters are told: rounding must not make it before.
_EXPIRY_MARGIN_S = 0.001

# Queues served at the same moment. More would not make commits fuller, but a worker that comes back
# wakes the queues of all it holds: they must not fill the database's queue and refuse others.
_PASSES_MAX = 64


class SourceQueues:
    """All requests that wait for a source. Use as ``async with``: it owns the tasks of its passes.

    ``wall_us`` reads the wall clock in microseconds; ``on_event`` is called at each step in the
    life of a request, see DISPATCH_EVENTS of the metrics.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        known: KnownSources,
        policy: Policy,
        wall_us: Callable[[], int],
        handouts: Handouts,
        on_event: Callable[[str], None] = lambda event: None,
    ) -> None:
        self._on_event = on_event
        self._store = store
        self._workers = workers
        self._known = known
        self._policy = policy
        self._wall_us = wall_us
        self._grants = Grants(store, handouts, wall_us, on_event)
        self.waiters = WaiterIndex()
        self._expiry_alarm = Alarm(self.waiters.expiries.next)
        self._due: deque[Queue] = deque()
        self._serving = 0
        self._stopping = False
        self._nursery_context = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        return f"<SourceQueues [{self.waiters}]>"

    def __len__(self) -> int:
        return len(self.waiters)

    @property
    def scoring(self) -> Scoring:
        """How sources are compared."""
        return self._policy.scoring

    async def __aenter__(self) -> Self:
        self._nursery = await self._nursery_context.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        self.stop()
        return await self._nursery_context.__aexit__(*exc_info)  # type: ignore[arg-type]

    def stop(self) -> None:
        """End every waiting request as STOPPING, and each that comes later."""
        self._stopping = True
        for waiter in self.waiters:
            if not waiter.deciding:
                self._withdraw(waiter, Withdrawn.STOPPING)

    # Calls.

    async def request(
        self,
        request: TransportRequest,
        patience_s: float,
        call: Call,
        *,
        is_patient: bool | None = None,
    ) -> Answer | Withdrawn:
        """Wait up to ``patience_s`` seconds for a source; 0 is one immediate attempt.

        ``is_patient`` tells whether the caller wanted to wait, if that differs from whether it can.

        A second call with the same request joins the first: both get one answer and the longer
        patience holds. Raises DatabaseError when the attempt could not be made. When cancelled,
        the request is withdrawn. A source that was granted to calls none of which delivered it is
        given back; one that has arrived with an earlier answer stays, whatever becomes of repeats.
        """
        deadline = trio.current_time() + patience_s
        is_patient = patience_s > 0 if is_patient is None else is_patient
        await self._grants.returned(request)
        waiter = self.waiters.of_request(request.request_id)
        if waiter is None:
            refused = self._refused(request)
            if refused is not None:
                return refused
            waiter = self._enqueue(request, deadline, is_patient)
        elif waiter.request.fingerprint != request.fingerprint:
            return RequestRefused(
                f"request_id {request.request_id[:80]!r} was already used with different payload"
            )
        else:
            self._on_event("joined")
            waiter.is_patient = waiter.is_patient or is_patient
            if deadline > waiter.deadline:
                waiter.deadline = deadline
                waiter.notify()
        handout = self._grants.hold(call, request)
        answer = await self._wait(waiter, call)
        if not isinstance(answer, Granted):
            await handout.unanswered(call)
        return answer

    def _refused(self, request: TransportRequest) -> RequestRefused | Withdrawn | None:
        if self._stopping:
            return Withdrawn.STOPPING
        if len(self) >= self._policy.max_waiters:
            self._on_event("rejected")
            return Withdrawn.TOO_MANY
        return self.waiters.contradicted(request, self._policy.relaxed_group_kinds)

    def _enqueue(self, request: TransportRequest, deadline: float, is_patient: bool) -> Waiter:
        waiter = Waiter(request, trio.current_time(), deadline, is_patient)
        queue = self.waiters.add(waiter)
        self._on_event("enqueued")
        self._kick(queue)
        return waiter

    async def _wait(self, waiter: Waiter, call: Call) -> Answer | Withdrawn:
        waiter.callers.append(call)
        try:
            while waiter.answer is None:
                # A pass may still save a waiter whose deadline has passed: only that ends the wait.
                overdue = waiter.deciding and waiter.deadline <= trio.current_time()
                limit = waiter.deadline if waiter.attempted and not overdue else math.inf
                changed = waiter.changed
                with trio.move_on_at(limit):
                    await changed.wait()
                    continue
                if waiter.answer is None and not waiter.deciding:
                    self._withdraw(waiter, Withdrawn.TIMED_OUT)
            await trio.lowlevel.checkpoint_if_cancelled()  # the caller may just have gone
            if isinstance(waiter.answer, Exception):
                raise waiter.answer
            return waiter.answer
        finally:
            waiter.callers.remove(call)
            if not waiter.callers and waiter.answer is None and not waiter.deciding:
                self._cancelled(waiter)

    def waiting(self, space: Space, requester_worker_id: str = "") -> tuple[int, int]:
        """Return how many requests wait for an artifact and view, and how many of a requester."""
        return self.waiters.counts(space, requester_worker_id)

    # Signals.

    def source_freed(self, signal: SourceFreed) -> None:
        """Take in that a waiter for a space may find a source now, or that there is none."""
        self._kick_space((signal.artifact_id, signal.view_id))

    def sources_freed(self, signal: SourcesFreed) -> None:
        """Do as ``source_freed`` for any number of spaces."""
        if self.waiters:
            for space in signal.spaces:
                self._kick_space(space)

    def transport_ended(self, signal: TransportEnded) -> None:
        """Take in that a transport ended: its source may serve a waiter now."""
        self._kick_space(signal.space)

    def worker_reconciled(self, signal: WorkerReconciled) -> None:
        """Take in that an inventory of a worker was accepted.

        If that changed something, sources may have come of rows that were not written, by a
        change of the confirmation number.
        """
        if signal.changed:
            self.worker_routable()

    def worker_routable(self) -> None:
        """Take in that some worker became a possible source of anything it holds."""
        for queue in self.waiters.queues():
            self._kick(queue)

    def worker_unroutable(self) -> None:
        """Take in that some worker is no possible source any more, nor will what it announced be.

        Queues that are being served may just be finding out that they hope for it.
        """
        for queue in self.waiters.queues():
            if queue.is_hoping or queue.running:
                self._kick(queue)

    def sources_expire(self, signal: SourcesExpire) -> None:
        """Take in when all replicas will have expired that waiters for a space may hope for."""
        if self.waiters.queue(signal.space) is not None:
            delay_s = (signal.at_us - self._wall_us()) / 1_000_000 + _EXPIRY_MARGIN_S
            self.waiters.expiries.set(signal.space, trio.current_time() + delay_s)
            self._expiry_alarm.sooner()

    async def watch_expiries(self) -> None:
        """Let waiters know when what they hope for has expired, until cancelled."""
        while True:
            await self._expiry_alarm.wait()
            for space in self.waiters.expiries.pop_due(trio.current_time()):
                self._kick_space(space)

    def worker_ended(self, signal: WorkerEnded) -> None:
        """Take in that a worker became inactive; if it is lost, what it waits for ends as timed
        out.
        """
        if not signal.lost:
            return
        for waiter in self.waiters.of_requester(signal.worker_id):
            waiter.deadline = -math.inf
            if not waiter.deciding:
                self._withdraw(waiter, Withdrawn.TIMED_OUT)

    # One pass over a queue.

    def _kick_space(self, space: Space) -> None:
        queue = self.waiters.queue(space)
        if queue is not None:
            self._kick(queue)

    def _kick(self, queue: Queue) -> None:
        queue.kicked = True
        if queue.running:
            return
        queue.running = True
        self._due.append(queue)
        if self._serving < _PASSES_MAX:
            assert self._nursery is not None
            self._serving += 1
            self._nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        try:
            while self._due:
                queue = self._due.popleft()
                queue.kicked = False
                await self._pass(queue)
                if queue.kicked:
                    self._due.append(queue)
                    continue
                queue.running = False
                self.waiters.drop_if_idle(queue)
        finally:
            self._serving -= 1

    async def _pass(self, queue: Queue) -> None:
        """Offer free sources to the next waiters, and check newcomers."""
        by_group = self._policy.scoring.mode is Mode.GROUP_DISPATCH
        if by_group:
            await self._learn_groups(queue)
        newcomers = list(islice(queue.newcomers.values(), _NEWCOMERS_PER_PASS))
        for waiter in newcomers:
            del queue.newcomers[waiter.request.request_id]
            queue.waiters[waiter.request.request_id] = waiter
        next_ones = next_in_line(queue.waiters.values(), self._policy.scan_limit)
        wall_us = self._wall_us()
        groups = self._known.groups(groups_of(next_ones)) if by_group else {}
        if by_group:
            now = trio.current_time()
            next_ones = ranked(next_ones, groups, self._policy.fairness, now, wall_us)
            next_ones.sort(key=is_suspect)
        # No more of them can be granted in this pass.
        next_ones = next_ones[: self._policy.batch_limit]
        tried = list(dict.fromkeys(next_ones + newcomers))
        if not tried:
            return
        for waiter in tried:
            waiter.deciding = True
        batch = Round(
            ranked=[waiter.request for waiter in next_ones],
            newcomers=[waiter.request for waiter in newcomers],
            routable=self._workers.routable(),
            accepting=self._workers.accepting(),
            grants_max=self._policy.batch_limit,
            relaxed_kinds=self._policy.relaxed_group_kinds,
            scoring=self._policy.scoring,
            shortlist=self._known.shortlist(queue.space),
            groups=groups,
        )
        try:
            answers = await self._store.write(transports.grant, batch, wall_us)
        except Exception as fault:  # noqa: BLE001  each caller raises it on its own
            for waiter in tried:
                self._decide(waiter, fault)
            self._kick_rest(queue)
            return
        self._take_in(queue, tried, answers)

    def _take_in(self, queue: Queue, tried: list[Waiter], answers: dict[str, Answer]) -> None:
        """Hand on the answers of a pass, and find out whether another one is needed."""
        # They want the same, so that none of them misses it for another reason.
        miss = next((answer for answer in answers.values() if isinstance(answer, Miss)), None)
        passing = miss if miss in transports.PASSING else None
        queue.is_hoping = passing is Miss.ANNOUNCED
        for waiter in tried:
            answer = answers.get(waiter.request.request_id)
            if answer is None or answer is passing:
                self._keep(waiter, passing)
            else:
                self._decide(waiter, answer)
        if passing is not None and queue.untried:
            # The earlier ones got nothing, so nothing is left for these.
            for waiter in [w for w in queue.waiters.values() if not w.attempted]:
                self._keep(waiter, passing)
        queue.untried = passing is None
        if passing is None:
            if miss is not None:
                for waiter in list(queue.waiters.values()):
                    self._decide(waiter, miss)
            self._kick_rest(queue)
        if queue.newcomers:
            queue.kicked = True

    def _kick_rest(self, queue: Queue) -> None:
        """Begin another pass at once for waiters that had no turn."""
        if queue.waiters or queue.newcomers:
            queue.kicked = True

    async def _learn_groups(self, queue: Queue) -> None:
        """Make sure that memory knows the scheduling groups of the next waiters."""
        next_ones = [
            *islice(queue.waiters.values(), self._policy.scan_limit),
            *islice(queue.newcomers.values(), _NEWCOMERS_PER_PASS),
        ]
        keys = groups_of(next_ones)
        known = self._known.groups(keys)
        unknown = [key for key in keys if key not in known]
        if unknown:
            try:
                await self._store.write(transports.count_groups, unknown)
            except DatabaseError:
                # Unknown groups count as new ones; if the database fails, the pass finds out.
                return

    def _keep(self, waiter: Waiter, miss: Miss | None) -> None:
        """Let a waiter wait on; if it had its turn, and a miss, its deadline counts from now on."""
        attempted = miss is not None
        waiter.deciding = False
        if not waiter.callers:
            self._cancelled(waiter)
        elif self._stopping:
            self._withdraw(waiter, Withdrawn.STOPPING)
        elif attempted and waiter.deadline <= trio.current_time():
            if miss is Miss.ANNOUNCED and not waiter.is_patient:
                self._decide(waiter, Miss.NO_SOURCE)
            else:
                self._withdraw(waiter, Withdrawn.TIMED_OUT)
        elif attempted and not waiter.attempted:
            waiter.attempted = True
            waiter.notify()

    def _decide(self, waiter: Waiter, answer: Answer | Exception) -> None:
        waiter.deciding = False
        waiter.answer = answer
        self.waiters.remove(waiter)
        waiter.notify()
        self._on_event(event_of(answer))
        if isinstance(answer, Granted):
            assert self._nursery is not None
            self._grants.hand_out(waiter.request, answer, self._nursery)

    def _withdraw(self, waiter: Waiter, why: Withdrawn) -> None:
        waiter.answer = why
        self.waiters.remove(waiter)
        waiter.notify()
        self._on_event("stopped" if why is Withdrawn.STOPPING else "timed_out")

    def _cancelled(self, waiter: Waiter) -> None:
        self.waiters.remove(waiter)
        self._on_event("cancelled")
