"""What really happened in a simulated cluster, and so what a server may not answer.

All calls pass here. The witness notes when the server last heard of each daemon, on a clock that
leaves out the server's own stalls, and holds each answer and the database against it.
"""

import hashlib
import math
from collections import deque
from typing import Any

import attrs
import trio
from simulated_host import CallFailed, Host

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

TIMEOUT_S = 30.0
GRACE_S = 0.8

# An expiry is acted on within a second; a stall is measured to a quarter of one.
LATE_S = 1.0
STALL_ERROR_S = 0.25

# Sums of many small times are not exact.
CLOCK_ERROR_S = 1e-6

_LINES_KEPT = 200


@attrs.define
class Known:
    """What is known of one daemon: when the server heard of it, and what it then was told.

    A call that was never answered may have been heard. ``heartbeat_at`` is that of answered calls,
    so no later than the truth, ``may_at`` that of all calls, so no earlier; ``run`` and ``may_run``
    are the runs of the server that those belong to, ``may_confirm`` the one that may have been
    told what the daemon holds. ``may_be_gone`` since it ordered its own
    end or a server that is gone may have expired it, ``gone_at`` since that order was answered.
    """

    may_at: float
    may_run: int
    heartbeat_at: float = -math.inf
    run: int = -1
    stalls: int = 0
    may_confirm: int = -1
    may_be_gone: bool = False
    gone_at: float = math.inf


