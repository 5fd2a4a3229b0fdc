"""Which characters an id may have, held against the tables of Unicode."""

import sys
import unicodedata

import pytest

from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import existing, existing_or_blank, identifier, required
from globalstore.text.characters import code_point, first_hidden
from globalstore.text.printing import printable, printable_json

# Letters, marks and symbols that fonts are to show nothing for (Default_Ignorable_Code_Point).
IGNORED = {
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0x2065),
    *range(0x180B, 0x1810),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFF9),
    *range(0xE0000, 0xE1000),
}


def is_no_character(code: int) -> bool:
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def test_what_is_hidden_is_what_unicode_says() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        hidden = (
            category in {"Cc", "Cf", "Cs", "Zl", "Zp"} or code in IGNORED or is_no_character(code)
        )
        # Format characters that a later Unicode has named may be known already.
        if category != "Cn" or hidden:
            assert (first_hidden(character) is not None) == hidden, code_point(character)


HIDDEN = ["\x00", "\x1b", "\x7f", "\x85", "\x9b", "\xad", "\u034f", "\u061c", "\u200b", "\u200d",
          "\u2028", "\u2029", "\u202e", "\u2060", "\u2066", "\u2069", "\u3164", "\ud800", "\udfff",
          "\ufdd0", "\ufe0f", "\ufeff", "\uffa0", "\uffff", "\U000e0041", "\U0010ffff"]  # fmt: skip


@pytest.mark.parametrize("character", HIDDEN, ids=code_point)
@pytest.mark.parametrize("take", [identifier, required])
def test_a_new_id_with_one_is_refused_by_field_and_code_point(take, character: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^daemon_id contains U\+{ord(character):04X}, a"):
        take("daemon_id", f"a{character}b")


@pytest.mark.parametrize("character", HIDDEN, ids=code_point)
@pytest.mark.parametrize("take", [existing, existing_or_blank])
def test_an_id_that_was_taken_once_is_still_looked_for(take, character: str) -> None:
    if character in "\x00\x1b\x7f":  # were never taken
        with pytest.raises(InvalidArgument, match="control character"):
            take("key", f"a{character}b")
    elif not "\ud800" <= character <= "\udfff":
        assert take("key", f"a{character}b") == f"a{character}b"


@pytest.mark.parametrize(
    "text", ["a", "ключ", "模型", "a b", "é", "e\u0301", "हिन्दी", "😀", "a\xa0b", "\ue000", "ﬀ"]
)
def test_what_is_seen_may_be_a_name(text: str) -> None:
    assert identifier("key", text) == text


@pytest.mark.parametrize("character", HIDDEN, ids=code_point)
def test_none_is_shown_as_it_is(character: str) -> None:
    for shown in (printable(f"a{character}b"), printable_json(f"a{character}b")):
        assert first_hidden(shown) is None
        assert shown.isprintable()
        assert shown.isascii()
