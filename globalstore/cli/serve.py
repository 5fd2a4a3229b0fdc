"""Start the server, or check its configuration."""

import argparse
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import globalstore
from globalstore.cli import output
from globalstore.cli.importing import importing
from globalstore.host import HostRefused, host_step
from globalstore.server import process_signals
from globalstore.server.exit_codes import HELP, OK, Refusal
from globalstore.server.versions import check_versions

if TYPE_CHECKING:
    from globalstore.config import GlobalStoreConfig
    from globalstore.telemetry import LogWriter


_STDERR = 2


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

        parser.exit(_say(f"globalstore {globalstore.__version__}, schema {len(MIGRATIONS)}"))


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return the exit code."""
    if arguments.config is None:
        return _refuse(Refusal("config", "--config=FILE is required"))
    _open_standard_files()
    if not arguments.check_config:
        process_signals.take_early()
    try:
        check_versions()
    except HostRefused as error:
        return _refuse(Refusal(error.word, str(error)))
    with importing():
        from globalstore import config as configuration
        from globalstore.config import ConfigError

    try:
        config = configuration.load(arguments.config)
    except ConfigError as error:
        word = HostRefused.word if error.may_pass else "config"
        return _refuse_all(word, arguments.config, str(error), len(error.problems))
    if unbuilt := configuration.not_built(config):
        return _refuse_all("config", arguments.config, "\n".join(unbuilt), len(unbuilt))
    if arguments.check_config:
        return _check(config, arguments.config)
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


def _open_standard_files() -> None:
    """Open those of the first three files that are closed.

    What is opened next would take their place, and the lines of the log: it may be the database.
    """
    with contextlib.suppress(OSError):  # no file is to be had, then, that could
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(descriptor)


def _say(line: str) -> int:
    """Write what was asked for to standard output; return the exit code."""
    try:
        output.say(line)
    except output.NotWritten as error:
        return _refuse(Refusal(HostRefused.word, str(error)))
    return OK


def _refuse(refusal: Refusal) -> int:
    output.complain(f"{refusal.word}: {' '.join(refusal.text.split())}")
    return refusal.code


def _refuse_all(word: str, path: str, problems: str, count: int) -> int:
    """Refuse a configuration with all its problems; one of them is the last line itself."""
    if count == 1:
        return _refuse(Refusal(word, f"{path}: {problems}"))
    for problem in problems.split("\n"):
        output.complain(problem)
    return _refuse(Refusal(word, f"{path}: {count} problems above; correct them and start again"))


def _warnings(config: "GlobalStoreConfig", path: str) -> list[str]:
    """Return what the start and the check warn of."""
    from globalstore import config as configuration

    found = configuration.environment_warnings(os.environ) + configuration.warnings(config)
    return found + list(configuration.access_warnings(config, path))


def _check(config: "GlobalStoreConfig", path: str) -> int:
    """Check the files that a configuration names; the last line is what a start would say."""
    from globalstore.server.checking import refusals_of_files

    for line in _warnings(config, path):
        output.complain(f"warning: {line}")
    refusals = refusals_of_files(config)
    if not refusals:
        return _say(f"{path}: valid")
    first, *others = refusals
    for refusal in reversed(others):
        _refuse(refusal)
    return _refuse(first)


def _start(config: "GlobalStoreConfig", path: str, writer: "LogWriter") -> Refusal | None:
    """Serve; the database is examined while the larger part of the program is imported."""
    from globalstore import config as configuration
    from globalstore import telemetry

    log = telemetry.get_logger("globalstore.server")
    for line in _warnings(config, path):
        log.warning(line)
    differing = {key: _unquoted(text) for key, text in configuration.chosen(config).items()}
    log.info("starting", version=globalstore.__version__, config=path, **differing)
    for key, text in configuration.effective(config).items():
        log.debug("setting", key=key, value=_unquoted(text))
    with importing():
        from globalstore.db import Examination
        from globalstore.registry.schema import MIGRATIONS

        file = config.database.path
        examination = None if file is None else Examination(file, MIGRATIONS)
        from globalstore.server.process import serve
    return serve(config, path, writer, examination)


def _unquoted(text: str) -> str:
    """Return the value of a setting without the quotes of a file: the log has its own."""
    return json.loads(text) if text.startswith('"') else text
