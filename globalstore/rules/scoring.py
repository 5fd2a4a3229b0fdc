"""Which of several sources is the best: the three modes and their formulas.

Loads count transports. Times are microseconds since 1970; 0 means never. A lower key wins, and the
tier of a source's memory comes before everything else.
"""

import enum
import math
import operator
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from typing import NamedTuple

import attrs

# Age in seconds at which an idle source has its whole bonus.
_DIFFUSION_S = 30.0


class Mode(enum.Enum):
    """How sources are compared; see §7 of the contract."""

    LEGACY = "LEGACY"
    SOURCE_BALANCE = "SOURCE_BALANCE"
    GROUP_DISPATCH = "GROUP_DISPATCH"


@attrs.frozen
class Weights:
    """What counts how much in the score of a source; 0 leaves a term out."""

    replica_load: float = 1.0
    worker_load: float = 1.0
    recent: float = 1.0
    diffusion: float = 1.0


@attrs.frozen
class Spread:
    """How the transports of one group are spread over sources.

    ``weight`` of a source's share beyond an even one; ``cap_ratio`` times an even share is the
    most that a source gets while others have less, 0 for no such cap; both have their full effect
    from ``candidates_min`` sources on.
    """

    weight: float = 2.0
    cap_ratio: float = 1.3
    candidates_min: int = 3

    def scale(self, candidates: int) -> float:
        """Return the share of its weight that the spread has with so many candidates."""
        if candidates <= 1:
            return 0.0
        if candidates >= self.candidates_min:
            return 1.0
        return (candidates - 1) / (self.candidates_min - 1)

    def cap(self, candidates: int, granted: int) -> float | None:
        """Return how many transports of a group one source may have; None when it is no matter."""
        if candidates < self.candidates_min or self.cap_ratio <= 0 or granted == 0:
            return None
        return max(1.0, (granted + 1) / candidates * self.cap_ratio)


@attrs.frozen
class Scoring:
    """The mode and all its numbers."""

    mode: Mode = Mode.GROUP_DISPATCH
    weights: Weights = attrs.Factory(Weights)
    spread: Spread = attrs.Factory(Spread)


class Candidate(NamedTuple):
    """A source with all that its place in the order depends on.

    ``ratio`` is load by limit. Sorted, candidates are in the order (tier, load ratio, least
    recently assigned), and among those that are equal in that, in the order of the tie-breaks.
    """

    tier: int
    ratio: float
    last_assigned_us: int
    load: int
    minus_limit: int
    replica_id: bytes
    updated_us: int
    worker_key: int
    seq: int
    expires_us: int | None

    def with_load(self, load: int, last_assigned_us: int) -> "Candidate":
        """Return the source under another load."""
        ratio = load / max(1, -self.minus_limit)
        return self._replace(load=load, ratio=ratio, last_assigned_us=last_assigned_us)


class WorkerLoad(NamedTuple):
    """Load and limit summed over all replicas of a worker, and the ratio of them."""

    ratio: float
    load: int
    limit: int

    @classmethod
    def of(cls, load: int, limit: int) -> "WorkerLoad":
        """Return the load of a worker with ``load`` transports of at most ``limit``."""
        return cls(load / max(1, limit), load, limit)


# Of a worker of whom nothing is known.
_UNKNOWN_WORKER = WorkerLoad(1.0, 1, 1)


@attrs.frozen
class GroupProgress:
    """How far a group of requests is.

    ``granted`` counts by replica id the transports it was ever granted, ``total`` all of them;
    ``succeeded`` counts the parts that arrived, the last of them at ``last_success_us``.
    """

    granted: Mapping[bytes, int] = attrs.Factory(dict)
    total: int = 0
    succeeded: int = 0
    last_success_us: int = 0

    def with_grant(self, replica_id: bytes) -> "GroupProgress":
        """Return the progress after one more transport was granted."""
        granted = {**self.granted, replica_id: self.granted.get(replica_id, 0) + 1}
        return attrs.evolve(self, granted=granted, total=self.total + 1)

    def with_success(self, at_us: int) -> "GroupProgress":
        """Return the progress after one more part arrived."""
        return attrs.evolve(
            self,
            succeeded=self.succeeded + 1,
            last_success_us=max(self.last_success_us, at_us),
        )


