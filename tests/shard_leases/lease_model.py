"""One shard's lease as the contract has it, for judging what concurrent clients saw of it.

Times are microseconds of the clock by which the server measures leases. An answer with a deadline
tells the very instant at which the server decided: the deadline less the lifetime.
"""

import enum
import math
from collections.abc import Iterator
from typing import Any

import attrs
from linearizability import Operation


@attrs.frozen
class Shard:
    """What is known of a lease: never held at first; without a holder, released.

    ``token`` is None, and the deadline only known to be between two times, for a lease of which the
    grant's answer was lost. ``decided_at`` is when the last change was decided. ``fenced`` when its
    holder has registered as another incarnation since.
    """

    generation: int = 0
    holder: str = ""
    token: str | None = ""
    until: tuple[float, float] = (0, 0)
    decided_at: float = -math.inf
    fenced: bool = False

    def may_live(self, at: float) -> bool:
        return self.holder != "" and self.until[1] > at

    def may_be_over(self, by: float) -> bool:
        return self.holder == "" or self.until[0] <= by

    def has(self, token: str) -> bool:
        return self.holder != "" and self.token in {None, token}


class Lost(enum.Enum):
    """The outcome of a call without an answer: when that was clear it had happened, or never will.

    Such a call has an end like any other, so that it need not be tried at every later point.
    """

    LOST = "lost"


@attrs.frozen
class Told:
    """What an answer says of a lease; the token is blank for those whom it is none of."""

    holder: str
    generation: int
    token: str
    until: int


def step(shard: Shard, call: Operation) -> Iterator[Shard]:
    """Every way in which a call can have gone at this point; see ``linearizability``."""
    kind, *arguments = call.request
    earliest = max(shard.decided_at, call.began)
    if earliest > call.ended:
        return
    yield from _KINDS[kind](shard, call, earliest, *arguments)


def _acquire(
    shard: Shard, call: Operation, earliest: float, daemon: str, ttl: int
) -> Iterator[Shard]:
    if call.outcome is Lost.LOST:
        yield shard
        ends = (earliest + ttl, call.ended + ttl)
        if shard.may_live(earliest) and shard.holder == daemon and not shard.fenced:
            yield attrs.evolve(shard, until=ends)
        if shard.may_be_over(call.ended) or (shard.holder == daemon and shard.fenced):
            yield Shard(shard.generation + 1, daemon, None, ends, earliest)
        return
    acquired, lease = call.outcome
    if not acquired:
        same = (lease.holder, lease.generation) == (shard.holder, shard.generation)
        known = shard.until[0] <= lease.until <= shard.until[1]
        if same and lease.holder != daemon and lease.until > earliest and known:
            yield attrs.evolve(shard, until=(lease.until, lease.until))
        return
    at = lease.until - ttl
    if not earliest <= at <= call.ended or lease.holder != daemon:
        return
    again = shard.has(lease.token) and lease.generation == shard.generation
    if again and shard.holder == daemon and shard.may_live(at) and not shard.fenced:
        yield attrs.evolve(
            shard, token=lease.token, until=(lease.until, lease.until), decided_at=at
        )
    free = shard.may_be_over(at) or (shard.holder == daemon and shard.fenced)
    if free and lease.generation == shard.generation + 1 and lease.token != shard.token:
        yield Shard(lease.generation, daemon, lease.token, (lease.until, lease.until), at)


def _withdraw(shard: Shard, call: Operation, earliest: float, daemon: str) -> Iterator[Shard]:
    """A grant that its daemon was not told of may have been taken back."""
    yield shard
    if shard.holder == daemon and shard.token is None:
        yield attrs.evolve(shard, holder="", token="", fenced=False, decided_at=earliest)


def _keep(
    shard: Shard, call: Operation, earliest: float, token: str, ttl: int, generation: int
) -> Iterator[Shard]:
    if call.outcome is Lost.LOST:
        yield shard
        if shard.has(token) and shard.may_live(earliest):
            yield attrs.evolve(shard, token=token, until=(earliest + ttl, call.ended + ttl))
        return
    if call.outcome is None:
        if shard.token != token or shard.may_be_over(call.ended):
            yield shard
        return
    at = call.outcome.until - ttl
    if not earliest <= at <= call.ended or call.outcome.generation != generation:
        return
    if shard.has(token) and shard.generation == generation and shard.may_live(at):
        until = (call.outcome.until, call.outcome.until)
        yield attrs.evolve(shard, token=token, until=until, decided_at=at)


def _release(shard: Shard, call: Operation, earliest: float, token: str) -> Iterator[Shard]:
    given_up = attrs.evolve(shard, holder="", token="", fenced=False, decided_at=earliest)
    if call.outcome is Lost.LOST:
        yield shard
    if call.outcome is not False and shard.has(token):
        yield given_up
    if call.outcome is False and shard.token != token:
        yield shard


def _get(shard: Shard, call: Operation, earliest: float) -> Iterator[Shard]:
    lease = call.outcome
    if call.outcome is Lost.LOST:
        yield shard
    elif lease is None:
        if shard.may_be_over(call.ended):
            yield shard
    elif (
        (lease.holder, lease.generation) == (shard.holder, shard.generation)
        and lease.until > earliest
        and shard.until[0] <= lease.until <= shard.until[1]
    ):
        yield attrs.evolve(shard, until=(lease.until, lease.until))


def _register(shard: Shard, call: Operation, earliest: float, daemon: str) -> Iterator[Shard]:
    if call.outcome is Lost.LOST:
        yield shard
    yield attrs.evolve(shard, fenced=True) if shard.holder == daemon else shard


def _goodbye(shard: Shard, call: Operation, earliest: float, daemon: str) -> Iterator[Shard]:
    if call.outcome is Lost.LOST:
        yield shard
    if shard.holder == daemon:
        yield attrs.evolve(shard, holder="", token="", fenced=False, decided_at=earliest)
    elif call.outcome is not Lost.LOST:
        yield shard


_KINDS: dict[str, Any] = {
    "acquire": _acquire,
    "withdraw": _withdraw,
    "keep": _keep,
    "release": _release,
    "get": _get,
    "register": _register,
    "goodbye": _goodbye,
}
