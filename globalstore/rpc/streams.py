"""The state of one HTTP/2 stream."""

from collections import deque
from typing import Protocol

from globalstore.rpc.headers import RequestHead
from globalstore.rpc.messages import MessageReader


class Stream:
    """One call as the wire sees it: two windows, a message reader, bytes that wait."""

    __slots__ = (
        "body_bytes",
        "discard",
        "ended",
        "head",
        "headers_sent",
        "held_bytes",
        "id",
        "opened_at",
        "outgoing",
        "outgoing_bytes",
        "owner",
        "parked",
        "reader",
        "receive_window",
        "send_window",
        "tail",
        "unconsumed",
        "unreturned",
    )

    def __init__(
        self,
        owner: "StreamOwner",
        stream_id: int,
        head: RequestHead,
        *,
        reader: MessageReader,
        receive_window: int,
        send_window: int,
        opened_at: float,
    ) -> None:
        self.owner = owner
        self.id = stream_id
        self.head = head
        self.reader = reader
        self.opened_at = opened_at
        # What the client may still send, and bytes not yet handed back to it; of the latter
        # those of whole messages wait until the handler has read them.
        self.receive_window = receive_window
        self.unreturned = 0
        self.unconsumed = 0
        self.body_bytes = 0
        # What the call keeps in memory: its state, its head, its messages, its answers.
        self.held_bytes = 0
        self.ended = False
        # After a fault the rest of the request is thrown away.
        self.discard = False
        self.send_window = send_window
        self.headers_sent = False
        self.outgoing: deque[memoryview] = deque()
        self.outgoing_bytes = 0
        # Waits for the client's window and is therefore out of the sending round.
        self.parked = False
        # The trailers, once the handler is done, until the last message is through.
        self.tail: bytes | None = None


class StreamOwner(Protocol):
    """What can end a stream: its engine."""

    def end_for_memory(self, stream: Stream) -> bool:
        """End a call and let go of its bytes; False if it had ended already. Never raises."""
