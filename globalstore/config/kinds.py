"""The types a configuration value can have, and how each is read from a file.

A schema field names its kind in its type: ``port: Port``, ``heartbeat_timeout: Duration``. To a
type checker they are plain ``int`` and ``float``; the loader reads the kind from the annotation.
"""

import enum
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Final, NewType, TypeAlias

import attrs

from globalstore.config.nodes import Node, Value


class Fault(Exception):
    """One value cannot be read; the text says what was expected, without the path."""


@attrs.frozen
class Whole:
    """A whole number between two bounds, both allowed."""

    name: str
    lowest: int
    highest: int

    def read(self, node: Node, secret: bool) -> int:
        """Return the number in ``node``: an integer, an integral float, or a string of digits.

        Raises Fault for anything else, and for a number out of range.
        """
        value = _integral(node.value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Fault(f"expected a whole number ({self.name}), found {node.shown(secret)}")
        if not self.lowest <= value <= self.highest:
            raise Fault(
                f"expected {self.name} from {self.lowest} to {self.highest}, "
                f"found {node.shown(secret)}"
            )
        return value


@attrs.frozen
class Real:
    """A finite number between two bounds, both allowed."""

    lowest: float
    highest: float

    def read(self, node: Node, secret: bool) -> float:
        """Return the number in ``node``: an integer, a float, or one of these as a string.

        Raises Fault for anything else, for NaN and infinity, and for a number out of range.
        """
        value = node.value
        if isinstance(value, str) and _DECIMAL_NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Fault(f"expected a number, found {node.shown(secret)}")
        if not self.lowest <= value <= self.highest or not math.isfinite(value):
            bounds = (
                f"a finite number of at least {self.lowest:g}"
                if math.isinf(self.highest)
                else f"a number from {self.lowest:g} to {self.highest:g}"
            )
            raise Fault(f"expected {bounds}, found {node.shown(secret)}")
        return float(value)


@attrs.frozen
class Seconds:
    """A span of time, written ``30s``."""

    def read(self, node: Node, secret: bool) -> float:
        """Return seconds: the part below a millisecond is dropped, a negative span is 0.

        Raises Fault for anything but a string of decimal seconds with the suffix ``s``; it names
        the right spelling where the intention is plain.
        """
        value = node.value
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            milliseconds = int(Decimal(match[1]) * 1000)
            if milliseconds > _MILLISECONDS_MAX:
                raise Fault(f"expected at most {_MILLISECONDS_MAX // 1000}s, found {value}")
            return max(0, milliseconds) / 1000
        advice = _duration_advice(value)
        raise Fault(
            "expected a duration in seconds such as 30s or 0.5s, "
            f"found {node.shown(secret)}{advice}"
        )


_DECIMAL_DIGITS = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?"
)
_DURATION = re.compile(r"([+-]?[0-9]{1,15}(?:\.[0-9]{1,9})?)s")
_OTHER_UNIT = re.compile(r"([0-9]{1,12})(ms|m|min|h|d)")
_UNIT_MILLISECONDS: Final = {
    "ms": 1,
    "m": 60_000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}

# The longest span the schema's duration message can carry (315 576 000 000 s, about 10 000
# years); in milliseconds it is still exact as a float.
_MILLISECONDS_MAX: Final = 315_576_000_000 * 1000


