"""The ways in which a well-working server says no.

Each class is one answer a caller can act on; one table in ``api/middleware/status_codes``
gives each its gRPC code. The text says what was wrong, names the field or key, and where it helps
says what to do instead.
"""


class Refusal(Exception):
    """A request that was understood and is not carried out. Nothing was changed."""


class InvalidArgument(Refusal):
    """The request itself is wrong, whatever the state of the store."""


class FailedPrecondition(Refusal):
    """The request is well formed, but the present state forbids it."""


class PermissionDenied(Refusal):
    """The caller lacks the authority that the request needs."""


class NotFound(Refusal):
    """Something that the request depends on does not exist."""


class AlreadyExists(Refusal):
    """The identity that the request claims belongs to something different."""


class ResourceExhausted(Refusal):
    """A limit is reached that a repeat does not cure: a size, the disk, a configured cap."""


class Aborted(Refusal):
    """Lost against a concurrent request; the same request may succeed at once."""


class Unavailable(Refusal):
    """The server cannot answer now, say because a queue is full; another try may succeed."""
