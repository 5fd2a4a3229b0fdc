"""Checks a parsed request against the bounds of its fields.

What a type of message needs is made once. A part of a request that is too short to break any of
its bounds is passed over by its size alone, as nearly every entry of a long list is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from globalstore.api.bounds.fields import COUNTS, MESSAGES, SIZES, TEXT, Bound
from globalstore.config import GlobalStoreConfig
from globalstore.rules.refusals import Refusal

# Entries that are looked at before other calls get a turn: less than a millisecond of the event
# loop.
_ENTRIES_PER_TURN = 500

# Above the size of any message: of a type that nothing is wrong with.
_UNBOUNDED = 2**63

_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)

# Checks one field of a message; yields when other calls should get a turn. The mapping has the
# entries of lists, by the names of their fields, in parts of the request before this one.
_Step = Callable[[Any, Mapping[str, int]], Iterator[None]]

_NOTHING: Mapping[str, int] = {}


class Unbounded(LookupError):
    """A bytes field or a list has no bound in the table."""


@attrs.frozen
class Checker:
    """Checks messages of one type. None of at most ``safe_bytes`` breaks a bound."""

    safe_bytes: int
    _steps: list[_Step]

    def in_turns(self, message: Any, before: Mapping[str, int] = _NOTHING) -> Iterator[None]:
        """Check a message; yield when others should get a turn, refuse by the path of a field."""
        for step in self._steps:
            yield from step(message, before)

    def check(self, message: Any, before: Mapping[str, int] = _NOTHING) -> None:
        """Check a message, or the part of one that follows on so many entries, in one go."""
        for _ in self.in_turns(message, before):
            pass


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether a repeated field is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_text(field: FieldDescriptor) -> bool:
    """Tell whether a field's values are strings or bytes."""
    return field.type in _TEXTS


def too_many(path: str, count: int, bound: Bound) -> Refusal:
    """Return the refusal of a list with more entries than its bound."""
    return bound.refusal(f"{path} has {count} entries, expected at most {bound.most}")


def too_long(path: str, size: int, bound: Bound) -> Refusal:
    """Return the refusal of a value with more bytes than its bound."""
    key = f" ({bound.key})" if bound.key else ""
    return bound.refusal(f"{path}: expected at most {bound.most} bytes{key}, got {size}")


class Table:
    """The table of bounds as configured, and the checkers that it makes."""

    def __init__(self, config: GlobalStoreConfig) -> None:
        self._sizes, self._counts, self._messages = (
            {name: bound.under(config) for name, bound in bounds.items()}
            for bounds in (SIZES, COUNTS, MESSAGES)
        )
        self._made: dict[str, Checker] = {}

    def size(self, field: FieldDescriptor) -> Bound:
        """Return the bound of a string or bytes, in bytes; raises Unbounded."""
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._sizes.get(field.full_name, TEXT)
        return self._named(self._sizes, field)

    def count(self, field: FieldDescriptor) -> Bound:
        """Return the bound of a list or map, in entries; raises Unbounded."""
        return self._named(self._counts, field)

    def message(self, kind: Descriptor) -> Bound | None:
        """Return the bound of a message within a request, in bytes; None for most."""
        return self._messages.get(kind.full_name)

    @staticmethod
    def _named(bounds: dict[str, Bound], field: FieldDescriptor) -> Bound:
        bound = bounds.get(field.full_name)
        if bound is None:
            raise Unbounded(f"{field.full_name} has no bound in globalstore/api/bounds/fields.py")
        return bound

    def checker(self, kind: Descriptor) -> Checker:
        """Return what checks messages of a type. No request type contains itself."""
        made = self._made.get(kind.full_name)
        if made is None:
            made = self._made[kind.full_name] = self._make(kind)
        return made

    def _make(self, kind: Descriptor) -> Checker:
        steps: list[_Step] = []
        safe_bytes = _UNBOUNDED
        for field in kind.fields:
            if field.is_repeated:
                bound = self.count(field)
                # An entry takes two bytes at least, and numbers are packed: one byte.
                is_packed = not is_text(field) and field.message_type is None
                safe_bytes = min(safe_bytes, bound.most * (1 if is_packed else 2))
                steps.append(_count_step(field, bound))
            if is_text(field):
                size = self.size(field)
                safe_bytes = min(safe_bytes, size.most)
                steps.append((_texts_step if field.is_repeated else _text_step)(field, size))
            elif field.message_type is not None:
                within = self.checker(field.message_type)
                whole = self.message(field.message_type)
                safe_within = min(within.safe_bytes, whole.most if whole else _UNBOUNDED)
                safe_bytes = min(safe_bytes, safe_within)
                if safe_within < _UNBOUNDED:
                    steps.append(_step_within(field)(field, within, whole))
        return Checker(safe_bytes, steps)


