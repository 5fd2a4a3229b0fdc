"""In which order those who wait are served: the keys of §8, worked out by hand."""

import random
from typing import Any

import attrs
import pytest

from globalstore.registry.runtime.transports import RequestGroup, TransportRequest
from globalstore.rules.scoring import GroupProgress
from globalstore.scheduling.queue_order import Fairness, ranked, ratio

NOW, NOW_US = 1000.0, 1_700_000_000_000_000


@attrs.frozen
class Waiter:
    """A request that waits since ``arrived`` seconds on the clock of the tests."""

    request: TransportRequest
    arrived: float

    @property
    def name(self) -> str:
        return self.request.request_id


def waiter(name: str, group: str = "", waited_s: float = 1, parts: int = 4, **f: Any) -> Waiter:
    of = RequestGroup("k", group, 0, name, parts, f.get("priority", 0)) if group else None
    request = TransportRequest("a", "", "n", "h", 0, "", name, b"", of, b"")
    return Waiter(request, NOW - waited_s)


def key(group: str) -> tuple[str, str, int]:
    return "k", group, 0


def done(successes: int, age_s: float) -> GroupProgress:
    return GroupProgress({}, successes, successes, NOW_US - round(age_s * 1_000_000))


def order(
    waiters: list[Waiter],
    groups: dict[str, GroupProgress] | None = None,
    fairness: Fairness | None = None,
) -> list[str]:
    """Return the names in the order of service; given are they in any order."""
    by_age = sorted(waiters, key=lambda w: w.arrived)
    known = {key(name): each for name, each in (groups or {}).items()}
    served = ranked(by_age, known, fairness or Fairness(), NOW, NOW_US)
    return [each.name for each in served]


EXAMPLE = {"G1": done(3, 2), "G2": done(1, 1), "G3": done(2, 8)}
G1, G2, G3 = (waiter(f"r{name}", name) for name in ("G1", "G2", "G3"))


def test_the_example_of_the_contract() -> None:
    alone = waiter("U", waited_s=3)
    assert order([G1, G2, G3, alone], EXAMPLE) == ["rG3", "rG2", "rG1", "U"]


def test_a_fresh_group_comes_first_and_lowers_the_floor_of_the_others() -> None:
    alone, fresh = waiter("U", waited_s=3), waiter("rG4", "G4")
    assert order([G1, G2, G3, alone, fresh], EXAMPLE) == ["rG4", "rG3", "rG2", "rG1", "U"]


@pytest.mark.parametrize(("priority", "first"), [(1, "rG4"), (0, "U")])
def test_a_request_without_a_group_is_lifted_once_it_has_waited(priority: int, first: str) -> None:
    alone, fresh = waiter("U", waited_s=5), waiter("rG4", "G4", priority=priority)
    served = order([G1, G2, G3, alone, fresh], EXAMPLE)
    assert served[0] == first
    assert set(served[:2]) == {"rG4", "U"}
    assert served[2:] == ["rG3", "rG2", "rG1"]


def test_priority_counts_among_equals_only_and_higher_goes_first() -> None:
    low, high = waiter("low", "A", priority=1), waiter("high", "B", 0.5, priority=7)
    assert order([low, high]) == ["high", "low"]
    groups = {"A": done(0, 0), "B": done(3, 1)}
    assert order([low, high], groups) == ["low", "high"]


@pytest.mark.parametrize(
    ("of_a", "first"),
    [(done(1, 4.9), "b"), (done(1, 5.0), "a"), (done(1, 0), "b"), (GroupProgress(), "a")],
)
def test_a_group_is_starved_without_a_success_or_long_after_its_last(
    of_a: GroupProgress, first: str
) -> None:
    waiters = [waiter("a", "A", waited_s=1), waiter("b", "B", waited_s=2)]
    assert order(waiters, {"A": of_a, "B": done(1, 1)})[0] == first


