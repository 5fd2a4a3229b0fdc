"""A bounded memory of what was asked for lately."""

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Recency(Generic[Value]):
    """Values by text, within a bound of bytes; what was not asked for the longest goes first."""

    __slots__ = ("_bytes", "_bytes_max", "_held")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._held: dict[str, tuple[Value, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """What all values take, as said when they were put in."""
        return self._bytes

    def get(self, name: str) -> Value | None:
        """Return a value, which counts as asked for now, or None."""
        held = self._held.pop(name, None)
        if held is None:
            return None
        self._held[name] = held
        return held[0]

    def put(self, name: str, value: Value, size_bytes: int) -> None:
        """Hold a value; one that alone exceeds the bound is not held."""
        self.discard(name)
        self._held[name] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._bytes_max:
            self.discard(next(iter(self._held)))

    def discard(self, name: str) -> None:
        """Forget a value."""
        held = self._held.pop(name, None)
        if held is not None:
            self._bytes -= held[1]
