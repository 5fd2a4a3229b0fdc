"""Random histories of the registry against a plain model: the counters never lie.

Nor does what memory knows of sources and groups from the commits.
"""

import random
from collections import Counter
from typing import Any

import attrs
import pytest

from globalstore.caches.sources import KnownSources
from globalstore.db import Runner, Snapshot, Store, Transaction
from globalstore.registry import new_ids, recovery, signals, worker_ids
from globalstore.registry.runtime import (
    replica_lists,
    replicas,
    sources,
    transport_ends,
    transports,
    workers,
)
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.runtime.replicas import ReplicaRegistration
from globalstore.registry.runtime.transport_ends import Outcome
from globalstore.registry.runtime.transports import (
    Granted,
    Miss,
    RequestGroup,
    RequestRefused,
    Round,
    TransportRequest,
)
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.scoring import Choice, GroupProgress, Mode, Scoring
from globalstore.rules.transfer import ExportState, Transfer

READABLE = Transfer(ExportState.EXPORTABLE, 0, ("k",), (100,))
STEPS = 400
GROUPS = ("g1", "g2")
DAEMONS = ("a", "b", "c")
REQUEST_IDS = [f"r{number}" for number in range(12)]


@attrs.define
class ModelReplica:
    identity: tuple[str, int]
    daemon: str
    limit: int
    readable: bool
    load: int = 0
    available: bool = True


@attrs.define
class ModelTransport:
    replica_id: bytes
    request_id: str | None
    fingerprint: bytes
    source: str
    requester: str
    outcome: Outcome = Outcome.IN_PROGRESS


