"""What the server tells about itself: log lines and metrics."""

from globalstore.telemetry.logging import (
    Logger,
    RateLimit,
    add_call_fields,
    call_context,
    call_fields,
    get_logger,
)
from globalstore.telemetry.outputs import LogWriter, configure

__all__ = [
    "LogWriter",
    "Logger",
    "RateLimit",
    "add_call_fields",
    "call_context",
    "call_fields",
    "configure",
    "get_logger",
]
