"""Cuts a serialized message where it may be parsed piece by piece, and counts its entries before.

A serialized message may be cut between any two of its fields: parsed one after another into the
same message, the parts make what the whole would have made. So a large request is parsed without
holding the event loop, and one with more entries than it may have is refused before they cost
memory: a message of nothing but empty entries takes forty times its size.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

# What is parsed in one turn of the event loop: a tenth of a millisecond.
PIECE_BYTES: Final = 16 << 10
# Fields of a piece, which cost half a microsecond each to find.
_PIECE_FIELDS: Final = 1024

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# The last byte of each number of a packed field is below 128.
_CONTINUED: Final = bytes(range(128, 256))
_FIXED_BYTES: Final = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
_NUMBER_BYTES_MAX: Final = 10


class Unparsable(Exception):
    """The bytes are no serialized message."""


class TooMany(Exception):
    """A list has more entries than it may have."""

    def __init__(self, field: FieldDescriptor, count: int, most: float) -> None:
        super().__init__(f"{field.name} has {count} entries, expected at most {most}")
        self.field = field
        self.count = count


class Repeated(Exception):
    """A message that may be there once is there several times."""


class Piece(NamedTuple):
    """A stretch of whole fields, or the content of one message field too large for a piece."""

    start: int
    end: int
    # Entries of each list that were in the pieces before.
    before: dict[str, int]
    # The large message field whose content this is; None for a stretch of fields.
    field: FieldDescriptor | None = None


class _Field(NamedTuple):
    descriptor: FieldDescriptor
    repeated: bool
    packed: bool
    message: bool
    # Whether large content is cut into pieces of its own.
    entered: bool
    entries_max: float


class Shape:
    """What the fields of a message type may be on the wire."""

    def __init__(self, descriptor: Descriptor, entries_max: Mapping[str, int]) -> None:
        """Prepare for a message type; lists that ``entries_max`` does not name have no bound."""
        self._fields = {
            each.number: _Field(
                each,
                each.is_repeated,
                each.is_repeated and each.type not in _WITH_LENGTH,
                each.type == FieldDescriptor.TYPE_MESSAGE,
                each.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(each),
                entries_max.get(each.full_name, float("inf")),
            )
            for each in descriptor.fields
        }
        self._entries_max = entries_max
        self._inner: dict[str, Shape] = {}

    def inner(self, field: FieldDescriptor) -> "Shape":
        """Return the shape of a message field's content."""
        if field.full_name not in self._inner:
            self._inner[field.full_name] = Shape(_content_of(field), self._entries_max)
        return self._inner[field.full_name]

    def pieces(self, data: memoryview) -> Iterator[Piece]:
        """Yield all of ``data`` in order, in pieces. Raises Unparsable, TooMany, Repeated."""
        fields, end = self._fields, len(data)
        counts: dict[str, int] = {}
        before: dict[str, int] = {}
        start = at = found = 0
        while at < end:
            begin = at
            tag, at = _number(data, at)
            kind, field = tag & 7, fields.get(tag >> 3)
            size = 0
            if kind == _BYTES:
                size, at = _number(data, at)
            elif kind == _VARINT:
                _, at = _number(data, at)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            else:  # groups are of a time before this protocol
                raise Unparsable
            content, at = at, at + size
            if at > end:
                raise Unparsable
            found += 1
            if field is not None and (field.repeated or field.message):
                packed = field.packed and kind == _BYTES
                _count(field, counts, _packed_entries(field, data[content:at]) if packed else 1)
            large = size > PIECE_BYTES and field is not None and field.entered
            if not large and at - start < PIECE_BYTES and found < _PIECE_FIELDS and at < end:
                continue
            if large and begin > start:
                yield Piece(start, begin, before)
            if large and field is not None:
                yield Piece(content, at, before, field.descriptor)
            else:
                yield Piece(start, at, before)
            start, found, before = at, 0, dict(counts)


_WITH_LENGTH: Final = frozenset(
    {FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
)


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at ``at``, and where it ends. Raises Unparsable."""
    try:
        byte = data[at]
        if byte < 128:
            return byte, at + 1
        value = shift = 0
        for at in range(at, at + _NUMBER_BYTES_MAX):  # noqa: B020, PLR1704
            byte = data[at]
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at + 1
            shift += 7
    except IndexError:
        pass
    raise Unparsable


def _count(field: _Field, counts: dict[str, int], entries: int) -> None:
    """Count entries of a field. Raises TooMany beyond its bound, Repeated if it has none."""
    name = field.descriptor.name
    count = counts[name] = counts.get(name, 0) + entries
    if count > field.entries_max:
        raise TooMany(field.descriptor, count, field.entries_max)
    if count > 1 and not field.repeated:
        raise Repeated(f"{name} is there several times, expected once")


def _packed_entries(field: _Field, content: memoryview) -> int:
    size = _FIXED_BYTES.get(field.descriptor.type)
    if size is not None:
        return len(content) // size
    return len(bytes(content).translate(None, _CONTINUED))


def _is_map(field: FieldDescriptor) -> bool:
    return bool(_content_of(field).GetOptions().map_entry)


def _content_of(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None, field.full_name
    return field.message_type


def merge(target: Any, field: FieldDescriptor) -> Any:
    """Return the message of a field into which its content is parsed, made if need be."""
    if field.is_repeated:
        return getattr(target, field.name).add()
    inner = getattr(target, field.name)
    inner.SetInParent()
    return inner
