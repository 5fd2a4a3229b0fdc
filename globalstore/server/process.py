"""The server as a process: its interpreter's settings, its signals, and how it ends."""

import gc
import os
import sys
from pathlib import Path

import trio

from globalstore import config as configuration
from globalstore import telemetry
from globalstore.config import ConfigError, GlobalStoreConfig
from globalstore.db import DatabaseError, Examination, StartRefused
from globalstore.host import HostRefused, causes, identity_of, is_host_error, told
from globalstore.server import process_signals
from globalstore.server.exit_codes import INTERNAL, Refusal
from globalstore.server.file_limit import raise_file_limit
from globalstore.server.lifecycle import Server
from globalstore.telemetry import LogWriter

_log = telemetry.get_logger("globalstore.server")

# How long a thread keeps the interpreter lock when another wants it. The event loop gives it away
# with every system call and would wait 5 ms, the default, to get it back from a busy writer.
_SWITCH_S = 0.0005


# How long the configuration file has to stay as it is before it is read anew: longer than an editor
# or a copy takes from its first write to its last, shorter than anybody waits for an effect.
_SETTLE_S = 0.2

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
        found = list(causes(error))
        refusals = [refusal for cause in found if (refusal := _refusal_of(cause)) is not None]
        if len(refusals) == len(found):
            _log.debug("server ended", reason=repr(error))
            return refusals[0]
        _log.exception("server failed", error)
        return Refusal("internal", f"{type(found[0]).__name__}: {found[0]}")
    finally:
        if examination is not None:
            examination.give_up()
    return None


def _refusal_of(error: BaseException) -> Refusal | None:
    """Return how the process ends by a refusal or an error of the host, None for a bug."""
    match error:
        case StartRefused() | HostRefused():
            return Refusal(error.word, str(error))
        case DatabaseError():
            # Logged when it happened; the next start finds what was stored.
            return Refusal("internal", str(error))
        case Exception() if is_host_error(error):
            return Refusal(HostRefused.word, told(error, "the server", ""))
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
    """Act on signals: see ``process_signals``."""
    stopping = False
    process_signals.leave_to_server()
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(*process_signals.TAKEN) as signals:
            task_status.started()
            async for number in signals:
                if number in process_signals.STOPPING:
                    if stopping:
                        # Every answered call is on disk already, so there is nothing to tidy up.
                        os._exit(INTERNAL)
                    stopping = True
                    server.stop(process_signals.name_of(number))
                elif number == process_signals.RELOADING:
                    nursery.start_soon(_reload, server, path, writer)
                elif number == process_signals.REOPENING:
                    writer.reopen()
                    _log.info("log files opened anew")
                elif number == process_signals.SUMMARISING:
                    nursery.start_soon(server.summarise)
                else:
                    name = process_signals.name_of(number)
                    _log.limited(name, "signal ignored", signal=name)


async def _reload(server: Server, path: str, writer: LogWriter) -> None:
    """Apply what may change while the server runs; the rest needs a restart and is named.

    A file that is empty, or being written at this moment, is refused: what it leaves out would have
    its default.
    """
    writer.reopen()
    before = _identity(path)
    await trio.sleep(_SETTLE_S)
    try:
        config = configuration.load(path, may_be_empty=False)
    except ConfigError as error:
        _keep_old(str(error))
    else:
        if _identity(path) != before:
            _keep_old(f"{path} is being written; send the signal again when that is done")
        elif unbuilt := configuration.not_built(config):
            _keep_old("; ".join(unbuilt))
        else:
            logging = config.observability.logging
            writer.set_level(logging.level_name, logging.vlog_level)
            server.reload(config)


def _identity(path: str) -> object:
    return identity_of(Path(path).expanduser())


def _keep_old(reason: str) -> None:
    _log.error("configuration not reloaded, the old one stays in use", reason=reason)
