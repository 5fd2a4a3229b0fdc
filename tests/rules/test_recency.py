"""A bounded memory of what was asked for lately."""

from hypothesis import given
from hypothesis import strategies as st

from globalstore.rules.recency import Recency


def test_what_was_not_asked_for_the_longest_goes_first() -> None:
    held: Recency[int] = Recency(3)
    for number, name in enumerate("abc"):
        held.put(name, number, 1)
    assert held.get("a") == 0
    held.put("d", 3, 1)
    assert [held.get(name) for name in "abcd"] == [0, None, 2, 3]


def test_a_value_is_replaced_with_its_size() -> None:
    held: Recency[int] = Recency(10)
    held.put("a", 1, 6)
    held.put("a", 2, 7)
    assert (held.get("a"), len(held), held.size_bytes) == (2, 1, 7)
    held.discard("a")
    held.discard("a")
    assert (held.get("a"), len(held), held.size_bytes) == (None, 0, 0)


def test_a_value_that_alone_exceeds_the_bound_is_not_held() -> None:
    held: Recency[int] = Recency(10)
    held.put("a", 1, 5)
    held.put("b", 2, 11)
    assert (held.get("b"), held.size_bytes) == (None, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "discard"]), st.sampled_from("abcd"), st.integers(1, 6)
        )
    )
)
def test_it_holds_the_latest_that_fit(steps: list[tuple[str, str, int]]) -> None:
    held: Recency[int] = Recency(10)
    model: list[tuple[str, int]] = []  # the longest not asked for first
    for what, name, size in steps:
        found = next((pair for pair in model if pair[0] == name), None)
        if what == "get":
            assert held.get(name) == (found and found[1])
        if found is not None:
            model.remove(found)
        if what == "get" and found is not None:
            model.append(found)
        elif what == "put":
            held.put(name, size, size)
            model.append((name, size))
            while sum(each for _, each in model) > 10:
                model.pop(0)
        elif what == "discard":
            held.discard(name)
        assert held.size_bytes == sum(each for _, each in model)
        assert len(held) == len(model)
