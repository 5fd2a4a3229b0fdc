"""Where a database may live: directories, file systems, access rights."""

import os
import re
import stat
from pathlib import Path
from typing import Final

from globalstore.db.errors import DatabaseFilesystem

# File systems on which shared memory or locks do not reach from one opener to the next, or on
# which fsync promises nothing. (fuseblk, the local disks among the FUSE ones, is not among them.)
_NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gpfs", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "smb2", "smb3", "smbfs"}
)


def prepare(path: Path) -> Path:
    """Return the real path of a database file, in a directory that exists and may hold one.

    Expands ``~``, follows links, creates missing directories with mode 0700 whatever the umask.
    Raises DatabaseFilesystem for a network file system or a directory that cannot be made.
    """
    real = path.expanduser().resolve()
    try:
        for directory in reversed(real.parents):
            _create(directory)
    except OSError as error:
        raise unusable(path, error) from error
    kind = filesystem(real if real.exists() else real.parent)
    if kind is not None and (kind in _NETWORK or kind.startswith("fuse.")):
        raise DatabaseFilesystem(
            f"{real} is on a network file system ({kind}), where locks and the write-ahead log are"
            " not safe; put database.db_file on a local disk"
        )
    if real.exists() and not stat.S_ISREG(real.stat().st_mode):
        raise DatabaseFilesystem(
            f"{real} is not a regular file; set database.db_file to the path of a file"
        )
    return real


def unusable(path: Path, error: OSError) -> DatabaseFilesystem:
    """Return the refusal for a path on which the operating system refused something."""
    return DatabaseFilesystem(
        f"cannot use {path}: {error.strerror or error} ({error.filename or path}); give this user"
        " write access to the directory, or set database.db_file to another path"
    )


def filesystem(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the file system that holds ``path``, or None if the system does not tell.

    ``mounts`` is the text of ``/proc/self/mountinfo``; the innermost, latest mount counts.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    found, depth = None, -1
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = Path(_unescaped(fields.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = rest.split(" ")[0], len(point.parts)
    return found


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_private(path: Path) -> None:
    """Create an empty file with mode 0600 whatever the umask, replacing a former one."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _create(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.mkdir(mode=0o700, exist_ok=True)
    directory.chmod(0o700)
    # A power cut must not take the directory, with every answer in it.
    sync_directory(directory.parent)


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
