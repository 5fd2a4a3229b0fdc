"""The number of files that the process may have open, and what it promises with it."""

import math
import resource

from globalstore.http.serving import CONNECTIONS_MAX
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# Files beside the calls' connections: those of probes and scrapes; and the rest (database and its
# log, readers, backups, log files, certificates, the event loop), some thirty, twice.
FILES_RESERVED = CONNECTIONS_MAX + 64


def raise_file_limit(connections_max: int) -> None:
    """Let the process open the files that so many connections take; warn if it may not."""
    needed = connections_max + FILES_RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed, most = (math.inf if each == resource.RLIM_INFINITY else each for each in (soft, hard))
    if allowed < min(needed, most):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(needed, most)), hard))
            allowed = min(needed, most)
        except (OSError, ValueError) as error:
            _log.warning("limit of open files not raised", reason=str(error))
    if allowed < needed:
        _log.warning(
            "fewer open files are allowed than server.limits.max_connections needs; raise the hard"
            " limit (LimitNOFILE= of the unit, --ulimit nofile= of the container) or lower it",
            needed=needed,
            allowed=allowed,
            max_connections=connections_max,
        )
