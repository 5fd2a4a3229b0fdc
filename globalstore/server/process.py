"""The server as a process: its interpreter's settings, its signals, and how it ends."""

import gc
import os
import signal
import sys
from collections.abc import Callable

import trio

from globalstore import config as configuration
from globalstore import telemetry
from globalstore.api.middleware.tokens import TokenFileUnusable
from globalstore.config import ConfigError, GlobalStoreConfig
from globalstore.db import Examination, StartRefused
from globalstore.rpc import CannotListen, PortBusy
from globalstore.server.exit_codes import CONFIG, DATABASE, INTERNAL, LISTEN, Refusal
from globalstore.server.file_limit import raise_file_limit
from globalstore.server.grpc_listener import TlsUnusable
from globalstore.server.lifecycle import Server
from globalstore.telemetry import LogWriter

_log = telemetry.get_logger("globalstore.server")

# How long a thread keeps the interpreter lock when another wants it. The event loop gives it away
# with every system call and would wait 5 ms, the default, to get it back from a busy writer.
_SWITCH_S = 0.0005


# Objects made between two runs of the cycle collector, 700 by default. An inventory of 100 000
# entries would be gone through hundreds of times while it is being read; cycles are rare here.
_GC_ALLOCATIONS = 20_000


def serve(
    config: GlobalStoreConfig, path: str, writer: LogWriter, examination: Examination | None
) -> Refusal | None:
    """Run a server until a signal or a fault ends it; return the refusal if it was not a signal.

    ``path`` is that of the configuration, which a signal reads again; ``examination`` is one of the
    database file that was begun earlier.
    """
    # Modules live as long as the process; collecting the few cycles among them would take a tenth
    # of the start.
    gc.freeze()
    raise_file_limit(config.server.limits.max_connections)
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(_GC_ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        trio.run(_until_signal, config, path, writer, examination, strict_exception_groups=True)
    except BaseException as error:  # noqa: BLE001  the last line on stderr names it
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        refusal = _refusal_of(cause)
        if refusal is None:
            _log.exception("server failed", error)
            return Refusal(INTERNAL, "internal", f"{type(cause).__name__}: {cause}")
        return refusal
    return None


def _refusal_of(error: BaseException) -> Refusal | None:
    match error:
        case StartRefused():
            return Refusal(DATABASE, error.word, str(error))
        case PortBusy():
            return Refusal(LISTEN, "port-busy", error.strerror or str(error))
        case CannotListen():
            return Refusal(
                CONFIG, "config", f"{error.strerror}; change server.listen or server.metrics_port"
            )
        case TlsUnusable() | TokenFileUnusable():
            return Refusal(LISTEN, "tls", str(error))
    return None


async def _until_signal(
    config: GlobalStoreConfig, path: str, writer: LogWriter, examination: Examination | None
) -> None:
    server = Server(config, examination=examination)
    async with trio.open_nursery() as nursery:
        await nursery.start(_signals, server, path, writer)
        await server.run()
        nursery.cancel_scope.cancel()


async def _signals(
    server: Server,
    path: str,
    writer: LogWriter,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Act on signals: SIGTERM and SIGINT stop, again at once; SIGHUP reloads the configuration."""
    received: dict[int, Callable[[], None]] = {
        signal.SIGHUP: lambda: _reload(server, path, writer),
        signal.SIGTERM: server.stop,
        signal.SIGINT: server.stop,
    }
    stopping = False
    with trio.open_signal_receiver(*received) as signals:
        task_status.started()
        async for number in signals:
            if number != signal.SIGHUP and stopping:
                # Every answered call is on disk already, so there is nothing to tidy up.
                os._exit(INTERNAL)
            stopping = stopping or number != signal.SIGHUP
            received[number]()


def _reload(server: Server, path: str, writer: LogWriter) -> None:
    """Apply what may change while the server runs; the rest needs a restart and is named."""
    writer.reopen()
    try:
        config = configuration.load(path)
    except ConfigError as error:
        _log.error("configuration not reloaded", reason=str(error))
        return
    logging = config.observability.logging
    writer.set_level(logging.level_name, logging.vlog_level)
    server.reload(config)
