"""Whether one more connection is served, and the two lines that say when that changes."""

import resource
import sys

from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# What is kept free is half of the files at most: a process that may open few still takes calls.
_RESERVED_SHARE = 2

# New connections are taken again when this part of a bound is free, or the lines that say so would
# follow each other as fast as clients come and go.
_FREE_SHARE = 16


class Admission:
    """Bounds the connections by their number and by the files that others of the process need.

    The system gives the lowest number that is free to each new file: one that comes near the limit
    tells that so many are open, whoever has opened them.
    """

    def __init__(self, connections_max: int, files_reserved: int) -> None:
        self._connections_max = connections_max
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._files_max = sys.maxsize
        if limit != resource.RLIM_INFINITY:
            self._files_max = limit - min(files_reserved, limit // _RESERVED_SHARE)
        self._refused = 0
        self._reason = ""

    def admits(self, connections: int, file: int) -> bool:
        """Tell whether a connection with this file number is served, beside so many others."""
        if connections >= self._connections_max:
            self.refuse(f"as many connections as it may: {self._connections_max}")
        elif file >= self._files_max:
            self.refuse(f"as many open files as it may, but for those kept free: {self._files_max}")
        else:
            if self._reason and (
                connections < self._connections_max - self._connections_max // _FREE_SHARE
                and file < self._files_max - self._files_max // _FREE_SHARE
            ):
                log.info("connections accepted again", refused=self._refused)
                self._reason, self._refused = "", 0
            return True
        return False

    def refuse(self, reason: str) -> None:
        """Take in that a connection is not taken; say so if those before were."""
        self._refused += 1
        if not self._reason:
            self._reason = reason
            log.warning("connections refused", reason=f"the server has {reason}")
