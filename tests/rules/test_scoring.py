"""The formulas by which sources are compared, against figures worked out by hand."""

import random
from typing import Any

import attrs
import pytest

from globalstore.rules.scoring import (
    Candidate,
    Choice,
    GroupProgress,
    Mode,
    Scoring,
    Spread,
    Weights,
    WorkerLoad,
    hotspot,
    parts,
)

NOW_US = 1_700_000_000_000_000
GPU, RAM, DISK = 0, 1, 2

BALANCE = Scoring(Mode.SOURCE_BALANCE)
DISPATCH = Scoring(Mode.GROUP_DISPATCH)


def ago(seconds: float) -> int:
    return NOW_US - round(seconds * 1_000_000)


def source(name: str, load: int, limit: int, last_us: int = 0, **fields: Any) -> Candidate:
    """A source in RAM, on a worker of its own unless ``worker`` says otherwise."""
    return Candidate(
        tier=fields.get("tier", RAM),
        ratio=load / limit,
        last_assigned_us=last_us,
        load=load,
        minus_limit=-limit,
        replica_id=name.encode(),
        updated_us=fields.get("updated", 1),
        worker_key=fields.get("worker", sum(name.encode())),
        seq=sum(name.encode()),
        expires_us=fields.get("expires"),
    )


def choice(
    scoring: Scoring,
    sources: list[Candidate],
    loads: dict[str, tuple[int, int]] | None = None,
    routable: set[int] | None = None,
) -> Choice:
    """What one pass has before it; ``loads`` are of the workers of the sources named."""
    keys = {each.replica_id.decode(): each.worker_key for each in sources}
    given = (loads or {}).items()
    known = {keys[name]: WorkerLoad.of(*load) for name, load in given if name in keys}
    live = {each.worker_key for each in sources} if routable is None else routable
    return Choice(scoring, sorted(sources), known, frozenset(live), NOW_US)


def best(choice: Choice, group: GroupProgress | None = None) -> str | None:
    chosen = choice.best(group)
    return None if chosen is None else chosen.source.replica_id.decode()


# The example of the contract (7.4): three copies in RAM, all weights 1.

A = source("A", 1, 4, ago(9))
B = source("B", 0, 2, ago(14))
C = source("C", 0, 4, ago(1))
LOADS = {"A": (3, 8), "B": (3, 6), "C": (0, 4)}


@pytest.mark.parametrize(
    ("each", "load", "score"),
    [
        (A, (3, 8), 0.25 + 0.375 + 0.1),
        (B, (3, 6), 0.5 + 1 / 15 - 14 / 30),
        (C, (0, 4), 0.5 - 1 / 30),
        # B after its grant, and B never assigned
        (source("B", 1, 2, NOW_US), (4, 6), 0.5 + 4 / 6 + 1),
        (source("B", 0, 2), (3, 6), 0.5 - 1),
        # a worker of whom nothing is known counts as full
        (source("D", 0, 2, ago(3)), None, 1 + 0.25 - 0.1),
        # diffusion does not grow beyond 30 s; a loaded source has none; never assigned, no penalty
        (source("D", 0, 1, ago(59)), (0, 1), 1 / 60 - 1),
        (source("D", 1, 2, ago(59)), (0, 1), 0.5 + 1 / 60),
        (source("D", 1, 2), (0, 1), 0.5),
        # a clock that was set back makes nothing younger than now
        (source("D", 0, 1, NOW_US + 5_000_000), (0, 1), 1.0),
    ],
)
def test_the_score_of_a_source(each: Candidate, load: tuple[int, int] | None, score: float) -> None:
    worker = None if load is None else WorkerLoad.of(*load)
    assert parts(BALANCE, each, worker, NOW_US).score == pytest.approx(score, abs=1e-12)
    assert parts(DISPATCH, each, worker, NOW_US).score == pytest.approx(score, abs=1e-12)


def test_the_example_of_the_contract_grants_b_and_then_c() -> None:
    pass_ = choice(BALANCE, [A, B, C], LOADS)
    assert best(pass_) == "B"
    after = pass_.grant(B)
    assert (after.load, after.last_assigned_us) == (1, NOW_US)
    assert best(pass_) == "C"


def test_a_gpu_copy_precedes_all_others_however_loaded() -> None:
    gpu = source("G", 3, 4, ago(0), tier=GPU)
    assert best(choice(BALANCE, [A, B, C, gpu], LOADS | {"G": (9, 9)})) == "G"


