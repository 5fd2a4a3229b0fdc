"""Where a database may live: directories, file systems, access rights."""

import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final

from globalstore.db.errors import DatabaseFilesystem, Full
from globalstore.host import check_directories, make_directories, reason
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")

# What stands beside a database under names of ours or SQLite's.
BESIDE: Final = ("-wal", "-shm", ".lock")

# Longest path that SQLite takes, and the longest ending of those made from that of a database.
_PATH_BYTES_MAX: Final = 511
_LONGEST_SUFFIX: Final = ".partial-journal"

# What is written to learn whether there is space: more than most commits need.
_PROBE_BYTES: Final = 64 << 10

# File systems on which shared memory or locks do not reach from one opener to the next, or on
# which fsync promises nothing. (fuseblk, the local disks among the FUSE ones, is not among them.)
_NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gpfs", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "smb2", "smb3", "smbfs"}
)


def prepare(path: Path) -> Path:
    """Return the real path of a database file, in a directory that exists and may hold one.

    Expands ``~``, follows links, creates missing directories with mode 0700 whatever the umask.
    Raises OSError, and DatabaseFilesystem for a place that cannot carry a database.
    """
    real = _real(path)
    make_directories(real.parent)
    _check(real)
    return real


def examined(path: Path) -> Path:
    """Return what ``prepare`` would, and raise what it would, but create nothing."""
    real = _real(path)
    check_directories(real.parent)
    _check(real)
    return real


def _real(path: Path) -> Path:
    real = Path(os.path.realpath(path.expanduser()))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    length = len(os.fsencode(real)) + len(_LONGEST_SUFFIX)
    if length > _PATH_BYTES_MAX:
        raise OSError(
            errno.ENAMETOOLONG, f"SQLite takes no path of more than {_PATH_BYTES_MAX} bytes"
        )
    return real


def _check(real: Path) -> None:
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


def make_private(path: Path) -> None:
    """Take from others what they may do to a database and the files beside it; warn of each.

    What cannot be taken, and whom the directory lets in, is only warned of.
    """
    for each in (path, *(path.with_name(path.name + suffix) for suffix in BESIDE)):
        try:
            found = os.stat(each)
        except OSError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            _log.warning(
                "a file of the database belongs to another user; chown it to that of this process",
                path=each,
                uid=found.st_uid,
            )
        if mode & 0o077 == 0:
            continue
        try:
            os.chmod(each, 0o600)
        except OSError as error:
            result = f"it stays so: {reason(error)}"
        else:
            result = "now 0600"
        _log.warning(
            "others may use a file of the database", path=each, mode=f"{mode:04o}", result=result
        )
    directory = path.parent.stat()
    above = stat.S_IMODE(directory.st_mode)
    # Of a directory that belongs to somebody else, the group may be what lets this process in.
    is_way_in = directory.st_uid != os.geteuid() and directory.st_gid in _groups()
    others = 0o002 if is_way_in else 0o022
    if above & others and not above & stat.S_ISVTX:
        _log.warning(
            "others may replace the database, its directory lets them write; chmod it to 0700",
            path=path.parent,
            mode=f"{above:04o}",
        )
    if path.stat().st_nlink > 1:
        _log.warning(
            "the database has several names (hard links); always start with the same one, since its"
            " log is found by that name",
            path=path,
        )


def _groups() -> set[int]:
    return {os.getegid(), *os.getgroups()}


def refined(error: Exception, directory: str) -> Exception:
    """Return Full for a write that failed because a quota is used up, else ``error`` itself.

    SQLite calls that an I/O error, as if the disk were broken. So the directory is asked.
    """
    if getattr(error, "code", None) != "SQLITE_IOERR_WRITE":
        return error
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.pwrite(probe.fileno(), bytes(_PROBE_BYTES), 0)
    except OSError as refusal:
        if refusal.errno in {errno.EDQUOT, errno.ENOSPC, errno.EFBIG}:
            full = Full(
                f"the disk takes no more ({reason(refusal)}); nothing was stored, try again when"
                " there is space"
            )
            full.code = getattr(error, "code", None)
            return full
    return error


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


def create_private(path: Path) -> None:
    """Create an empty file with mode 0600 whatever the umask, replacing a former one."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)
