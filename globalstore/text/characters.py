"""Characters that show nothing, or that change how the text around them is shown."""

import re
from typing import Final

# First and last of each range: controls (C0, DEL, C1), separators of lines and paragraphs, format
# characters (zero width, direction, tags), what fonts are to ignore (fillers, variation selectors),
# halves of surrogate pairs and what Unicode says is no character. A test holds them against its
# tables.
_RANGES: Final = (
    (0x0000, 0x001F), (0x007F, 0x009F), (0x00AD, 0x00AD), (0x034F, 0x034F), (0x0600, 0x0605),
    (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F), (0x0890, 0x0891), (0x08E2, 0x08E2),
    (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E),
    (0x2060, 0x206F), (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD),
    (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    *((plane | 0xFFFE, plane | 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)  # fmt: skip

_HIDDEN: Final = re.compile(
    "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _RANGES) + "]"
)


def first_hidden(text: str) -> str | None:
    """Return the first character of a text that shows nothing or steers what shows it, or None."""
    if text.isascii() and text.isprintable():
        return None
    found = _HIDDEN.search(text)
    return None if found is None else found[0]


def is_control(character: str) -> bool:
    """Tell whether a character is a control: of C0, DEL, or of C1."""
    return character < " " or "\x7f" <= character <= "\x9f"


def code_point(character: str) -> str:
    """Return a character as Unicode names it, ``U+202E``."""
    return f"U+{ord(character):04X}"
