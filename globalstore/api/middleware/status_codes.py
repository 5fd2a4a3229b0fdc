"""What a caller gets for a refusal or a failure of the database: its gRPC code and its reason."""

import string
from urllib.parse import quote

from globalstore import db
from globalstore.rpc import Status, StatusCode
from globalstore.rules import refusals

_CODES: dict[type[Exception], StatusCode] = {
    refusals.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    refusals.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    refusals.PermissionDenied: StatusCode.PERMISSION_DENIED,
    refusals.NotFound: StatusCode.NOT_FOUND,
    refusals.AlreadyExists: StatusCode.ALREADY_EXISTS,
    refusals.ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
    refusals.Aborted: StatusCode.ABORTED,
    refusals.Unavailable: StatusCode.UNAVAILABLE,
    db.Full: StatusCode.RESOURCE_EXHAUSTED,
    db.LimitReached: StatusCode.RESOURCE_EXHAUSTED,
    db.QueueFull: StatusCode.UNAVAILABLE,
    db.Busy: StatusCode.ABORTED,
    db.Damaged: StatusCode.UNAVAILABLE,
    db.IoFailed: StatusCode.UNAVAILABLE,
    db.OutcomeUnknown: StatusCode.UNAVAILABLE,
    db.Closed: StatusCode.UNAVAILABLE,
}


# The trailer that repeats the reason of a refusal. Some clients show a call's trailers, but neither
# its details nor the body of an answer that is an error.
REASON = "globalstore-reason"

# Longer reasons end here: trailers of 8 KiB in all are what common clients accept, and every
# character may take twelve bytes.
_REASON_CHARACTERS_MAX = 256

_PLAIN = string.printable[:95].replace("%", "")


def reason_trailer(text: str) -> tuple[str, str]:
    """Return the trailer with a reason, percent-encoded as ``grpc-message`` is."""
    return REASON, quote(text[:_REASON_CHARACTERS_MAX], safe=_PLAIN, errors="replace")


def status_of(error: Exception) -> Status | None:
    """Return the status that a caller gets for an error, or None for one that nobody foresaw."""
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    return None if code is None else Status(code, str(error), (reason_trailer(str(error)),))
