"""What ``--check-config`` opens: every file that a start would open, and nothing is made of it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from globalstore.config import GlobalStoreConfig
from globalstore.server.exit_codes import Refusal


def refusals_of_files(config: GlobalStoreConfig) -> list[Refusal]:
    """Return what a start would refuse of the files that ``config`` names, in its order.

    Nothing is created or changed. For what is not there yet, the directory that is to hold it has
    to be one that this process may write. What reads a kind of file is imported if one is named.
    """
    found = []
    for check in _checks(config):
        try:
            check()
        except Exception as error:
            word = getattr(error, "word", None)
            if word is None:
                raise
            found.append(Refusal(word, str(error)))
    return found


def _checks(config: GlobalStoreConfig) -> Iterator[Callable[[], object]]:
    logging, server = config.observability.logging, config.server
    for name, path in (("file", logging.file), ("sink_file", logging.sink_file)):
        if path:
            from globalstore.telemetry.outputs import check_log_file

            yield partial(check_log_file, name, path)
    if server.auth.token_file:
        from globalstore.api.middleware.token_file import read_token_file

        yield partial(read_token_file, Path(server.auth.token_file).expanduser())
    if server.grpc.tls.enabled:
        from globalstore.server.tls_files import tls_context

        yield partial(tls_context, config)
    if config.database.path is not None:
        from globalstore.db import check_place

        yield partial(check_place, config.database.path)
