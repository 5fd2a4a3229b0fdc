"""Who else may read or change a file, by its mode."""

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Access(NamedTuple):
    """What users other than the owner, this process's and root may do with a file or directory."""

    mode: str
    others_read: bool
    others_write: bool


def access_by_others(path: Path) -> Access:
    """Return what others may do with what is at ``path``; links are followed. Raises OSError.

    Its owner is no other: who lays files down for a container is seldom the user in it.
    A group of this process through which it reads somebody else's file, as an orchestrator mounts
    secrets, is no other. In a directory with the sticky bit others may not replace what is there.
    """
    found = os.stat(path)
    mode = stat.S_IMODE(found.st_mode)
    is_way_in = found.st_uid != os.geteuid() and found.st_gid in {os.getegid(), *os.getgroups()}
    is_sticky = stat.S_ISDIR(found.st_mode) and bool(mode & stat.S_ISVTX)
    return Access(
        mode=f"{mode:04o}",
        others_read=bool(mode & (0o004 if is_way_in else 0o044)),
        others_write=bool(mode & 0o022) and not is_sticky,
    )
