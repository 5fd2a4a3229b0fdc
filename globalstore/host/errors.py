"""Errors of the operating system: which exceptions are such, what they say, what cures them."""

import errno
from collections.abc import Iterator, Mapping
from typing import Final

# How ``threading`` says that the system gives no more threads; there is no class of its own.
_NO_THREAD: Final = "can't start new thread"

_FILES: Final = (
    "close some files, or raise the limit of open files (`ulimit -n`, LimitNOFILE of the unit)"
)
_HOST_FILES: Final = "close some files, or raise the host's limit of open files (fs.file-max)"
_MEMORY: Final = "give this process more memory, or run less beside it"
_THREADS: Final = "raise the limit of processes and threads (`ulimit -u`, TasksMax of the unit)"
_SPACE: Final = "make space there, or set {setting} to another place"
_ACCESS: Final = "give this user access to it, or set {setting} to another place"
_DISK: Final = "look at the disk and the kernel's log, then start again"
_LATER: Final = "try again when the host is less busy"
_PATH: Final = "correct the path of {setting}"

# The cure of each error that an operator can do something about, by its number.
_CURES: Final[Mapping[int, str]] = {
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EROFS: "make that file system writable, or set {setting} to another place",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "raise the quota of this user or make space there, or set {setting} to another"
    " place",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or set {setting} to another place",
    errno.EMFILE: _FILES,
    errno.ENFILE: _HOST_FILES,
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.EIO: _DISK,
    errno.ENXIO: _DISK,
    errno.ENODEV: _DISK,
    errno.ESTALE: _DISK,
    errno.ENOENT: _PATH,
    errno.ENOTDIR: "a part of that path is no directory; " + _PATH,
    errno.EISDIR: "a directory is there; set {setting} to the path of a file",
    errno.EEXIST: "move what is there away, or set {setting} to another place",
    errno.ELOOP: "its symbolic links lead in a circle, or may not be followed; " + _PATH,
    errno.ENAMETOOLONG: "set {setting} to a shorter path",
    errno.EINVAL: _PATH,
    errno.ETXTBSY: _LATER,
    errno.EBUSY: _LATER,
    errno.EAGAIN: _LATER,
    errno.EINTR: _LATER,
    errno.ETIMEDOUT: _LATER,
    errno.ENOLCK: "put it on a local disk, whose file system has locks",
    errno.ENOSYS: "put it on a local disk, whose file system has locks",
    errno.EOPNOTSUPP: "put it on a local disk, whose file system has locks",
}

# Where the same number means something else at a socket.
_ADDRESS_CURES: Final[Mapping[int, str]] = {
    errno.EADDRNOTAVAIL: "it is no address of this machine, or none yet: bring its interface up,"
    " or correct {address}",
    errno.EAFNOSUPPORT: "this machine has no such kind of address (is IPv6 off?): set {address} to"
    " one that it has",
    errno.ENODEV: "no such interface, or none yet: bring it up, or correct {address}",
    errno.EADDRINUSE: "see `ss -ltnp` for what listens there; stop it, or set {setting} to another"
    " port",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or set {setting} to a"
    " higher port",
    errno.EPERM: "a rule of this host forbids it: change that rule, or {setting}",
    errno.EMFILE: _FILES,
    errno.ENFILE: _HOST_FILES,
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
}
_NAME_CURE: Final = (
    "the name is not known, or not yet: mend the name service or /etc/hosts, or correct {address}"
)


def is_host_error(error: Exception) -> bool:
    """Tell whether the host refused something, rather than this program being wrong.

    True for files, sockets, TLS and names (OSError), text that no path or name can have
    (UnicodeError), memory and threads that are not to be had.
    """
    if isinstance(error, RuntimeError):
        return _NO_THREAD in str(error)
    return isinstance(error, OSError | UnicodeError | MemoryError)


# Errors after which the same may work a moment later, with nothing corrected.
_PASSING: Final = frozenset(
    {errno.EIO, errno.ENXIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
    | {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ETXTBSY, errno.ENODEV}
)


def may_pass(error: OSError) -> bool:
    """Tell whether the same may work a moment later, with nothing corrected."""
    return error.errno in _PASSING


def reason(error: Exception) -> str:
    """Return what a host error says, on one line, without its number."""
    if isinstance(error, OSError):
        return " ".join((error.strerror or str(error) or type(error).__name__).split())
    if isinstance(error, UnicodeError):
        return "it has characters that cannot stand there"
    if isinstance(error, MemoryError):
        return "out of memory"
    return str(error)


def cure(error: Exception, setting: str, address: str = "") -> str:
    """Return what an operator can do about a host error of ``setting``.

    ``address`` is the setting that has the address, if the host was asked for one and not for a
    file; ``setting`` then has the port.
    """
    number = getattr(error, "errno", None) or 0
    if isinstance(error, MemoryError):
        text = _MEMORY
    elif isinstance(error, RuntimeError):
        text = _THREADS
    elif address:
        text = _ADDRESS_CURES.get(number, _NAME_CURE)
    else:
        text = _CURES.get(number, "correct {setting}")
    return text.format(setting=setting, address=address)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what went wrong, without the groups that nurseries put around it."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from causes(each)
    else:
        yield error
