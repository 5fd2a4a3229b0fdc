"""Watchers are bounded by key and in all, and leave nothing behind."""

import pytest

from globalstore.rules.refusals import Unavailable
from globalstore.waiting.watchers import Watchers


def test_the_watchers_of_a_key_are_found_while_they_watch():
    counts: list[int] = []
    watchers: Watchers[str, object] = Watchers(
        "{} wait already", total_max=9, on_count=counts.append
    )
    first, second, other = object(), object(), object()
    with watchers.watching("a", first), watchers.watching("a", second):
        with watchers.watching("b", other):
            assert watchers.of("a") == [first, second]
            assert list(watchers.of_any({"b", "c"})) == [other]
        assert watchers.of("b") == []
    assert watchers.of("a") == []
    assert len(watchers) == 0
    assert counts == [1, 2, 3, 2, 1, 0]


def test_one_key_has_its_bound_and_others_have_room():
    watchers: Watchers[str, object] = Watchers("{} wait already", per_key_max=1)
    with watchers.watching("a", object()):
        with (
            pytest.raises(Unavailable, match=r"^1 wait already$"),
            watchers.watching("a", object()),
        ):
            pass
        with watchers.watching("b", object()):
            assert len(watchers) == 2


def test_all_together_have_a_bound():
    watchers: Watchers[int, object] = Watchers("{} wait already", total_max=2)
    with (
        watchers.watching(1, object()),
        watchers.watching(2, object()),
        pytest.raises(Unavailable, match=r"^2 wait already$"),
        watchers.watching(3, object()),
    ):
        pass
    with watchers.watching(3, object()):
        pass


def test_what_ends_while_others_watch_takes_only_its_own_with_it():
    watchers: Watchers[str, object] = Watchers("{} wait already", total_max=9)
    first, second = object(), object()
    stays = watchers.watching("a", first)
    stays.__enter__()
    with pytest.raises(ZeroDivisionError), watchers.watching("a", second):
        raise ZeroDivisionError
    assert watchers.of("a") == [first]
    stays.__exit__(None, None, None)


def test_those_who_were_taken_leave_their_places_to_others():
    watchers: Watchers[str, object] = Watchers("{} wait already", per_key_max=1)
    with watchers.watching("a", first := object()):
        assert watchers.take("a") == [first]
        assert watchers.take("a") == []
        with watchers.watching("a", second := object()):
            assert watchers.of("a") == [second]
            assert len(watchers) == 2
    assert len(watchers) == 0
    assert watchers.of("a") == []


def test_who_leaves_after_being_taken_takes_none_of_those_who_came_after():
    watchers: Watchers[str, object] = Watchers("{} wait already", per_key_max=1)
    taken = watchers.watching("a", object())
    taken.__enter__()
    watchers.take("a")
    with watchers.watching("a", second := object()):
        taken.__exit__(None, None, None)
        assert watchers.of("a") == [second]
