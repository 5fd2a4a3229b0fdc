"""What the text of a path tells: whether it can name a file, and whether two settings share one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from globalstore.config.schema import GlobalStoreConfig

# Longest name of a file on every common file system, and longest path that the system takes.
_NAME_BYTES_MAX: Final = 255
_PATH_BYTES_MAX: Final = 4095

# Files that stand beside the database under its name.
_BESIDE_DATABASE: Final = ("-wal", "-shm", "-journal", ".lock", ".partial")


def paths_of(config: GlobalStoreConfig) -> Mapping[str, str]:
    """Return every path that is set, by its key."""
    tls, logging = config.server.grpc.tls, config.observability.logging
    paths = {
        "database.db_file": config.database.db_file or "",
        "server.grpc.tls.cert_file": tls.cert_file,
        "server.grpc.tls.key_file": tls.key_file,
        "server.grpc.tls.client_ca_file": tls.client_ca_file,
        "server.auth.token_file": config.server.auth.token_file,
        "backup.directory": config.backup.directory,
        "observability.logging.file": logging.file,
        "observability.logging.sink_file": logging.sink_file,
        "observability.tracing.chrome_trace_dir": config.observability.tracing.chrome_trace_dir,
    }
    return {key: path for key, path in paths.items() if path}


# Directories; the others are files.
_DIRECTORIES: Final = frozenset({"backup.directory", "observability.tracing.chrome_trace_dir"})

# What the server writes; two purposes must not meet there.
_WRITTEN: Final = (
    "database.db_file",
    "observability.logging.file",
    "observability.logging.sink_file",
)


def path_faults(config: GlobalStoreConfig) -> Iterator[tuple[str, str]]:
    """Yield key and fault of each path that no file can have."""
    for key, path in paths_of(config).items():
        fault = _fault(path, is_file=key not in _DIRECTORIES)
        if fault is not None:
            yield key, fault
    if config.database.db_file and config.database.db_file.startswith((":memory:", "file:")):
        yield (
            "database.db_file",
            "expected the path of a file; for a database in memory leave the key out",
        )


def _fault(path: str, *, is_file: bool) -> str | None:
    try:
        encoded = os.fsencode(path)
    except UnicodeError:
        return "the path has characters that no name of a file can have"
    if "\0" in path:
        return "the path has a NUL character, which no name of a file can have"
    if not path.strip():
        return "the path is nothing but white space"
    if len(encoded) > _PATH_BYTES_MAX or any(
        len(part) > _NAME_BYTES_MAX for part in encoded.split(b"/")
    ):
        return (
            f"a path has at most {_PATH_BYTES_MAX} bytes and each name in it {_NAME_BYTES_MAX}; "
            "write a shorter one"
        )
    if is_file and path.endswith(("/", "/.", "/..")):
        return "expected the path of a file, found that of a directory"
    try:
        Path(path).expanduser()
    except RuntimeError:
        return f"the home directory of {path.partition('/')[0]} is not known; write it out"
    return None


def shared_paths(config: GlobalStoreConfig, source: str) -> Iterator[tuple[str, str, str]]:
    """Yield two keys and the path of each file that one of them writes and the other means too.

    ``source`` is the configuration file itself. Links are not followed: text alone is compared.
    """
    places = {key: _absolute(path) for key, path in paths_of(config).items()}
    database = places.get("database.db_file")
    beside = {f"{database}{suffix}" for suffix in _BESIDE_DATABASE} if database else set()
    places[""] = _absolute(source)
    for number, written in enumerate(_WRITTEN):
        for key, place in places.items():
            if written not in places or key in _WRITTEN[: number + 1]:
                continue
            if place == places[written] or (number == 0 and place in beside):
                yield written, key, place


def _absolute(path: str) -> str:
    expanded = os.path.expanduser(path)
    try:
        return os.path.abspath(expanded)
    except OSError:  # the working directory is gone
        return os.path.normpath(expanded)