def hotspot(granted: int, total: int, candidates: int) -> float:
    """Return by how much a source's share of a group's transports exceeds an even one."""
    if candidates <= 1 or total == 0:
        return 0.0
    return max(0.0, (granted / total) / (1 / candidates) - 1)


class Parts(NamedTuple):
    """The terms of a source's score before they are weighed; ``score`` is what they come to.

    ``over_cap`` when the source already has more than its share of the group.
    """

    replica_load: float
    worker_load: float
    recent: float
    diffusion: float
    hotspot: float
    over_cap: bool
    score: float


def parts(
    scoring: Scoring,
    source: Candidate,
    worker: WorkerLoad | None,
    now_us: int,
    candidates: int = 0,
    group: GroupProgress | None = None,
) -> Parts:
    """Return each term of a source's score, for people to read.

    ``candidates`` is the number of eligible sources, ``group`` that of the request if it has one.
    """
    weights, spread = scoring.weights, scoring.spread
    age_s = max(0, now_us - source.last_assigned_us) * 1e-6
    never = source.last_assigned_us == 0
    replica_load = source.ratio
    worker_load = (worker or _UNKNOWN_WORKER).ratio
    recent = 0.0 if never else 1 / (1 + age_s)
    diffusion = 0.0 if source.load > 0 else 1.0 if never else min(1.0, age_s / _DIFFUSION_S)
    score = (
        weights.replica_load * replica_load
        + weights.worker_load * worker_load
        + weights.recent * recent
        - weights.diffusion * diffusion
    )
    above, over = 0.0, False
    if group is not None and scoring.mode is Mode.GROUP_DISPATCH:
        granted = group.granted.get(source.replica_id, 0)
        above = hotspot(granted, group.total, candidates)
        score += spread.weight * spread.scale(candidates) * above
        cap = spread.cap(candidates, group.total)
        over = cap is not None and granted + 1 > cap
    return Parts(replica_load, worker_load, recent, diffusion, above, over, score)


def place(scoring: Scoring, source: Candidate, terms: Parts) -> tuple[float, ...]:
    """Return by what a source is compared, but for its id, which breaks ties; the lowest wins."""
    if scoring.mode is Mode.LEGACY:
        return (source.tier, source.ratio, *_legacy(source)[:-1])
    return (source.tier, terms.score, source.load, source.minus_limit, source.last_assigned_us)


class Chosen(NamedTuple):
    """The best source, and how many were passed over because their group has enough of them."""

    source: Candidate
    capped: int


