"""How text that others wrote is shown: on one line, whatever is in it."""

import re
from collections.abc import Callable
from typing import Final

from globalstore.text.characters import first_hidden

# Stands for a secret wherever one is shown.
MASK: Final = "***"

# A value longer than this says no more; a client must not decide how long our lines are.
VALUE_CHARS_MAX: Final = 1024

_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Of these a text may have many: each is looked at by itself.
_UNUSUAL: Final = re.compile(r"[^ -~\n]")


def clipped(text: str, limit: int = VALUE_CHARS_MAX) -> str:
    """Return ``text``, or its beginning with the number of characters that are missing."""
    return text if len(text) <= limit else f"{text[:limit]}…(+{len(text) - limit})"


def is_plain(text: str) -> bool:
    """Tell whether a text is shown as it is: on one line, each character to be seen."""
    return text.isprintable() and (text.isascii() or first_hidden(text) is None)


def printable(text: str) -> str:
    """Return ``text`` with everything that could end a line, steer a terminal or not be seen
    written as an escape.
    """
    return text if is_plain(text) else _escaped(text, _escape)


def printable_json(text: str) -> str:
    """Return a JSON text of several lines with the same escaped as JSON has it."""
    return _UNUSUAL.sub(lambda found: _escaped(found[0], _json_escape), text)


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    return "".join(each if is_plain(each) else escape(each) for each in text)


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
