"""What a client may do without asking for work: allowances that are earned by work."""


class Allowance:
    """Tokens that requests and time bring in and that control frames take out."""

    __slots__ = ("_cap", "_per_second", "_since", "_tokens")

    def __init__(self, cap: int, per_second: float, now: float) -> None:
        """Begin with ``cap`` tokens, which is also the most that can be saved up."""
        self._cap = cap
        self._per_second = per_second
        self._tokens = float(cap)
        self._since = now

    def earn(self, tokens: int) -> None:
        """Add tokens for work asked or done."""
        if self._tokens < self._cap:
            self._tokens += tokens

    def spend(self, now: float) -> bool:
        """Take one token; False if none is left, counting what time has brought in."""
        if self._tokens < 1:
            earned = (now - self._since) * self._per_second
            self._tokens = min(self._cap, self._tokens + earned)
            self._since = now
            if self._tokens < 1:
                return False
        self._tokens -= 1
        return True