@pytest.mark.parametrize(
    ("weights", "winner"),
    [
        # A 1/4 3/8 .1 0; B 0 .5 .0667 .4667; C 0 0 .5 .0333
        (Weights(1, 0, 0, 0), "C"),  # B and C are equal: the larger limit
        (Weights(0, 1, 0, 0), "C"),
        (Weights(0, 0, 1, 0), "B"),
        (Weights(0, 0, 0, 1), "B"),
        (Weights(0, 0, 0, 0), "C"),  # nothing but the tie-breaks
        (Weights(1, 1, 0, 1), "C"),  # A .625, B .0333, C -.0333
        (Weights(1, 1, 0.2, 1), "B"),  # A .645, B .0467, C .0667
        (Weights(0, 9, 9, 0), "A"),  # A 4.275, B 5.1, C 4.5
    ],
)
def test_each_weight_counts_and_an_explicit_zero_leaves_its_term_out(
    weights: Weights, winner: str
) -> None:
    assert best(choice(Scoring(Mode.SOURCE_BALANCE, weights), [A, B, C], LOADS)) == winner


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (source("Z", 1, 4, ago(9)), source("A", 2, 8, ago(9))),  # lower load
        (source("Z", 0, 4, ago(9)), source("A", 0, 3, ago(9))),  # larger limit
        (source("A", 0, 4, ago(9)), source("Z", 0, 4, ago(9))),  # id
    ],
)
@pytest.mark.parametrize("scoring", [BALANCE, DISPATCH])
def test_ties_of_the_score_are_broken(
    better: Candidate, worse: Candidate, scoring: Scoring
) -> None:
    same = {"A": (1, 2), "Z": (1, 2)}
    name = better.replica_id.decode()
    assert best(choice(scoring, [better, worse], same)) == name
    assert best(choice(scoring, [worse, better], same)) == name


def test_of_equal_scores_the_longer_unused_wins() -> None:
    weights = Weights(1, 1, 0, 0)
    late, early = source("A", 0, 4, ago(8)), source("Z", 0, 4, ago(9))
    chosen = choice(
        Scoring(Mode.SOURCE_BALANCE, weights), [late, early], {"A": (0, 1), "Z": (0, 1)}
    )
    assert best(chosen) == "Z"


@pytest.mark.parametrize(
    "each",
    [
        source("X", 2, 2),  # saturated
        source("X", 3, 2),  # its limit was lowered
        source("X", 0, 2, expires=NOW_US),
        source("X", 0, 2, worker=77),  # not heard, or not accepting
    ],
)
@pytest.mark.parametrize("mode", Mode)
def test_who_is_not_eligible_is_never_chosen(each: Candidate, mode: Mode) -> None:
    other = source("O", 1, 2, ago(0), tier=DISK, expires=NOW_US + 1)
    routable = {other.worker_key, sum(b"X")}
    assert best(choice(Scoring(mode), [each, other], routable=routable)) == "O"
    alone = choice(Scoring(mode), [each], routable=routable)
    assert best(alone) is None
    assert len(alone) == 0


# Groups (7.5).


def progress(**granted: int) -> GroupProgress:
    counts = {name.encode(): count for name, count in granted.items()}
    return GroupProgress(counts, sum(granted.values()))


@pytest.mark.parametrize(
    ("granted", "total", "candidates", "expected"),
    [
        (6, 8, 3, 1.25),
        (1, 8, 3, 0.0),
        (0, 8, 3, 0.0),
        (1, 1, 4, 3.0),
        (2, 4, 2, 0.0),
        (3, 4, 2, 0.5),
        (5, 5, 1, 0.0),
        (0, 0, 5, 0.0),
    ],
)
def test_a_hotspot_is_what_a_share_exceeds_an_even_one_by(
    granted: int, total: int, candidates: int, expected: float
) -> None:
    assert hotspot(granted, total, candidates) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("candidates", "least", "scale"),
    [(1, 3, 0.0), (2, 3, 0.5), (3, 3, 1.0), (9, 3, 1.0), (3, 5, 0.5), (1, 1, 0.0), (2, 1, 1.0)],
)
def test_the_spread_has_its_full_weight_from_a_number_of_sources_on(
    candidates: int, least: int, scale: float
) -> None:
    assert Spread(candidates_min=least).scale(candidates) == scale


