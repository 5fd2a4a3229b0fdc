"""The libraries that read what clients send, and the oldest versions that may do so."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from globalstore.host import HostRefused

# Each floor, and what an older version leaves open. Resolved without our constraints an installer
# picks far older ones, since a library that we use asks for h2 below 4 (see pyproject.toml).
FLOORS: Final[Mapping[str, tuple[str, str]]] = {
    "h2": ("4.3.0", "older ones let line ends and NUL through in headers"),
    "hpack": ("4.1.0", "with 3.0 one request of 1 MB kept the process busy for half a minute"),
    "hyperframe": ("6.1.0", "older ones are not what h2 4.3 was written for"),
    "hypercorn": ("0.18.0", "older ones were written for h2 below 4.3"),
    "h11": ("0.16.0", "older ones disagree with proxies about where a request ends"),
    "wsproto": ("1.2.0", "older ones are not what hypercorn 0.18 was written for"),
}

_CURE: Final = (
    "install the tested ones: pip install --no-deps --require-hashes -r container/requirements.txt"
    " && pip install --no-deps ."
)


class LibraryTooOld(HostRefused):
    """A library that reads what clients send is too old, or missing."""


def check_versions() -> None:
    """Refuse to go on with libraries below their floors. Raises LibraryTooOld, naming all."""
    if faults := list(_faults()):
        raise LibraryTooOld(f"{'; '.join(faults)}; {_CURE}")


def _faults() -> Iterator[str]:
    # Takes a while to import, and the command's help has no need of it.
    from importlib import metadata

    for name, (floor, reason) in FLOORS.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed, expected {floor} or later"
            continue
        if _numbers(found) < _numbers(floor):
            yield f"{name} is {found}, expected {floor} or later ({reason})"


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a release, ``4.3.0rc1`` as 4, 3, 0."""
    release = re.match(r"[0-9.]*", version)
    return tuple(int(part) for part in release[0].split(".") if part) if release else ()
