"""How a schema class declares a setting: its default, its manual entry, its rules."""

from typing import Any

import attrs


@attrs.frozen
class Manual:
    """What the schema knows of a setting beyond its type.

    ``text`` gives meaning, unit and trade-off for the author of a file. A value below ``floor`` is
    raised to it. With ``zero_is_default`` an explicit 0 stands for the default. The value of a
    ``secret`` appears neither in a log nor in a message. ``has_effect`` is False for a setting that
    the contract accepts and this version does not use; of a section, for all in it. ``not_built``
    is for one whose effect an operator would rely on and this version does not have: anything but
    the default is refused with this text.
    """

    text: str
    floor: float | None = None
    zero_is_default: bool = False
    secret: bool = False
    has_effect: bool = True
    not_built: str = ""


def setting(
    default: Any,
    text: str,
    *,
    floor: float | None = None,
    zero_is_default: bool = False,
    secret: bool = False,
    has_effect: bool = True,
    not_built: str = "",
) -> Any:
    """Return a field with a default and a manual entry (see ``Manual``)."""
    entry = Manual(text, floor, zero_is_default, secret, has_effect, not_built)
    return attrs.field(default=default, metadata={Manual: entry})


def section(kind: type, text: str, *, has_effect: bool = True) -> Any:
    """Return a field that holds the settings of ``kind``, all at their defaults unless given."""
    return attrs.field(
        default=attrs.Factory(kind), metadata={Manual: Manual(text, has_effect=has_effect)}
    )


def manual(field: "attrs.Attribute[Any]") -> Manual:
    """Return the manual entry of a field made by ``setting`` or ``section``."""
    entry = field.metadata[Manual]
    assert isinstance(entry, Manual)
    return entry