@pytest.mark.parametrize(
    ("spread", "candidates", "granted", "cap"),
    [
        (Spread(), 3, 8, 3.9),
        (Spread(), 3, 1, 1.0),  # never below one
        (Spread(), 2, 8, None),  # too few sources
        (Spread(), 3, 0, None),  # nothing was granted yet
        (Spread(cap_ratio=0), 3, 8, None),
        (Spread(candidates_min=1), 1, 8, 11.7),
        (Spread(cap_ratio=2), 4, 7, 4.0),
    ],
)
def test_the_cap_is_a_multiple_of_an_even_share(
    spread: Spread, candidates: int, granted: int, cap: float | None
) -> None:
    found = spread.cap(candidates, granted)
    assert found == (None if cap is None else pytest.approx(cap))


P, Q, R = (source(name, 0, 9, ago(9)) for name in "PQR")
EVEN = {"P": (0, 9), "Q": (0, 9), "R": (0, 9)}


def test_the_example_of_the_contract_skips_the_source_that_has_six_of_eight() -> None:
    group = progress(P=6, Q=1, R=1)
    chosen = choice(DISPATCH, [P, Q, R], EVEN).best(group)
    assert chosen is not None
    assert (chosen.source, chosen.capped) == (Q, 1)
    of_p = parts(DISPATCH, P, WorkerLoad.of(0, 9), NOW_US, 3, group)
    plain = parts(DISPATCH, P, WorkerLoad.of(0, 9), NOW_US)
    assert (of_p.hotspot, of_p.over_cap) == (1.25, True)
    assert of_p.score - plain.score == pytest.approx(2.5)
    of_q = parts(DISPATCH, Q, WorkerLoad.of(0, 9), NOW_US, 3, group)
    assert (of_q.hotspot, of_q.over_cap, of_q.score) == (0, False, plain.score)


def test_a_source_over_its_share_is_used_when_all_others_are_worse_off() -> None:
    # All of three sources are over max(1, 4/3 * 0.5): then the hotspot alone decides.
    spread = Spread(cap_ratio=0.5)
    chosen = choice(Scoring(spread=spread), [P, Q, R], EVEN).best(progress(P=2, Q=1, R=1))
    assert chosen is not None
    assert (chosen.source, chosen.capped) == (Q, 0)


def test_a_cap_never_sends_anybody_to_a_slower_tier() -> None:
    gpu = source("G", 0, 9, ago(9), tier=GPU)
    assert best(choice(DISPATCH, [gpu, P, Q], EVEN | {"G": (0, 9)}), progress(G=9)) == "G"


def test_with_two_sources_no_cap_holds_and_the_hotspot_counts_half() -> None:
    # P has 3 of 4: its hotspot is .5, which at half of weight 2 adds .5, less than Q's load of 5/9.
    loaded = source("Q", 5, 9, ago(9))
    assert best(choice(DISPATCH, [P, loaded], EVEN), progress(P=3, Q=1)) == "P"
    # With 4 of 4 it is 1: P's 1 - .3 is more than Q's 5/9.
    assert best(choice(DISPATCH, [P, loaded], EVEN), progress(P=4)) == "Q"


def test_without_a_weight_the_spread_has_no_say_but_for_the_cap() -> None:
    group = progress(P=2, Q=1, R=1)
    light = source("P", 0, 9, ago(20))
    none = Scoring(spread=Spread(weight=0, cap_ratio=0))
    assert best(choice(none, [light, Q, R], EVEN), group) == "P"
    assert best(choice(DISPATCH, [light, Q, R], EVEN), group) == "Q"


def test_a_group_counts_for_nothing_in_the_other_modes() -> None:
    group = progress(P=9)
    for mode in (Mode.LEGACY, Mode.SOURCE_BALANCE):
        assert best(choice(Scoring(mode), [P, Q, R], EVEN), group) == "P"
    assert parts(BALANCE, P, None, NOW_US, 3, group).hotspot == 0


def test_a_group_is_spread_evenly_within_one_pass() -> None:
    sources = [source(name, 0, 9) for name in "PQR"]
    pass_ = choice(DISPATCH, sources, EVEN)
    group, counts = GroupProgress(), dict.fromkeys("PQR", 0)
    for _ in range(12):
        chosen = pass_.best(group)
        assert chosen is not None
        pass_.grant(chosen.source)
        group = group.with_grant(chosen.source.replica_id)
        counts[chosen.source.replica_id.decode()] += 1
    assert counts == {"P": 4, "Q": 4, "R": 4}


