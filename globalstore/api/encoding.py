"""What handlers make of messages: encoded answers, times, tokens of repeats."""

import hashlib

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from globalstore.registry.idempotency import Token
from globalstore.rules.values import identifier


class Encoded:
    """An answer that is encoded already, to be given many times."""

    __slots__ = ("_body",)

    def __init__(self, message: Message) -> None:
        self._body = message.SerializeToString()

    def SerializeToString(self) -> bytes:
        """Return the bytes of the answer; named as messages have it."""
        return self._body


class Joined:
    """A long answer that is encoded part by part, since encoding it whole would hold others up.

    Messages of one type that are joined are one message with the repeated fields of all.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, part: Message) -> int:
        """Add a part behind those before, and return its size in bytes."""
        self._parts.append(part.SerializeToString())
        return len(self._parts[-1])

    def SerializeToString(self) -> bytes:
        """Return the bytes of the answer; named as messages have it."""
        return b"".join(self._parts)


def timestamp(us: int) -> Timestamp:
    """Return microseconds since 1970 as the wire has them."""
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


def microseconds(stamp: Timestamp) -> int:
    """Return a wire timestamp in microseconds since 1970; finer parts are dropped."""
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def token(request: Message, kind: str, client_request_id: str) -> Token | None:
    """Return what identifies repeats of this request; None if it names no id."""
    request_id = identifier("client_request_id", client_request_id)
    if not request_id:
        return None
    payload = request.SerializeToString(deterministic=True)
    return Token(request_id, kind, hashlib.sha256(payload).digest())