class Witness:
    """Sees every call of every daemon of a cluster."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, Known] = {}
        self._cursors: dict[str, tuple[int, int, int]] = {}
        self._digest = hashlib.sha256()
        self._stalled_s = 0.0
        self._stalls = 0
        self._run = 0
        self._started_at = 0.0
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.counts: dict[str, int] = {}

    @property
    def digest(self) -> str:
        """The hash of all that happened so far."""
        return self._digest.hexdigest()

    def now(self) -> float:
        """The time in which the server was not stalled."""
        return trio.current_time() - self._stalled_s

    def note(self, who: str, what: str, how: str = "") -> None:
        line = f"{trio.current_time():.3f} {who} {what} {how}"
        self.lines.append(line)
        self._digest.update(line.encode())
        event = f"{what} {how}".strip()
        self.counts[event] = self.counts.get(event, 0) + 1

    def stalled(self, seconds: float) -> None:
        self._stalled_s += seconds
        self._stalls += 1

    def stopped(self) -> None:
        """The server has ended; whom it may have expired by now stays so."""
        for known in self._known.values():
            known.may_be_gone |= self._silent_s(known) >= TIMEOUT_S + GRACE_S

    def started(self) -> None:
        self._run += 1
        self._started_at = self.now()

    # Calls.

    async def call(self, daemon: str, request: Any) -> Any:
        what = type(request).__name__.removesuffix("Request")
        run = self._run
        self._is_sent(daemon, what)
        try:
            answer = await self._host.call(request)
        except CallFailed as failed:
            self.note(daemon, what, failed.code.name)
            raise
        if what == "ReconcileWorkerState":
            how = wire.ReconcileResultKind.Name(answer.result_kind)
        else:
            how = wire.Status.Name(answer.status)
        self.note(daemon, what, how.removeprefix("RECONCILE_RESULT_KIND_"))
        if what in {"RegisterWorker", "WorkerHeartbeat"}:
            self._judge_liveness(daemon, what, answer, run)
        elif what == "UnregisterWorker":
            self._known[daemon].gone_at = self.now()
        elif what == "RequestReplicaTransport" and answer.status == wire.STATUS_OK:
            self._judge_grant(answer)
        return answer

    def _is_sent(self, daemon: str, what: str) -> None:
        known = self._known.setdefault(daemon, Known(self.now(), self._run))
        if what in {"RegisterWorker", "WorkerHeartbeat"}:
            known.may_at, known.may_run = self.now(), self._run
        elif what in {"ReconcileWorkerState", "RegisterReplica"}:
            known.may_confirm = self._run
        elif what == "UnregisterWorker":
            known.may_be_gone = True

    def _judge_liveness(self, daemon: str, what: str, answer: Any, run: int) -> None:
        known = self._known[daemon]
        if answer.status == wire.STATUS_OK:
            known.heartbeat_at, known.run, known.stalls = self.now(), run, self._stalls
            known.may_be_gone, known.gone_at = False, math.inf
            return
        assert what == "WorkerHeartbeat", (daemon, answer)
        silent_s = self._silent_s(known)
        assert known.may_be_gone or silent_s >= TIMEOUT_S + GRACE_S, f"{daemon}: {silent_s} s"

    def _silent_s(self, known: Known) -> float:
        """How long a daemon was silent to the present server, at most."""
        error_s = STALL_ERROR_S * (self._stalls - known.stalls) + CLOCK_ERROR_S
        return self.now() - self._since(known.heartbeat_at, known.run) + error_s

    def _since(self, heartbeat_at: float, run: int) -> float:
        """Since when a daemon is silent: to the present server, its own start counts as hearing."""
        return heartbeat_at if run == self._run else max(heartbeat_at, self._started_at)

    def _judge_grant(self, answer: Any) -> None:
        """A source is heard, active, and may have told this very server what it holds."""
        source = answer.remote_memory_info.node_id.removeprefix("node-")
        known = self._known[source]
        assert known.gone_at >= self.now(), source
        assert known.may_run == known.may_confirm == self._run, (source, known, self._run)
        assert self.now() - known.may_at <= TIMEOUT_S + CLOCK_ERROR_S, (source, known, self.now())

    # The database.

    async def inspect(self) -> None:
        """Hold all that is stored against the invariants and against what was seen."""
        await self._inspect_transports()
        rows = await self._host.rows(
            "SELECT daemon_id, generation, request_seq, state_version FROM workers"
            " JOIN worker_cursors USING (worker_key) ORDER BY daemon_id"
        )
        assert len({row[0] for row in rows}) == len(rows)
        for daemon, generation, seq, version in rows:
            before = self._cursors.get(daemon, (0, 0, 0))
            assert generation >= before[0], daemon
            assert version >= before[2], daemon
            assert seq >= before[1] or generation > before[0], daemon
            self._cursors[daemon] = generation, seq, version
        await self._inspect_liveness()

    async def _inspect_liveness(self) -> None:
        for daemon in await self._active():
            known = self._known[daemon]
            silent_s = self.now() - self._since(known.may_at, known.may_run)
            assert silent_s <= TIMEOUT_S + GRACE_S + LATE_S, f"{daemon} lives on: {silent_s} s"
        listed = await self._host.call(wire.ListActiveWorkersRequest(include_unavailable=True))
        for worker in listed.workers:
            assert self.now() - self._known[worker.daemon_id].may_at <= TIMEOUT_S + CLOCK_ERROR_S, (
                worker.daemon_id
            )
        self.note("server", "active", str(len(listed.workers)))

    async def _active(self) -> list[str]:
        rows = await self._host.rows("SELECT daemon_id FROM workers WHERE inactive_at IS NULL")
        return [daemon for (daemon,) in rows]

    async def _inspect_transports(self) -> None:
        """Loads are the transports in progress, within the limit, and none hangs on the lost."""
        wrong = await self._host.rows(
            "SELECT replica_id, current_requests, max_concurrency, counted FROM (SELECT *,"
            " (SELECT count(*) FROM transports t WHERE t.replica_id = r.replica_id"
            "  AND outcome = 0) AS counted FROM replicas r)"
            " WHERE current_requests != counted OR current_requests > max_concurrency"
        )
        assert wrong == []
        hanging = await self._host.rows(
            "SELECT daemon_id, count(*) FROM transports JOIN workers"
            " ON worker_key = source_worker_key WHERE outcome = 0 AND inactive_at IS NOT NULL"
            " GROUP BY 1"
        )
        for daemon, _ in hanging:
            assert self._known[daemon].may_be_gone, f"transports of {daemon} outlive it"

    async def held(self) -> dict[str, set[str]]:
        """Return what each daemon holds according to the database, if it is available."""
        rows = await self._host.rows(
            "SELECT daemon_id, artifact_id FROM replicas r JOIN artifacts USING (artifact_key)"
            " JOIN worker_ids i USING (worker_key) JOIN workers USING (worker_key)"
            " WHERE is_available AND r.confirmation = i.confirmation AND inactive_at IS NULL"
        )
        held: dict[str, set[str]] = {}
        for daemon, artifact_id in rows:
            held.setdefault(daemon, set()).add(artifact_id)
        return held
