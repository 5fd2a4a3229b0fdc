"""What is logged of every call: fields for its log lines, and the access log."""

from globalstore.rpc import Call, Handler, Method, StatusCode
from globalstore.telemetry import call_context, get_logger

_log = get_logger("globalstore.access")


def log_context(method: Method, handler: Handler) -> Handler:
    """Let every line that a handler logs name the method and the client."""

    async def in_context(call: Call) -> None:
        with call_context(method=method.name, peer=call.peer):
            await handler(call)

    return in_context


class AccessLog:
    """Logs each call with its code and duration, at DEBUG."""

    def started(self, call: Call) -> None:
        """Do nothing: what is worth a line is known at the end."""

    def finished(self, call: Call, code: StatusCode, seconds: float) -> None:
        """Write the line of a call that has ended."""
        _log.debug(
            "call",
            method=call.method.path,
            peer=call.peer,
            code=code.name,
            ms=round(seconds * 1000, 3),
        )
