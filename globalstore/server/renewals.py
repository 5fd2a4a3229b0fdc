"""Files that are renewed while the server runs: certificates, tokens."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import trio

from globalstore.config import GlobalStoreConfig, access_warnings
from globalstore.host import HostRefused, identity_of
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# How often the files are checked. Nothing portable reports a change behind symbolic links and
# mounts, which is how secrets are rotated, so they are polled. A change is taken up once two checks
# agree on it, well within a minute: a tool that renews a pair writes one file after the other, and
# half of a new pair is no reason for an alarm.
LOOK_S: Final = 20.0


def warn_of_access(config: GlobalStoreConfig) -> None:
    """Log which of the files that ``config`` names others may read or change, once a minute."""
    for line in access_warnings(config):
        _log.limited(line, line)


class Renewal:
    """Takes files up again when they have changed.

    ``what`` is their name in the log, ``files`` returns their paths, and ``use`` reads them; it
    raises HostRefused when they cannot be used, and then the old ones stay in use.
    """

    def __init__(
        self, what: str, files: Callable[[], Iterable[str]], use: Callable[[], None]
    ) -> None:
        self._what = what
        self._files = files
        self._use = use
        self._tried = self._identities()

    def take_up(self) -> None:
        """Use the files as they are. Raises HostRefused; they are tried again when they change."""
        # Noted first: what changes while the files are read is new at the next look.
        self._tried = self._identities()
        self._use()

    async def run(self) -> None:
        """Take up changed files by themselves, until cancelled."""
        last = self._tried
        while True:
            await trio.sleep(LOOK_S)
            # Beside the event loop: the files may lie on a mount that is slow to answer.
            seen = await trio.to_thread.run_sync(self._identities, abandon_on_cancel=True)
            unchanged, last = seen == last, seen
            if unchanged and seen != self._tried:
                self._take_up_changed()

    def _take_up_changed(self) -> None:
        try:
            self.take_up()
        except HostRefused as error:
            _log.error(f"{self._what} not renewed, the old one stays in use", reason=str(error))
        else:
            _log.info(f"{self._what} renewed", files=" ".join(self._files()))

    def _identities(self) -> list[tuple[int, int, int, int] | None]:
        return [identity_of(Path(name).expanduser()) for name in self._files()]