def test_progress_counts_grants_and_successes() -> None:
    group = GroupProgress().with_grant(b"P").with_grant(b"P").with_grant(b"Q")
    group = group.with_success(5).with_success(3)
    assert group == GroupProgress({b"P": 2, b"Q": 1}, 3, 2, 5)


# What is looked at in order, and left out early, against looking at everything.


def reference(
    scoring: Scoring,
    sources: list[Candidate],
    loads: dict[int, WorkerLoad],
    routable: frozenset[int],
    group: GroupProgress | None,
) -> Candidate | None:
    """Return the best source by the formulas of the contract, each applied to every source."""
    eligible = [
        each
        for each in sources
        if each.worker_key in routable
        and each.load < -each.minus_limit
        and (each.expires_us is None or each.expires_us > NOW_US)
    ]
    if not eligible:
        return None
    tier = min(each.tier for each in eligible)
    count, eligible = len(eligible), [each for each in eligible if each.tier == tier]
    if scoring.mode is Mode.LEGACY:
        return min(
            eligible,
            key=lambda e: (
                e.ratio, e.load, e.minus_limit, e.last_assigned_us, e.updated_us, e.replica_id
            ),
        )  # fmt: skip
    scored = [
        (parts(scoring, each, loads.get(each.worker_key), NOW_US, count, group), each)
        for each in eligible
    ]
    if any(not terms.over_cap for terms, _ in scored):
        scored = [(terms, each) for terms, each in scored if not terms.over_cap]
    return min(
        scored,
        key=lambda s: (s[0].score, s[1].load, s[1].minus_limit, s[1].last_assigned_us,
                       s[1].replica_id),
    )[1]  # fmt: skip


def random_sources(rng: random.Random) -> list[Candidate]:
    tiers = rng.choice([[RAM], [GPU, RAM, DISK]])
    times = rng.choice([[0], [0, ago(1)], [ago(rng.uniform(0, 60)) for _ in range(50)]])
    limits = rng.choice([[4], [1, 2, 3, 4, 8]])
    found = []
    for number in range(rng.randint(1, 128)):
        limit = rng.choice(limits)
        found.append(
            Candidate(
                rng.choice(tiers), (load := rng.randint(0, limit)) / limit, rng.choice(times), load,
                -limit, rng.randbytes(4), rng.randint(1, 3), rng.randint(1, 20), number,
                rng.choice([None, None, None, NOW_US - 1, NOW_US + 1]),
            )
        )  # fmt: skip
    return sorted(found)


@pytest.mark.parametrize("seed", range(300))
def test_random_sources_are_chosen_as_if_all_had_been_looked_at(seed: int) -> None:
    rng = random.Random(seed)
    sources = random_sources(rng)
    loads = {
        key: WorkerLoad.of(rng.choice([0, 0, rng.randint(0, 9)]), 9)
        for key in rng.sample(range(1, 21), rng.randint(0, 20))
    }
    routable = frozenset(rng.sample(range(1, 21), rng.randint(1, 20)))
    weight = rng.choice([[1.0], [0.0, 0.5, 1.0, 3.0]])
    scoring = Scoring(
        rng.choice(list(Mode)),
        Weights(*(rng.choice(weight) for _ in range(4))),
        Spread(rng.choice([0.0, 2.0]), rng.choice([0.0, 1.3]), rng.randint(1, 5)),
    )
    group: GroupProgress | None = None
    if rng.random() < 0.7:
        group = GroupProgress()
        for _ in range(rng.randint(0, 30)):
            group = group.with_grant(rng.choice(sources).replica_id)
    pass_ = Choice(scoring, sources, loads, routable, NOW_US)
    for _ in range(8):
        chosen = pass_.best(group)
        expected = reference(scoring, sources, loads, routable, group)
        assert (chosen and chosen.source) == expected
        if expected is None:
            break
        after = pass_.grant(expected)
        sources[sources.index(expected)] = after
        worker = loads.get(expected.worker_key)
        if worker is not None:
            loads[expected.worker_key] = WorkerLoad.of(worker.load + 1, worker.limit)
        if group is not None:
            group = group.with_grant(expected.replica_id)


def test_the_numbers_of_the_contract_are_the_defaults() -> None:
    assert attrs.astuple(Scoring(), recurse=True) == (
        Mode.GROUP_DISPATCH, (1.0, 1.0, 1.0, 1.0), (2.0, 1.3, 3),
    )  # fmt: skip