class History:
    """Runs random steps on a store and keeps what a reader of the contract would expect."""

    def __init__(self, store: Store, seed: int, mode: Mode, known: KnownSources) -> None:
        self.store = store
        self.scoring = Scoring(mode)
        self.known_sources = known
        self.misses: set[Miss] = set()
        self.parts = 0
        self.listed = 0
        self.rng = random.Random(seed)
        self.now_us = 1_000_000
        self.keys: dict[str, int] = {}
        self.known: set[str] = set()
        self.active: dict[str, bool] = dict.fromkeys(DAEMONS, False)
        self.replicas: dict[bytes, ModelReplica] = {}
        self.transports: dict[bytes, ModelTransport] = {}

    def routable(self) -> frozenset[int]:
        return frozenset(self.keys[daemon] for daemon, on in self.active.items() if on)

    def end(self, transport_id: bytes, outcome: Outcome) -> None:
        transport = self.transports[transport_id]
        if transport.outcome is Outcome.IN_PROGRESS:
            transport.outcome = outcome
            if transport.replica_id in self.replicas:
                self.replicas[transport.replica_id].load -= 1

    async def register_worker(self) -> None:
        daemon = self.rng.choice(DAEMONS)
        request = workers.WorkerRegistration(daemon, "n", daemon, 1, 2, 0, 0, 0, False, "")
        answer = await self.store.write(
            workers.register_worker, request, f"w-{daemon}", self.now_us
        )
        assert isinstance(answer, workers.Registered)
        self.keys[daemon] = answer.worker.worker_key
        if daemon in self.known and not self.active[daemon]:
            for replica in self.replicas.values():
                if replica.daemon == daemon:
                    replica.available = False
        self.known.add(daemon)
        self.active[daemon] = True

    async def lose_worker(self) -> None:
        daemon = self.rng.choice(DAEMONS)
        if daemon not in self.known:
            return
        graceful = self.rng.random() < 0.5
        await self.store.write(workers.unregister_worker, f"w-{daemon}", graceful, self.now_us)
        self.active[daemon] = False
        for replica in self.replicas.values():
            if replica.daemon == daemon:
                replica.available = False
        if not graceful:
            for transport_id, transport in self.transports.items():
                if daemon in {transport.source, transport.requester}:
                    self.end(transport_id, Outcome.EXPIRED)

    async def register(self) -> None:
        artifact, device = self.rng.choice(["x", "y"]), self.rng.randrange(4)
        daemon, limit = self.rng.choice(DAEMONS), self.rng.randint(1, 3)
        readable = self.rng.random() < 0.8
        request = ReplicaRegistration(
            artifact, "", Place("n", "h", 1, MemoryTier.RAM, device), 100, limit, f"w-{daemon}",
            READABLE if readable else Transfer(), "", False, "", None, None, None,
        )  # fmt: skip
        new_id = new_ids.new_id()
        got = await self.store.write(replicas.register_replica, request, new_id, self.now_us)
        self.keys[daemon] = await self.store.write(worker_ids.intern, f"w-{daemon}")
        known = [k for k, r in self.replicas.items() if r.identity == (artifact, device)]
        assert got == (known[0] if known else new_id)
        if not known:
            self.replicas[new_id] = ModelReplica((artifact, device), daemon, limit, readable)
            return
        replica = self.replicas[got]
        replica.daemon, replica.limit, replica.available = daemon, limit, True
        replica.readable = readable
        for transport in self.transports.values():
            if transport.replica_id == got and transport.outcome is Outcome.IN_PROGRESS:
                transport.source = daemon

    async def unregister(self) -> None:
        replica_id = self.rng.choice([*self.replicas, new_ids.new_id()])
        artifact = self.rng.choice(["x", "y"])
        found = await self.store.write(replicas.unregister_replica, artifact, replica_id)
        known = self.replicas.get(replica_id)
        assert found == (known is not None and known.identity[0] == artifact)
        if found:
            del self.replicas[replica_id]

    async def claim(self) -> None:
        artifact = self.rng.choice(["x", "y"])
        names = self.rng.sample(REQUEST_IDS, self.rng.randint(1, 3))
        request = [self.request(artifact, name) for name in names]
        keys = [each.group.key for each in request if each.group]
        await self.store.write(transports.count_groups, keys)
        best = await self.store.read(self.best, artifact, request[0])
        round_ = Round(
            ranked=request,
            newcomers=request,
            routable=self.routable(),
            accepting=self.routable(),
            scoring=self.scoring,
            relaxed_kinds=frozenset({"k"}),
            shortlist=self.known_sources.shortlist((artifact, "")),
            groups=self.known_sources.groups(keys),
        )
        answers = await self.store.write(transports.grant, round_, self.now_us)
        first = answers[request[0].request_id]
        if isinstance(first, Granted) and not first.replayed:
            assert first.source is not None
            assert first.source.replica_id == best
        for each in request:
            self.granted(each, answers[each.request_id])

    def best(self, tx: Snapshot, artifact: str, request: TransportRequest) -> bytes | None:
        """Return the source that is the best by what the database says, read anew."""
        row = tx.one("SELECT artifact_key FROM artifacts WHERE artifact_id = ?", (artifact,))
        where: dict[str, object] = {
            "artifact_key": row and row[0], "view_id": "", "now": self.now_us
        }  # fmt: skip
        shortlist = sources.listed(tx, where, self.routable())
        choice = Choice(
            self.scoring, shortlist.candidates, shortlist.loads, self.routable(), self.now_us
        )
        group = None
        if request.group is not None:
            rows = tx.all(
                "SELECT replica_id FROM transports WHERE group_id = ?",
                (request.group.group_id,),
            )
            counts = Counter(replica_id for (replica_id,) in rows)
            group = GroupProgress(counts, counts.total())
        chosen = choice.best(group)
        return None if chosen is None else chosen.source.replica_id

    def request(self, artifact: str, name: str) -> TransportRequest:
        fingerprint = artifact.encode() + self.rng.choice([b"", b"", b"", b"2"])
        requester = self.rng.choice(["", "", "w-a", "w-b"])
        group = None
        if self.rng.random() < 0.5:
            self.parts += 1
            group = RequestGroup("k", self.rng.choice(GROUPS), 0, f"p{self.parts}", 9, 0)
        return TransportRequest(
            artifact, "", "n", "a", 0, requester, name, fingerprint, group,
            new_ids.new_id(),
        )  # fmt: skip

    def granted(self, request: TransportRequest, answer: Any) -> None:
        """Follow one answer; claims of one pass are judged in their order."""
        owner = next(
            (k for k, t in self.transports.items() if t.request_id == request.request_id), None
        )
        if owner is not None and self.transports[owner].outcome in {0, 1}:
            earlier = self.transports[owner]
            if earlier.fingerprint != request.fingerprint:
                assert isinstance(answer, RequestRefused)
                return
            gone = earlier.replica_id not in self.replicas
            if earlier.outcome is Outcome.SUCCESS or not gone:
                assert isinstance(answer, Granted)
                assert (answer.transport_id, answer.replayed) == (owner, True)
                return
            self.end(owner, Outcome.CANCELLED)
        if owner is not None:
            self.transports[owner].request_id = None
        mine = [r for r in self.replicas.values() if r.identity[0] == request.artifact_id]
        there = [r for r in mine if r.available and self.active[r.daemon]]
        free = [r for r in there if r.readable and r.load < r.limit]
        if free:
            assert isinstance(answer, Granted)
            assert answer.source is not None
            replica = self.replicas[answer.source.replica_id]
            assert replica in free
            if self.scoring.mode is Mode.LEGACY:
                assert replica.load / replica.limit == min(r.load / r.limit for r in free)
            replica.load += 1
            self.transports[answer.transport_id] = ModelTransport(
                answer.source.replica_id,
                request.request_id,
                request.fingerprint,
                replica.daemon,
                request.requester_worker_id[2:],
            )
        else:
            self.misses.add(answer)
            if any(r.readable for r in mine):
                assert answer is Miss.BUSY
            elif there:
                assert answer is Miss.ANNOUNCED
            else:
                assert answer is (Miss.NO_SOURCE if mine else Miss.NO_REPLICA)

    async def complete(self) -> None:
        transport_id = self.rng.choice([*self.transports, new_ids.new_id()])
        outcome = Outcome(self.rng.randint(1, 4))
        found = await self.store.write(
            transport_ends.complete, transport_id, outcome, "", self.now_us
        )
        assert found == (transport_id in self.transports)
        if found:
            self.end(transport_id, outcome)

    async def expire(self) -> None:
        open_ = await self.store.read(transport_ends.in_progress)
        some = [key for key, _ in open_ if self.rng.random() < 0.2]

        def ids(tx: Transaction) -> list[bytes]:
            known = dict(tx.all("SELECT transport_key, transport_id FROM transports"))
            return [known[key] for key in some]

        named = await self.store.read(ids)
        ended = await self.store.write(transport_ends.expire_transports, some, "why", self.now_us)
        assert ended == len(some)
        for transport_id in named:
            self.end(transport_id, Outcome.EXPIRED)

    async def restart(self) -> None:
        recovered = await self.store.write(recovery.recover, "cluster", self.now_us)
        assert recovered.counters_corrected == 0
        self.known_sources.worker_routable()
        self.known_sources.transports_forgotten(signals.TransportsForgotten())
        for replica in self.replicas.values():
            replica.available = False

    async def check(self) -> None:
        """Compare all that the store shows with the model, and hold it to the invariants."""
        rows = await self.store.read(
            lambda tx: tx.all(
                "SELECT r.replica_id, r.current_requests, r.max_concurrency,"
                " (SELECT count(*) FROM transports t WHERE t.replica_id = r.replica_id"
                "  AND outcome = 0) FROM replicas r"
            )
        )
        for _, load, _, open_ in rows:
            assert load == open_
        assert {row[0]: (row[1], row[2]) for row in rows} == {
            key: (replica.load, replica.limit) for key, replica in self.replicas.items()
        }
        found = await self.store.read(
            lambda tx: tx.all(
                "SELECT transport_id, replica_id, request_id, outcome FROM transports"
            )
        )
        assert {row[0]: row[1:] for row in found} == {
            key: (each.replica_id, each.request_id, each.outcome)
            for key, each in self.transports.items()
        }
        await self.store.read(self.check_memory)
        shown = await self.store.read(replica_lists.page, replica_lists.Filters(), 0, 1000)
        for replica in shown.replicas:
            assert 0 <= replica.current_requests <= replica.max_concurrency

    def check_memory(self, tx: Snapshot) -> None:
        """Compare what is known of workers, sources and groups with the rows they follow from."""
        wrong = tx.all(
            "SELECT worker_id, load_sum, limit_sum FROM worker_ids i WHERE"
            " (load_sum, limit_sum) != (SELECT coalesce(sum(current_requests), 0),"
            " coalesce(sum(max_concurrency), 0) FROM replicas r"
            " WHERE r.worker_key = i.worker_key)"
        )
        assert wrong == []
        known = self.known_sources
        for artifact_key, artifact in tx.all("SELECT artifact_key, artifact_id FROM artifacts"):
            shortlist = known.shortlist((artifact, ""))
            if shortlist is None:
                continue
            self.listed += 1
            assert shortlist.candidates == sorted(shortlist.candidates)
            where: dict[str, object] = {
                "artifact_key": artifact_key, "view_id": "", "now": self.now_us
            }  # fmt: skip
            rows = sources.listed(tx, where, self.routable())
            mine = {row for row in shortlist.candidates if row.load < -row.minus_limit}
            # Nothing is missing; what is too much has been hidden, and a claim finds that out.
            assert mine >= set(rows.candidates)
            for worker_key, load in rows.loads.items():
                assert shortlist.loads[worker_key] == load
        for name in GROUPS:
            progress = known.groups([("k", name, 0)]).get(("k", name, 0))
            if progress is not None:
                found = tx.all(
                    "SELECT replica_id, count(*), sum(outcome = 1) FROM transports"
                    " WHERE group_id = ? GROUP BY 1",
                    (name,),
                )
                assert progress.granted == {row[0]: row[1] for row in found}
                assert progress.total == sum(row[1] for row in found)
                assert progress.succeeded == sum(row[2] for row in found)


