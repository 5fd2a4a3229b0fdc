"""The border between a step of this program and the host that it runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from globalstore.host.errors import cure, is_host_error, reason
from globalstore.text.printing import printable


class HostRefused(Exception):
    """The host refused what a step needs; the text names setting, place, reason and cure.

    ``word`` is the stable word under which it is told when it ends the process.
    """

    word: ClassVar[str] = "host"


@contextmanager
def host_step(
    setting: str,
    place: object,
    refusal: Callable[[str], Exception] = HostRefused,
    *,
    address: str = "",
) -> Iterator[None]:
    """Turn what the host refuses in the block into ``refusal(text)``; anything else passes.

    ``setting`` is the key or flag that an operator can change, ``place`` the path or address that
    it names. ``address`` is the key that has the address, if the step asks for one and not for
    files; ``setting`` then has the port.
    """
    try:
        yield
    except Exception as error:
        if not is_host_error(error):
            raise
        raise refusal(told(error, setting, place, address)) from error


def told(error: Exception, setting: str, place: object, address: str = "") -> str:
    """Return a host error as one line: setting, place, reason, cure."""
    where = f"{setting} {_shown(place)}".strip()
    name = getattr(error, "filename", None)
    met_at = f" ({_shown(name)})" if name and str(name) not in str(place) else ""
    return f"{where}: {reason(error)}{met_at}; {cure(error, setting, address)}"


def _shown(place: object) -> str:
    """Return a path or address on one line, whatever bytes it is made of."""
    text = place.decode(errors="backslashreplace") if isinstance(place, bytes) else str(place)
    return printable(text)