class Choice:
    """The free sources of one artifact and view, as the requests of one pass use them up.

    ``candidates`` come sorted. ``loads`` are those of their workers; ``routable`` are the keys of
    the workers that are live and accept requests: only their sources that have a free slot and have
    not expired are eligible.

    Candidates are looked at in their order, and only as long as one of the rest could be better.
    The terms that do not depend on the worker only get worse within a stretch of the order (idle
    sources, and those of one load ratio), and no worker is better than the best of all.
    """

    def __init__(
        self,
        scoring: Scoring,
        candidates: list[Candidate],
        loads: Mapping[int, WorkerLoad],
        routable: frozenset[int],
        now_us: int,
    ) -> None:
        self._scoring = scoring
        self._rows = candidates.copy()
        self._loads = dict(loads)
        self._routable = routable
        self._now_us = now_us

    def __len__(self) -> int:
        """Return how many sources are eligible."""
        routable, now_us = self._routable, self._now_us
        # As ``_is_eligible``, in the fewest steps.
        return len(
            [
                None
                for row in self._rows
                if row[7] in routable and row[3] < -row[4] and (row[9] is None or row[9] > now_us)
            ]
        )

    def _is_eligible(self, row: Candidate) -> bool:
        return (
            row[7] in self._routable
            and row[3] < -row[4]
            and (row[9] is None or row[9] > self._now_us)
        )

    def best(self, group: GroupProgress | None = None) -> Chosen | None:
        """Return the source that a request of this group is to get; None when none is left."""
        mode = self._scoring.mode
        if mode is Mode.LEGACY:
            return self._legacy()
        if mode is not Mode.GROUP_DISPATCH or (group is not None and group.total == 0):
            group = None
        return self._by_score(group)

    def _legacy(self) -> Chosen | None:
        rows, routable, now_us = self._rows, self._routable, self._now_us
        first = next((i for i, row in enumerate(rows) if self._is_eligible(row)), None)
        if first is None:
            return None
        tier, ratio = rows[first][:2]
        end = bisect_right(rows, (tier, ratio, math.inf), first)
        equals = [
            row
            for row in rows[first:end]
            if row[7] in routable and row[3] < -row[4] and (row[9] is None or row[9] > now_us)
        ]
        return Chosen(min(equals, key=_legacy), 0)

    def _by_score(self, group: GroupProgress | None) -> Chosen | None:
        rows, loads, weights = self._rows, self._loads, self._scoring.weights
        w1, w2 = weights.replica_load, weights.worker_load
        w3, w4, now_us = weights.recent, weights.diffusion, self._now_us
        routable, tier = self._routable, -1
        lightest = w2 * min(loads.values(), default=_UNKNOWN_WORKER)[0]
        crowding = self._crowding(group)
        best: _Place | None = None
        best_over: _Place | None = None
        capped = 0
        index = 0
        while index < len(rows):
            row = rows[index]
            tier_, ratio, last, load, minus_limit, replica_id, _, worker_key, _, expires = row
            index += 1
            if (
                worker_key not in routable
                or load >= -minus_limit
                or (expires is not None and expires <= now_us)
            ):
                continue
            if tier_ != tier:
                if tier >= 0:
                    break
                tier = tier_
            if last:
                age_s = (now_us - last) * 1e-6 if now_us > last else 0.0
                recent = w3 * (1 / (1 + age_s))
                diffusion = 0.0 if load else w4 * min(1.0, age_s / _DIFFUSION_S)
            else:
                recent, diffusion = 0.0, 0.0 if load else w4
            bound = w1 * ratio + lightest
            if best is not None:
                limit = best[0] + _ROUNDING
                if load and bound > limit:
                    break
                if bound + recent - diffusion > limit:
                    index = bisect_right(rows, (tier, ratio, math.inf), index)
                    continue
            worker_ratio = loads.get(worker_key, _UNKNOWN_WORKER)[0]
            score = w1 * ratio + w2 * worker_ratio + recent - diffusion
            extra, over = 0.0, False
            if crowding is not None:
                extra, over = crowding.of(replica_id)
                score += extra
            place = score, load, minus_limit, last, replica_id, index - 1
            if over:
                capped += 1
                if best_over is None or place < best_over:
                    best_over = place
                continue
            if best is None or place < best:
                best = place
            if not extra and w2 * worker_ratio == lightest:
                # The others of the same ratio and time can at most be equal, and come after it.
                index = bisect_left(rows, (tier, ratio, last + 1), index)
        chosen = best or best_over
        if chosen is None:
            return None
        return Chosen(rows[chosen[-1]], capped if best is not None else 0)

    def _crowding(self, group: GroupProgress | None) -> "_Crowding | None":
        if group is None:
            return None
        candidates, spread = len(self), self._scoring.spread
        return _Crowding(
            group,
            candidates,
            spread.weight * spread.scale(candidates),
            spread.cap(candidates, group.total),
        )

    def grant(self, source: Candidate) -> Candidate:
        """Count a transport more for a source; return the source as it is then."""
        after = source.with_load(source.load + 1, self._now_us)
        worker = self._loads.get(source.worker_key)
        if worker is not None:
            self._loads[source.worker_key] = WorkerLoad.of(worker.load + 1, worker.limit)
        self.drop(source)
        insort(self._rows, after)
        return after

    def drop(self, source: Candidate) -> None:
        """Choose a source no more."""
        del self._rows[bisect_left(self._rows, source)]


# Score, tie-breaks, and where the source is.
_Place = tuple[float, int, int, int, bytes, int]

# Two ways of adding the same terms differ by less; nothing is left out for such a difference.
_ROUNDING = 1e-9


@attrs.frozen
class _Crowding:
    """What a group's transports so far mean for its next one."""

    group: GroupProgress
    candidates: int
    factor: float
    cap: float | None

    def of(self, replica_id: bytes) -> tuple[float, bool]:
        """Return what is added to a source's score, and whether it has its share already."""
        granted = self.group.granted.get(replica_id, 0)
        if not granted:
            return 0.0, False
        extra = self.factor * hotspot(granted, self.group.total, self.candidates)
        return extra, self.cap is not None and granted + 1 > self.cap


# Among equal load ratios: load, -limit, last_assigned_us, updated_us, replica_id.
_legacy = operator.itemgetter(3, 4, 2, 6, 5)
