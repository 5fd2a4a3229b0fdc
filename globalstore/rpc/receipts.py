"""Which answers have arrived, and what becomes of what was handed out by one that has not.

An answer that is written has not arrived: the client may just have cancelled the call, or have been
stopped. A call that hands something out says how that is taken back (``Call.if_undelivered``).
Behind such answers the connection sends a PING; since a client takes frames in order, its
acknowledgement confirms all that was written before. Some clients send it ahead of a cancellation
that they decided on first, so that a reset which follows closely still counts.

No protocol tells of a client that has read the answer and forgets it: what such a call was given
ends by its time to live.
"""

from collections.abc import Awaitable, Callable, Container

from globalstore.rpc import frames

Undo = Callable[[], Awaitable[None]]

RECEIPT = b"receipt\x00"

# How closely a reset has to follow the acknowledgement: both are in one write of the client, which
# may reach us in two reads.
RESET_AFTER_SECONDS = 0.1


class Receipts:
    """Answers of one connection that were not confirmed yet, by stream.

    One PING at most is on its way, so that under load one confirms many answers.
    """

    def __init__(self, answers_max: int, take_back: Callable[[Undo], None]) -> None:
        self._answers_max = answers_max
        self._take_back = take_back
        self._undos: dict[int, Undo] = {}
        # Answers of which some byte has not left; those in the write that is going on; those that
        # left and are behind no PING; those that the PING on its way will confirm.
        self._unsent: set[int] = set()
        self._leaving: list[int] = []
        self._unasked: list[int] = []
        self._asked: list[int] = []
        # Answers confirmed at the last time that one was, and when.
        self._confirmed: dict[int, Undo] = {}
        self._confirmed_at = 0.0

    def __len__(self) -> int:
        return len(self._undos)

    def expect(self, stream_id: int, undo: Undo) -> None:
        """Take in that an answer was queued; beyond the bound the oldest counts as arrived."""
        if len(self._undos) >= self._answers_max:
            oldest = next(iter(self._undos))
            del self._undos[oldest]
            self._unsent.discard(oldest)
        self._undos[stream_id] = undo
        self._unsent.add(stream_id)

    @property
    def idle(self) -> bool:
        """Whether a write has nothing to do with receipts."""
        return not self._unsent and (not self._unasked or bool(self._asked))

    def leaving(self, open_streams: Container[int]) -> bytes:
        """Take in that all frames of streams that are not open are being written.

        Returns the PING that goes with them, or nothing if one is on its way already.
        """
        self._leaving = [each for each in self._unsent if each not in open_streams]
        self._unasked += self._leaving
        if len(self._unasked) > self._answers_max:
            self._unasked = [each for each in self._unasked if each in self._undos]
        if self._asked or not self._unasked:
            return b""
        self._asked, self._unasked = self._unasked, []
        return frames.ping(RECEIPT)

    def left(self) -> None:
        """Take in that the write has succeeded."""
        self._unsent.difference_update(self._leaving)
        self._leaving = []

    def confirmed(self, now: float) -> bool:
        """Take in that the PING was acknowledged; tell whether another one is wanted."""
        self._confirmed_at = now
        self._confirmed = {
            stream_id: self._undos.pop(stream_id)
            for stream_id in self._asked
            if stream_id in self._undos
        }
        self._asked = []
        return bool(self._unasked)

    def forget(self, now: float) -> None:
        """Let go of answers that were confirmed long enough ago."""
        if self._confirmed and now >= self._confirmed_at + RESET_AFTER_SECONDS:
            self._confirmed = {}

    def refused(self, stream_id: int) -> None:
        """Take back what an answer handed out: the client ended the call before it arrived."""
        undo = self._undos.pop(stream_id, None) or self._confirmed.pop(stream_id, None)
        if undo is not None:
            self._unsent.discard(stream_id)
            self._take_back(undo)

    def end(self, *, silent: bool) -> None:
        """Take in that the connection is over: what never left is taken back.

        So is what left, if the client was ``silent``: it answered no PING or read nothing. One that
        closes has mostly read what it was sent.
        """
        for stream_id in list(self._undos if silent else self._unsent):
            self.refused(stream_id)
        self._undos.clear()
        self._confirmed.clear()
