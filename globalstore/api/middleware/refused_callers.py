"""What is left of calls that are refused for who makes them: a count by reason, and log lines."""

from collections.abc import Callable

from globalstore.rpc import Call
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.auth")


class RefusedCallers:
    """Notes each refusal; ``count`` gets its reason, one of a closed set."""

    def __init__(self, count: Callable[[str], object]) -> None:
        self._count = count

    def note(self, call: Call, reason: str) -> None:
        """Count a refusal, and log it, once a minute for each address."""
        self._count(reason)
        address = call.peer.rpartition(":")[0] or call.peer
        _log.limited(
            address, "call refused", reason=reason, peer=call.peer, method=call.method.path
        )
