"""Clients that do whatever comes to mind with a few shards, and write down what they saw."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from lease_model import Lost, Told
from linearizability import Operation
from purerpc import RpcFailedError, StatusCode
from servers import worker_request
from simulated_host import CallFailed

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SHARDS = (0, 7, 2**64 - 1)
DAEMONS = ("a", "b", "c")

# Lifetimes in milliseconds, some of them over before the next call comes.
_TTLS_MS = (1, 5, 20, 20, 50, 100)


class NoAnswer(Exception):
    """A call ended without an answer."""


class Clients:
    """``call`` makes a call of the runtime service, by its request; ``now_us`` is the clock.

    ``call`` raises NoAnswer when nobody knows what became of the call.
    """

    def __init__(
        self,
        call: Callable[[Any], Awaitable[Any]],
        now_us: Callable[[], int],
        rng: random.Random,
        ids: dict[str, str],
    ) -> None:
        self.call = call
        self.now_us = now_us
        self.rng = rng
        self.ids = ids
        self.histories: dict[int, list[Operation]] = {shard: [] for shard in SHARDS}
        self.tokens: dict[int, list[tuple[str, int]]] = {shard: [] for shard in SHARDS}
        self.answered = 0

    async def one(self) -> None:
        """Make one call, or none of it if that is cut off."""
        rng = self.rng
        shard, daemon = rng.choice(SHARDS), rng.choice(DAEMONS)
        token, generation = rng.choice(self.tokens[shard][-4:] or [("0" * 32, 1)])
        ttl_ms = rng.choice(_TTLS_MS)
        kind = rng.choices(
            ["acquire", "keep", "keep all", "release", "get", "get all", "register", "goodbye"],
            [10, 8, 6, 2, 6, 4, 1, 0.5],
        )[0]
        match kind:
            case "acquire":
                await self._acquire(shard, daemon, ttl_ms)
            case "keep":
                await self._keep(shard, token, generation, ttl_ms)
            case "keep all":
                await self._keep_all(ttl_ms)
            case "release":
                request = wire.ReleaseShardHomeLeaseRequest(lease_token=token)
                await self._note((shard,), ("release", token), request, lambda a: [a.released])
            case "get":
                await self._get(shard)
            case "get all":
                await self._get_all()
            case "register":
                await self._note(SHARDS, ("register", daemon), worker_request(daemon))
            case _:
                request = wire.UnregisterWorkerRequest(
                    worker_id=self.ids[daemon], is_graceful_shutdown=True
                )
                await self._note(SHARDS, ("goodbye", daemon), request)

    async def _note(
        self,
        shards: tuple[int, ...],
        operation: Any,
        request: Any,
        outcomes: Callable[[Any], list[Any]] = lambda answer: [],
    ) -> None:
        """Make a call and write down its outcome, which is one for each shard."""
        # The clock of a restarted server may round otherwise.
        began = self.now_us() - 1
        each_asked = operation if isinstance(operation, list) else [operation] * len(shards)
        outcome: list[Any] | None = None
        try:
            answer = await self.call(request)
            outcome = outcomes(answer) or [None] * len(shards)
        except (RpcFailedError, CallFailed) as error:
            code = error.code if isinstance(error, CallFailed) else error.status.status_code
            if code is not StatusCode.NOT_FOUND:
                raise
            outcome = [None] * len(shards)
        except NoAnswer:
            pass
        finally:
            ended = self.now_us() + 1
            lost = [Lost.LOST] * len(shards)
            for shard, one, became in zip(shards, each_asked, outcome or lost, strict=True):
                reads = one == ("get",)
                self.histories[shard].append(Operation(began, ended, one, became, reads))
                if one[0] == "acquire" and became is Lost.LOST:
                    taken_back = Operation(began, ended, ("withdraw", one[1]), Lost.LOST)
                    self.histories[shard].append(taken_back)
        self.answered += outcome is not None

    async def _acquire(self, shard: int, daemon: str, ttl_ms: int) -> None:
        def outcome(answer: Any) -> list[Any]:
            route = _told(answer.lease)
            assert answer.lease.shard_id == shard
            assert bool(route.token) == answer.acquired, "a token is its holder's own"
            if answer.acquired:
                self.tokens[shard].append((route.token, route.generation))
            return [(answer.acquired, route)]

        request = wire.AcquireShardHomeLeaseRequest(
            shard_id=shard, holder_daemon_id=daemon, ttl_ms=ttl_ms
        )
        await self._note((shard,), ("acquire", daemon, ttl_ms * 1000), request, outcome)

    async def _keep(self, shard: int, token: str, generation: int, ttl_ms: int) -> None:
        await self._note(
            (shard,),
            ("keep", token, ttl_ms * 1000, generation),
            wire.KeepaliveShardHomeLeaseRequest(lease_token=token, ttl_ms=ttl_ms),
            lambda answer: [_told(answer.lease)],
        )

    async def _keep_all(self, ttl_ms: int) -> None:
        request = wire.BatchKeepaliveShardHomeLeasesRequest(ttl_ms=ttl_ms)
        operation = []
        for shard in SHARDS:
            token, generation = self.rng.choice(self.tokens[shard][-2:] or [("1" * 32, 1)])
            request.leases.add(shard_id=shard, lease_generation=generation, lease_token=token)
            operation.append(("keep", token, ttl_ms * 1000, generation))
        await self._note(
            SHARDS,
            operation,
            request,
            lambda answer: [_told(each.lease) if each.ok else None for each in answer.outcomes],
        )

    async def _get(self, shard: int) -> None:
        request = wire.GetShardHomeLeaseRequest(shard_id=shard)
        await self._note((shard,), ("get",), request, lambda answer: [_told(answer.lease)])

    async def _get_all(self) -> None:
        def outcome(answer: Any) -> list[Any]:
            found = {route.shard_id: _told(route) for route in answer.leases}
            return [found.get(shard) for shard in SHARDS]

        request = wire.BatchGetShardHomeLeasesRequest(shard_ids=SHARDS)
        await self._note(SHARDS, ("get",), request, outcome)


def _told(lease: Any) -> Told:
    return Told(
        lease.holder_daemon_id,
        lease.lease_generation,
        getattr(lease, "lease_token", ""),
        lease.expires_at.ToMicroseconds(),
    )


async def cut_off_after(turns: int, call: Callable[[], Awaitable[None]]) -> None:
    """Make a call whose client goes away after so many turns of the event loop."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