def _step_within(
    field: FieldDescriptor,
) -> Callable[[FieldDescriptor, Checker, Bound | None], _Step]:
    """Return what makes the step of a field that holds messages."""
    if not field.is_repeated:
        return _message_step
    return _map_step if is_map(field) else _messages_step


def _size_of(value: str | bytes, most: int) -> int:
    """Return the bytes of a value; of a short text only something that is not above ``most``."""
    if isinstance(value, str) and len(value) > most // 4:
        return len(value.encode())
    return len(value)


def _count_step(field: FieldDescriptor, bound: Bound) -> _Step:
    name, most = field.name, bound.most

    def step(message: Any, before: Mapping[str, int]) -> Iterator[None]:
        count = before.get(name, 0) + len(getattr(message, name))
        if count > most:
            raise too_many(name, count, bound)
        yield from ()

    return step


def _text_step(field: FieldDescriptor, bound: Bound) -> _Step:
    name, most = field.name, bound.most

    def step(message: Any, _: Mapping[str, int]) -> Iterator[None]:
        size = _size_of(getattr(message, name), most)
        if size > most:
            raise too_long(name, size, bound)
        yield from ()

    return step


def _texts_step(field: FieldDescriptor, bound: Bound) -> _Step:
    name, most = field.name, bound.most

    def step(message: Any, before: Mapping[str, int]) -> Iterator[None]:
        values, first = getattr(message, name), before.get(name, 0)
        for start in range(0, len(values), _ENTRIES_PER_TURN):
            for index, value in enumerate(values[start : start + _ENTRIES_PER_TURN], start):
                size = _size_of(value, most)
                if size > most:
                    raise too_long(f"{name}[{first + index}]", size, bound)
            yield

    return step


def _check_message(path: str, message: Any, within: Checker, whole: Bound | None) -> Iterator[None]:
    size = message.ByteSize()
    if whole is not None and size > whole.most:
        raise too_long(path, size, whole)
    if size > within.safe_bytes:
        try:
            yield from within.in_turns(message)
        except Refusal as refused:
            raise type(refused)(f"{path}.{refused}") from None


def _message_step(field: FieldDescriptor, within: Checker, whole: Bound | None) -> _Step:
    name = field.name

    def step(message: Any, _: Mapping[str, int]) -> Iterator[None]:
        if message.HasField(name):
            yield from _check_message(name, getattr(message, name), within, whole)

    return step


def _messages_step(field: FieldDescriptor, within: Checker, whole: Bound | None) -> _Step:
    name = field.name
    safe_bytes = min(within.safe_bytes, whole.most if whole else _UNBOUNDED)

    def step(message: Any, before: Mapping[str, int]) -> Iterator[None]:
        values, first = getattr(message, name), before.get(name, 0)
        for start in range(0, len(values), _ENTRIES_PER_TURN):
            for index, value in enumerate(values[start : start + _ENTRIES_PER_TURN], start):
                if value.ByteSize() > safe_bytes:
                    path = f"{name}[{first + index}]"
                    yield from _check_message(path, value, within, whole)
            yield

    return step


@attrs.frozen(eq=False)
class _Entry:
    """An entry of a map as a message: Python has it as a key and a value."""

    key: Any
    value: Any

    def HasField(self, _: str) -> bool:
        return True


def _map_step(field: FieldDescriptor, within: Checker, _: Bound | None) -> _Step:
    name = field.name

    def step(message: Any, _: Mapping[str, int]) -> Iterator[None]:
        entries = getattr(message, name)
        for number, key in enumerate(entries):
            try:
                yield from within.in_turns(_Entry(key, entries[key]))
            except Refusal as refused:
                raise type(refused)(f"{name}[{number}].{refused}") from None
            if number % _ENTRIES_PER_TURN == 0:
                yield

    return step
