"""gRPC statuses: what a call ends with, and how that travels in trailers."""

from collections.abc import Iterable
from typing import NoReturn

import attrs
from purerpc import RpcFailedError, StatusCode

from globalstore.text.printing import printable

Metadata = tuple[tuple[str, str | bytes], ...]

# A status text longer than this would not fit the header lists common clients accept (8 KiB),
# and percent-encoding may triple it.
MESSAGE_CHARACTERS_MAX = 2000


@attrs.frozen
class Status:
    """The end of a call: a code, a text for a person, and trailing metadata.

    The text may repeat what the caller sent; it is kept as it may be shown.
    """

    code: StatusCode
    message: str = attrs.field(default="", converter=printable)
    trailers: Metadata = ()


OK = Status(StatusCode.OK)
LATE = Status(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")
# What is told to whoever asks for more than the clients of one address may hold.
SHARE_TAKEN = (
    "the calls from this address hold as much memory as they may"
    " (server.limits.max_held_bytes_per_address): let some end first"
)
DRAINING = "the server is shutting down"


class Abort(Exception):
    """Ends a call with a status. Raised by ``Call.abort``; handlers may raise it themselves."""

    def __init__(self, code: StatusCode, message: str = "", trailers: Metadata = ()) -> None:
        super().__init__(f"{code.name}: {message}")
        self.status = Status(code, message, trailers)


def abort(code: StatusCode, message: str, trailers: Iterable[tuple[str, str | bytes]]) -> NoReturn:
    """End the current call with ``code``; ``OK`` is refused since an abort is no success."""
    if code is StatusCode.OK:
        raise ValueError("code: expected a failure, got OK")
    raise Abort(code, message, tuple(trailers))


def declared(error: BaseException) -> Status | None:
    """Return the status that ``error`` itself names, or None if it names none."""
    if isinstance(error, Abort):
        return error.status
    if isinstance(error, RpcFailedError):
        return Status(error.status.status_code, error.status.status_message)
    if isinstance(error, NotImplementedError):
        return Status(StatusCode.UNIMPLEMENTED, str(error) or "method is not implemented")
    return None


def sole_cause(error: BaseException) -> BaseException:
    """Take the wrapping off an error that a nursery of the handler put around it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("%")}


def percent_encode(message: str) -> bytes:
    """Return ``message`` as ``grpc-message`` has it: UTF-8, ``%XX`` for all but printable ASCII."""
    raw = message[:MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace")
    if raw.isascii() and raw.isalnum():
        return raw
    return b"".join(byte.to_bytes(1, "big") if byte in _PLAIN else b"%%%02X" % byte for byte in raw)
