"""How much an answer may hold: pages end by their bytes, lists without pages are refused.

gRPC's own clients take answers of 4 MiB unless they are told to take more. A client that gets a
larger one fails, and what was taken for it is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from globalstore.api.turns import in_turns
from globalstore.rules.refusals import ResourceExhausted

# A page of entries, serialized. An entry that is larger by itself makes a page alone: with the
# largest that the bounds of requests allow, 3 MiB, an answer stays below what clients take.
PAGE_BYTES_MAX: Final = 1 << 20

# Bytes of an entry beside its own: the number of its field, and its length.
_ENTRY_BYTES: Final = 6

# The largest answer that gRPC's own clients take unless told otherwise.
STOCK_ANSWER_BYTES_MAX: Final = 4 << 20

Entry = TypeVar("Entry")


class Room:
    """What is left in an answer for the entries of its lists."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max: Final = bytes_max
        self._used = 0

    def takes(self, entry: Message | str) -> bool:
        """Tell whether an entry still fits, and count it; the first one always does."""
        size = len(entry.encode()) if isinstance(entry, str) else entry.ByteSize()
        used = self._used + size + _ENTRY_BYTES
        if used > self.bytes_max and self._used:
            return False
        self._used = used
        return True

    def fitting(self, entries: Iterable[str]) -> Iterator[str]:
        """Yield texts as long as they fit."""
        for entry in entries:
            if not self.takes(entry):
                return
            yield entry


class ListRoom:
    """The room of an answer whose list has no pages: it is refused when it does not fit whole.

    The refusal names the setting and says by ``cure`` what a caller can do.
    """

    def __init__(self, bytes_max: int, setting: str, cure: str) -> None:
        self.bytes_max: Final = bytes_max
        self._setting = setting
        self._cure = cure
        self._used = 0

    def take(self, messages: Iterable[Message]) -> None:
        """Count entries; raises ResourceExhausted when the list becomes too long."""
        self.take_bytes(sum(message.ByteSize() + _ENTRY_BYTES for message in messages))

    def take_bytes(self, size: int) -> None:
        """Count a part of the answer by its size; raises ResourceExhausted as ``take`` does."""
        self._used += size
        if self._used > self.bytes_max:
            raise ResourceExhausted(
                f"the answer has more than {self.bytes_max} bytes ({self._setting}): {self._cure}"
            )


async def add_page(
    page: Any,
    entries: Sequence[Entry],
    message: Callable[[Entry], Message],
    per_turn: int,
    room: Room | None = None,
) -> int:
    """Add entries to a list of an answer until it is full by its bytes; return how many fit.

    ``per_turn`` are made in less than a millisecond. Lists that share an answer share a ``room``.
    """
    room = room or Room(PAGE_BYTES_MAX)
    added = 0
    async for turn in in_turns(entries, per_turn):
        for entry in turn:
            made = message(entry)
            if not room.takes(made):
                return added
            page.append(made)
            added += 1
    return added
