"""One form of the transfer metadata, whatever came in."""

import pytest

from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.transfer import ExportState, Transfer, from_direct_fields, from_submessage

VALID = (["k1", "k2"], [60, 40], "{}", 100)
INVALID = [
    ([], [], "{}", 100),
    (["k"], [60, 40], "{}", 100),
    (["k1", "k2"], [100, 0], "{}", 100),
    (["k1", "k2"], [60, 41], "{}", 100),
    ([], [100], "{}", 100),
]


def test_a_valid_exportable_submessage_is_kept() -> None:
    assert from_submessage(2, 7, *VALID) == Transfer(
        ExportState.EXPORTABLE, 7, ("k1", "k2"), (60, 40), "{}"
    )


@pytest.mark.parametrize("metadata", INVALID)
def test_an_unusable_exportable_submessage_becomes_presence_only(
    metadata: tuple[list[str], list[int], str, int],
) -> None:
    assert from_submessage(2, 7, *metadata) == Transfer(ExportState.PRESENCE_ONLY, 7)


def test_draining_keeps_only_what_is_valid() -> None:
    kept = from_submessage(3, 7, *VALID)
    assert (kept.state, kept.keys) == (ExportState.DRAINING, ("k1", "k2"))
    assert from_submessage(3, 7, *INVALID[0]) == Transfer(ExportState.DRAINING, 7)


@pytest.mark.parametrize("state", [0, 1, 4, 99, -1])
def test_other_states_are_presence_only_and_cleared(state: int) -> None:
    assert from_submessage(state, 7, *VALID) == Transfer(ExportState.PRESENCE_ONLY, 7)


def test_direct_fields_that_say_nothing_are_nothing() -> None:
    assert from_direct_fields([], [], "{}", 100) is None


def test_consistent_direct_fields_are_exportable_without_a_generation() -> None:
    assert from_direct_fields(*VALID) == Transfer(
        ExportState.EXPORTABLE, 0, ("k1", "k2"), (60, 40), "{}"
    )


@pytest.mark.parametrize("metadata", INVALID[1:])
def test_inconsistent_direct_fields_are_refused(
    metadata: tuple[list[str], list[int], str, int],
) -> None:
    with pytest.raises(InvalidArgument, match="mem_info"):
        from_direct_fields(*metadata)
