"""How much memory the process has, as the system sees it."""

import os
from functools import cache

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@cache
def _statm() -> int:
    """Return an open file that has the sizes of the process, or -1 where there is none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def resident_bytes() -> int:
    """Return the bytes of memory in use, in three microseconds; 0 where that cannot be told."""
    file = _statm()
    return 0 if file < 0 else int(os.pread(file, 64, 0).split()[1]) * _PAGE_BYTES
