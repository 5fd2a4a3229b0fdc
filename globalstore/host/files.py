"""Files that an operator names: read without ever waiting, and directories of our own."""

import errno
import os
import stat
from pathlib import Path


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Return the content of a file, at most ``bytes_max`` and one byte more.

    A longer result therefore means a longer file. Raises OSError, also for what is no file: a pipe
    would keep the reader waiting for whoever writes into it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
            raise OSError(errno.EINVAL, "it is a pipe or socket, not a file", str(path))
        return file.read(bytes_max + 1) or b""


def make_directories(path: Path) -> None:
    """Create a directory and those above it that are missing, with mode 0700 whatever the umask.

    Each new name is made durable. Raises OSError.
    """
    for directory in (*reversed(path.parents), path):
        if directory.is_dir():
            continue
        if directory.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        # A power cut must not take the directory, with everything in it.
        sync_directory(directory.parent)


def check_directories(path: Path) -> None:
    """Raise OSError where ``make_directories`` would for lack of rights; nothing is made."""
    for directory in (*reversed(path.parents), path):
        if directory.is_dir():
            continue
        if directory.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        _check_writable(directory.parent, os.W_OK | os.X_OK)
        return


def check_file_to_write(path: Path) -> None:
    """Raise OSError if a file could not be opened for writing, or made; nothing is opened."""
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        above = Path(os.path.realpath(path)).parent
        check_directories(above)
        if above.is_dir():
            _check_writable(above, os.W_OK | os.X_OK)
        return
    if is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _check_writable(path, os.W_OK)


def _check_writable(path: Path, rights: int) -> None:
    if not os.access(path, rights, effective_ids=True):
        is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
        number = errno.EROFS if is_read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity_of(path: Path) -> tuple[int, int, int, int] | None:
    """Return device, inode, size and time of a file, None for one that is not there.

    They are others when the file was changed or replaced.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