def follow(known: KnownSources, committed: list[Any]) -> None:
    """Tell memory of a commit, as the server does."""
    followers = {
        signals.SourceFreed: known.source_freed,
        signals.WorkerReplicasChanged: known.replicas_changed,
        workers.WorkerRegistered: known.worker_routable,
        signals.TransportGranted: known.granted,
        signals.TransportEnded: known.ended,
        sources.SourcesListed: known.listed,
        signals.GroupCounted: known.group_counted,
    }
    for signal in committed:
        if type(signal) in followers:
            followers[type(signal)](signal)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seed", range(6))
async def test_any_history_keeps_the_invariants_at_every_step(seed: int, mode: Mode) -> None:
    print("seed", seed)
    known = KnownSources()
    async with Store(
        None,
        migrations=MIGRATIONS,
        runner=Runner.INLINE,
        on_commit=lambda committed: follow(known, committed),
    ) as store:
        history = History(store, seed, mode, known)
        steps = {
            history.register_worker: 6,
            history.lose_worker: 2,
            history.register: 20,
            history.unregister: 4,
            history.claim: 40,
            history.complete: 22,
            history.expire: 2,
            history.restart: 1,
        }
        for _ in range(STEPS):
            history.now_us += history.rng.randint(0, 1000)
            step = history.rng.choices([*steps], [*steps.values()])[0]
            await step()
            await history.check()
        outcomes = {each.outcome for each in history.transports.values()}
        assert len(outcomes) > 3
        assert len(history.misses) > 1
        assert history.listed > STEPS / 10