def test_the_floor_lets_those_through_who_are_a_quarter_above_the_least() -> None:
    # .5 is within .25 of .25, .6 is not; among those within, the bias prefers the higher ratio.
    groups = {"A": done(1, 1), "B": done(2, 1), "C": done(3, 1)}
    waiters = [waiter("a", "A"), waiter("b", "B"), waiter("c", "C", parts=5)]
    assert order(waiters, groups) == ["b", "a", "c"]
    wide = Fairness(floor_ratio=0.5)
    assert order(waiters, groups, wide) == ["c", "b", "a"]


def test_without_a_bias_arrival_decides_among_groups_that_pass() -> None:
    groups = {"A": done(1, 1), "B": done(2, 1)}
    waiters = [waiter("a", "A", waited_s=2), waiter("b", "B", waited_s=1)]
    assert order(waiters, groups) == ["b", "a"]
    assert order(waiters, groups, Fairness(completion_bias=0)) == ["a", "b"]


def test_requests_without_a_group_keep_the_order_in_which_they_came() -> None:
    waiters = [waiter(f"r{n}", waited_s=n) for n in range(30)]
    assert order(waiters) == [f"r{n}" for n in reversed(range(30))]


def test_ties_of_the_same_instant_are_broken_by_the_request_id() -> None:
    waiters = [waiter(name, "A") for name in ("c", "a", "b")]
    assert order(waiters) == ["a", "b", "c"]


def test_whoever_is_older_than_four_thresholds_precedes_all_younger_ones() -> None:
    old, older = waiter("old", waited_s=20.1), waiter("older", "G1", waited_s=21)
    urgent = waiter("urgent", "G9", priority=99)
    not_yet = waiter("not yet", waited_s=19.9)
    assert order([old, older, urgent, not_yet], EXAMPLE)[:2] == ["older", "old"]
    quick = Fairness(ageing_s=1)
    assert order([waiter("four", waited_s=4.5), urgent], {}, quick) == ["four", "urgent"]


def test_a_ratio_is_capped_at_one_and_only_successes_count() -> None:
    assert ratio(GroupProgress({b"x": 9}, 9, 0, 0), 4) == 0
    assert ratio(done(1, 0), 4) == 0.25
    assert ratio(done(9, 0), 4) == 1


@pytest.mark.parametrize("seed", range(50))
def test_any_waiters_are_each_ranked_once_by_their_keys(seed: int) -> None:
    rng = random.Random(seed)
    names = ["", "A", "B", "C", "D"]
    groups = {
        n: done(rng.randint(0, 5), rng.uniform(0, 9)) for n in names[1:] if rng.random() < 0.8
    }
    waiters = [
        waiter(f"r{n}", rng.choice(names), rng.uniform(0, 25), priority=rng.randint(0, 3))
        for n in range(rng.randint(1, 60))
    ]
    served = order(waiters, groups)
    assert sorted(served) == sorted(w.name for w in waiters)
    ratios = {
        w.request.group.group_id: ratio(groups.get(w.request.group.group_id, GroupProgress()), 4)
        for w in waiters
        if w.request.group
    }
    least = min(ratios.values(), default=0.0)

    def by_hand(w: Waiter) -> tuple[Any, ...]:
        waited, of = NOW - w.arrived, w.request.group
        if waited > 20:
            return (0, w.arrived, w.name)
        if of is None:
            late = waited >= 5
            return (1, 0 if late else 1, 0 if late else 1, 0.0, 0, w.arrived, w.name)
        progress, share = groups.get(of.group_id, GroupProgress()), ratios[of.group_id]
        quiet = not progress.succeeded or NOW_US - progress.last_success_us >= 5_000_000
        return (
            1, 0 if quiet else 1, 0 if share <= least + 0.25 else 1, -share, -of.priority,
            w.arrived, w.name,
        )  # fmt: skip

    assert served == [w.name for w in sorted(waiters, key=by_hand)]
