"""What a client may do without asking for work: allowances that are earned by work."""


class Allowance:
    """Tokens that requests and time bring in and that control frames take out."""

    __slots__ = ("_per_second", "_since", "cap", "tokens")

    def __init__(self, cap: int, per_second: float, now: float) -> None:
        """Begin with ``cap`` tokens, which is also the most that can be saved up."""
        self.cap = cap
        self._per_second = per_second
        # What is left; less than 0 if more was used, see ``owe``.
        self.tokens = float(cap)
        self._since = now

    def earn(self, tokens: int) -> None:
        """Add tokens for work asked or done."""
        if self.tokens < self.cap:
            self.tokens += tokens

    def raise_cap(self, tokens: int) -> None:
        """Let more be saved up, and add as much."""
        self.cap += tokens
        self.tokens += tokens

    def refill(self) -> None:
        """Begin anew with as much as can be saved up."""
        self.tokens = float(self.cap)

    def owe(self, now: float, tokens: int) -> None:
        """Take tokens that have been used already, more than are left if need be."""
        if not self.spend(now, tokens):
            self.tokens -= tokens

    def wait_s(self, now: float) -> float:
        """Return after how many seconds nothing is owed any more; 0 if nothing is."""
        if self.tokens >= 0:
            return 0.0
        return max(0.0, self._since - now - self.tokens / self._per_second)

    def spend(self, now: float, tokens: int = 1) -> bool:
        """Take tokens; False if so many are not left, counting what time has brought in."""
        if self.tokens < tokens:
            earned = (now - self._since) * self._per_second
            self.tokens = min(self.cap, self.tokens + earned)
            self._since = now
            if self.tokens < tokens:
                return False
        self.tokens -= tokens
        return True
