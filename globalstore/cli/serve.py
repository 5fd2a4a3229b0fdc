"""Start the server, or check its configuration."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import trio

import globalstore
from globalstore import config as configuration
from globalstore import telemetry
from globalstore.api.middleware.tokens import TokenFileUnusable
from globalstore.config import ConfigError, GlobalStoreConfig
from globalstore.db import StartRefused
from globalstore.registry.schema import MIGRATIONS
from globalstore.rpc import CannotListen, PortBusy
from globalstore.server.grpc_listener import TlsUnusable
from globalstore.server.lifecycle import Server
from globalstore.telemetry import LogWriter

_log = telemetry.get_logger("globalstore.server")

# Exit codes; each first word of the last line on stderr belongs to one of them.
OK = 0
INTERNAL = 1
CONFIG = 2
DATABASE = 3
LISTEN = 4


# Settings of parts that are not built yet.
_LATER = (
    "backup.interval",
    "backup.keep",
    "database.max_snapshot_age",
    "limits.",
    "observability.otel.",
    "observability.tracing.",
    "registration.",
    "worker_policy.control_reducer.coalesce_window",
    "worker_policy.group_realization.cleanup_batch_limit",
    "worker_policy.group_realization.expiration_scan_interval_ms",
    "worker_policy.group_realization.max_member_reports_per_rpc",
    "worker_policy.group_realization.max_wait_poll_interval_ms",
    "worker_policy.group_realization.min_wait_poll_interval_ms",
    "worker_policy.memory_tiers.publish_interval",
)


# How long a thread keeps the interpreter lock when another wants it. The event loop gives it away
# with every system call and would wait 5 ms, the default, to get it back from a busy writer.
_SWITCH_S = 0.0005


# Objects made between two runs of the cycle collector, 700 by default. An inventory of 100 000
# entries would be gone through hundreds of times while it is being read; cycles are rare here.
_GC_ALLOCATIONS = 20_000


class _Refusal(NamedTuple):
    """Why the server did not start, or ended: the last line on stderr and the exit code."""

    code: int
    word: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb; none of them is a setting."""
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON configuration (required)")
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and exit"
    )
    version = f"globalstore {globalstore.__version__}, schema {len(MIGRATIONS)}"
    parser.add_argument("--version", action="version", version=version)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code."""
    if arguments.config is None:
        return _refuse(_Refusal(CONFIG, "config", "--config=FILE is required"))
    try:
        config = configuration.load(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        return _refuse(
            _Refusal(
                CONFIG,
                "config",
                f"{arguments.config}: {count} problem(s) above; correct them and start again",
            )
        )
    unusable = _not_built(config)
    if unusable is not None:
        return _refuse(_Refusal(CONFIG, "config", unusable))
    if arguments.check_config:
        print(f"{arguments.config}: valid")
        return OK
    os.umask(0o077)
    logging = config.observability.logging
    try:
        writer = telemetry.configure(
            logging.level_name,
            file=logging.file,
            sink_file=logging.sink_file,
            vlog_level=logging.vlog_level,
        )
    except OSError as error:
        return _refuse(_Refusal(CONFIG, "config", f"observability.logging: {error}"))
    try:
        refusal = _serve(config, arguments.config, writer)
    finally:
        writer.close()
    return OK if refusal is None else _refuse(refusal)


def _refuse(refusal: _Refusal) -> int:
    print(f"{refusal.word}: {' '.join(refusal.text.split())}", file=sys.stderr, flush=True)
    return refusal.code


def _not_built(config: GlobalStoreConfig) -> str | None:
    """Name a key that promises what this version cannot keep; such a key must not be ignored."""
    if config.database.read_only:
        return "database.read_only: this version cannot serve a read replica; set it to false"
    return None


def _without_effect(config: GlobalStoreConfig) -> Iterator[str]:
    """Name each setting that differs from its default and does nothing in this version yet."""
    default, chosen = configuration.effective(GlobalStoreConfig()), configuration.effective(config)
    for key, value in chosen.items():
        if key.startswith(_LATER) and value != default[key]:
            yield f"{key}: has no effect in this version"


def _serve(config: GlobalStoreConfig, path: str, writer: LogWriter) -> _Refusal | None:
    for line in configuration.environment_warnings(os.environ):
        _log.warning(line)
    for line in (*configuration.warnings(config), *_without_effect(config)):
        _log.warning(line)
    _log.info(
        "starting", version=globalstore.__version__, config=path, **configuration.effective(config)
    )
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(_GC_ALLOCATIONS, *gc.get_threshold()[1:])
    try:
        trio.run(_until_signal, config, path, writer, strict_exception_groups=True)
    except BaseException as error:  # noqa: BLE001  the last line on stderr names it
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        refusal = _refusal_of(cause)
        if refusal is None:
            _log.exception("server failed", error)
            return _Refusal(INTERNAL, "internal", f"{type(cause).__name__}: {cause}")
        return refusal
    return None


def _refusal_of(error: BaseException) -> _Refusal | None:
    match error:
        case StartRefused():
            return _Refusal(DATABASE, error.word, str(error))
        case PortBusy():
            return _Refusal(LISTEN, "port-busy", error.strerror or str(error))
        case CannotListen():
            return _Refusal(
                CONFIG, "config", f"{error.strerror}; change server.listen or server.metrics_port"
            )
        case TlsUnusable() | TokenFileUnusable():
            return _Refusal(LISTEN, "tls", str(error))
    return None


async def _until_signal(config: GlobalStoreConfig, path: str, writer: LogWriter) -> None:
    server = Server(config)
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
    """SIGTERM and SIGINT stop, again at once; SIGHUP reads the configuration again."""
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
