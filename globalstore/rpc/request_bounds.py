"""What a request of one method may have, told before any of it is read."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs


class Check(Protocol):
    """Checks a request, or a part of one."""

    def __call__(self, message: Any, before: Mapping[str, int] = ...) -> None:
        """Raise if ``message`` breaks a bound.

        ``before`` are the entries of the request's lists, by field, in the parts before this one.
        """


@attrs.frozen(kw_only=True)
class RequestBounds:
    """The bounds of one method's request, and of the messages within it.

    A listener gets them as a table by path; a method that it does not name has the bounds of the
    listener alone.
    """

    # The largest request, serialized and inflated.
    bytes_max: int
    # Entries of each repeated field or map, by the field's full name; of messages within it too,
    # in each of them.
    entries_max: Mapping[str, int] = attrs.field(factory=dict)
    # Checks a parsed request; raises what a handler would raise to refuse it.
    check: Check | None = None
    # The same for a whole large one, yielding every now and then: less than a millisecond apart.
    check_in_turns: Callable[[Any], Iterator[None]] | None = None
    # Returns what a handler would raise to refuse so many entries of a field, by its full name.
    too_many: Callable[[str, int], Exception] | None = None
    # A request of no more bytes than this cannot break a bound and is not checked.
    unchecked_bytes: int = 0
