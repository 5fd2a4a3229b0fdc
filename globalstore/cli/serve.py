"""Start the server, or check its configuration."""

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import globalstore
from globalstore.cli.importing import importing
from globalstore.host import HostRefused, host_step
from globalstore.server.exit_codes import HELP, OK, Refusal

if TYPE_CHECKING:
    from globalstore.config import GlobalStoreConfig
    from globalstore.telemetry import LogWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the verb; none of them is a setting."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON configuration (required)")
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and exit"
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show program's version number and exit"
    )


class _Version(argparse.Action):
    """Prints the version, and that of the schema, which takes an import."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from globalstore.registry.schema import MIGRATIONS

        print(f"globalstore {globalstore.__version__}, schema {len(MIGRATIONS)}")
        parser.exit()


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code."""
    if arguments.config is None:
        return _refuse(Refusal("config", "--config=FILE is required"))
    with importing():
        from globalstore import config as configuration
        from globalstore.config import ConfigError

    try:
        config = configuration.load(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        return _refuse(
            Refusal(
                "config",
                f"{arguments.config}: {count} problem(s) above; correct them and start again",
            )
        )
    unusable = _not_built(config)
    if unusable is not None:
        return _refuse(Refusal("config", unusable))
    if arguments.check_config:
        print(f"{arguments.config}: valid")
        return OK
    os.umask(0o077)
    with importing():
        from globalstore import telemetry

    logging = config.observability.logging
    try:
        with host_step("the server", ""):
            writer = telemetry.configure(
                logging.level_name,
                file=logging.file,
                sink_file=logging.sink_file,
                vlog_level=logging.vlog_level,
            )
            try:
                refusal = _start(config, arguments.config, writer)
            finally:
                writer.close()
    except HostRefused as error:
        refusal = Refusal(error.word, str(error))
    return OK if refusal is None else _refuse(refusal)


def _refuse(refusal: Refusal) -> int:
    # The code is right even where nobody takes the line.
    with contextlib.suppress(OSError):
        print(f"{refusal.word}: {' '.join(refusal.text.split())}", file=sys.stderr, flush=True)
    return refusal.code


def _not_built(config: "GlobalStoreConfig") -> str | None:
    """Name a key that promises what this version cannot keep; such a key must not be ignored."""
    if config.database.read_only:
        return "database.read_only: this version cannot serve a read replica; set it to false"
    return None


def _start(config: "GlobalStoreConfig", path: str, writer: "LogWriter") -> Refusal | None:
    """Serve; the database is examined while the larger part of the program is imported."""
    from globalstore import config as configuration
    from globalstore import telemetry

    log = telemetry.get_logger("globalstore.server")
    for line in configuration.environment_warnings(os.environ):
        log.warning(line)
    for line in configuration.warnings(config):
        log.warning(line)
    if idle := configuration.without_effect(config):
        log.warning("settings without effect in this version", keys=" ".join(idle))
    log.info(
        "starting", version=globalstore.__version__, config=path, **configuration.effective(config)
    )
    with importing():
        from globalstore.db import Examination
        from globalstore.registry.schema import MIGRATIONS

        file = config.database.path
        examination = None if file is None else Examination(file, MIGRATIONS)
        from globalstore.server.process import serve
    return serve(config, path, writer, examination)