def _integral(value: Value) -> Value:
    """Return ``value``, as an integer if it is an integral float or a string of decimal digits."""
    if isinstance(value, str):
        return int(value) if _DECIMAL_DIGITS.fullmatch(value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _duration_advice(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write {value}s" if math.isfinite(value) else ""
    if not isinstance(value, str):
        return ""
    if match := _OTHER_UNIT.fullmatch(value.strip().lower()):
        return f"; write {format_duration(int(match[1]) * _UNIT_MILLISECONDS[match[2]] / 1000)}"
    if re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{1,9})?", value):
        return f"; write {value}s"
    return ""


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as the file spells it: ``30s``, ``0.05s``."""
    return f"{Decimal(round(seconds * 1000)) / 1000:f}s"


# Seconds, a multiple of 0.001.
Duration: TypeAlias = Annotated[float, Seconds()]

UInt32: TypeAlias = Annotated[int, Whole("uint32", 0, 2**32 - 1)]
UInt64: TypeAlias = Annotated[int, Whole("uint64", 0, 2**64 - 1)]
Int32: TypeAlias = Annotated[int, Whole("int32", -(2**31), 2**31 - 1)]
StreamCount: TypeAlias = Annotated[int, Whole("int32", 0, 2**31 - 1)]
PositiveUInt64: TypeAlias = Annotated[int, Whole("uint64", 1, 2**64 - 1)]
Port: TypeAlias = Annotated[int, Whole("a port", 0, 65535)]
Weight: TypeAlias = Annotated[float, Real(0.0, math.inf)]
Ratio: TypeAlias = Annotated[float, Real(0.0, 1.0)]

# Names with their values, ordered by name: an immutable map of strings.
Headers = NewType("Headers", tuple[tuple[str, str], ...])


class LogLevel(enum.IntEnum):
    """How much is logged."""

    LOG_LEVEL_UNSPECIFIED = 0
    LOG_LEVEL_DEBUG = 1
    LOG_LEVEL_INFO = 2
    LOG_LEVEL_WARN = 3
    LOG_LEVEL_ERROR = 4


class OTelProtocol(enum.IntEnum):
    """How traces travel to the collector."""

    O_TEL_PROTOCOL_UNSPECIFIED = 0
    O_TEL_PROTOCOL_GRPC = 1
    O_TEL_PROTOCOL_HTTP_PROTOBUF = 2


class TransportSchedulerMode(enum.IntEnum):
    """How a source is chosen among those that could serve."""

    TRANSPORT_SCHEDULER_MODE_UNSPECIFIED = 0
    TRANSPORT_SCHEDULER_MODE_LEGACY = 1
    TRANSPORT_SCHEDULER_MODE_SOURCE_BALANCE = 2
    TRANSPORT_SCHEDULER_MODE_GROUP_DISPATCH = 3


class GroupPublishAuthorityMode(enum.IntEnum):
    """Who declares a group version complete."""

    GROUP_PUBLISH_AUTHORITY_MODE_UNSPECIFIED = 0
    GROUP_PUBLISH_AUTHORITY_MODE_AUTO_WHEN_READY = 1
    GROUP_PUBLISH_AUTHORITY_MODE_COORDINATOR_EXPLICIT = 2


# What the names of an enum have in common and a file may leave out.
ENUM_PREFIXES: Final[dict[type[enum.IntEnum], str]] = {
    LogLevel: "LOG_LEVEL_",
    OTelProtocol: "O_TEL_PROTOCOL_",
    TransportSchedulerMode: "TRANSPORT_SCHEDULER_MODE_",
    GroupPublishAuthorityMode: "GROUP_PUBLISH_AUTHORITY_MODE_",
}

_ENUM_ALIASES: Final[dict[type[enum.IntEnum], dict[str, str]]] = {LogLevel: {"WARNING": "WARN"}}


def enum_short_name(member: enum.IntEnum) -> str:
    """Return the name without the common prefix: ``INFO``."""
    return member.name.removeprefix(ENUM_PREFIXES[type(member)])


def read_enum(node: Node, kind: type[enum.IntEnum]) -> enum.IntEnum:
    """Return the member that ``node`` names by full name, name without prefix, alias, or number.

    Raises Fault when none fits, listing the names.
    """
    value = _integral(node.value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value in [member.value for member in kind]:
            return kind(value)
    elif isinstance(value, str):
        prefix = ENUM_PREFIXES[kind]
        name = re.sub(r"[^0-9A-Za-z]", "_", value.strip()).upper().removeprefix(prefix)
        name = _ENUM_ALIASES.get(kind, {}).get(name, name)
        if prefix + name in kind.__members__:
            return kind[prefix + name]
    names = ", ".join(enum_short_name(member) for member in kind if member.value)
    raise Fault(f"expected one of {names}, found {node.shown(False)}")


def read_bool(node: Node, secret: bool) -> bool:
    """Return true or false; raises Fault for anything else."""
    if isinstance(node.value, bool):
        return node.value
    raise Fault(f"expected true or false, found {node.shown(secret)}")


def read_string(node: Node, secret: bool) -> str:
    """Return a string; raises Fault for anything else."""
    if isinstance(node.value, str):
        return node.value
    quoting = (
        "" if isinstance(node.value, list | dict) else "; put it in quotes if it is meant as text"
    )
    raise Fault(f"expected a string, found {node.shown(secret)}{quoting}")


Reader: TypeAlias = Callable[[Node, bool], Any]
SCALAR_READERS: Final[dict[type, Reader]] = {bool: read_bool, str: read_string}
