"""How the transports of an artifact spread over its sources."""

from typing import NamedTuple

# Transports that the shares are taken of, more or less: older ones lose half their weight each time
# so many were counted. It is also the most sources that an artifact has in mind.
_WINDOW = 1000


class Concentration(NamedTuple):
    """The largest share of one source, and the sum of the squared shares of all."""

    top1_share: float
    hhi: float


class SourceShares:
    """What each source of one artifact had of its latest transports."""

    def __init__(self) -> None:
        self._counts: dict[int, float] = {}
        self._total = 0.0
        self._squares = 0.0
        self._most = 0.0

    def used(self, source: int) -> Concentration:
        """Count a transport of a source; return how concentrated all of them are."""
        before = self._counts.get(source, 0.0)
        self._counts[source] = before + 1
        self._total += 1
        self._squares += 2 * before + 1
        self._most = max(self._most, before + 1)
        if self._total >= _WINDOW:
            self._fade()
        return Concentration(self._most / self._total, self._squares / self._total**2)

    def _fade(self) -> None:
        # A source that is below a half was not used for two windows.
        self._counts = {key: n / 2 for key, n in self._counts.items() if n >= 1}
        self._total = sum(self._counts.values())
        self._squares = sum(n * n for n in self._counts.values())
        self._most = max(self._counts.values())
