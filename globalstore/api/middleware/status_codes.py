"""The one table that gives every refusal and every failure of the database its gRPC code."""

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
    db.QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    db.Busy: StatusCode.ABORTED,
    db.Damaged: StatusCode.UNAVAILABLE,
    db.IoFailed: StatusCode.UNAVAILABLE,
    db.OutcomeUnknown: StatusCode.UNAVAILABLE,
    db.Closed: StatusCode.UNAVAILABLE,
}


def status_of(error: Exception) -> Status | None:
    """Return the status that a caller gets for an error, or None for one that nobody foresaw."""
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    return None if code is None else Status(code, str(error))
