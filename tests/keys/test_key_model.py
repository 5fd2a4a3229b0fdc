"""Any sequence of calls, clocks, sweeps and restarts leaves of keys what the contract says."""

import logging
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from key_calls import ERROR, INDEX, NOT_FOUND, OK
from model_histories import histories, run_history, swept_or_restarted
from purerpc import StatusCode
from simulated_host import CallFailed, Host, folder_in_memory

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

READY = ("a", "b", "c")
DAY_S = 86400


@attrs.define
class Key:
    """What the contract says of a key; ``target`` is blank while it points at nothing."""

    target: str = ""
    last: int = -1
    alias: bool = False
    hint: str = ""
    ttl_s: int | None = None
    ends_s: float | None = None
    tokens: dict[str, tuple[str, int, float]] = attrs.Factory(dict)


class Model:
    """Keys, and the seconds that have passed."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.now_s = 0.0

    def key(self, name: str) -> Key:
        key = self.keys.setdefault(name, Key())
        if key.ends_s is not None and key.ends_s <= self.now_s:
            key.target, key.ends_s = "", None
        return key

    def point(self, key: Key, target: str, *, alias: bool) -> None:
        key.target, key.alias = target, alias
        key.last += 1
        key.hint, key.ttl_s, key.ends_s = "", None, None

    def upsert(self, name: str, target: str, hint: str, ttl_s: int | None) -> Any:
        key = self.key(name)
        if key.target and key.target != target:
            return ERROR, key.target
        if not key.target:
            if target not in READY:
                return StatusCode.FAILED_PRECONDITION
            self.point(key, target, alias=False)
        key.hint, key.ttl_s = hint, ttl_s
        key.ends_s = self.now_s + ttl_s if ttl_s else None
        return OK, ""

    def swap(self, name: str, target: str, guard: str, number: int | None, token: str) -> Any:
        key = self.key(name)
        if token in key.tokens:
            before, generation, _ = key.tokens[token]
            return (OK, target, generation) if before == target else StatusCode.FAILED_PRECONDITION
        if target not in READY:
            return StatusCode.FAILED_PRECONDITION
        if not key.target:
            if guard or number is not None:
                return ERROR, "", 0
        elif guard not in {"", key.target} or number not in {None, key.last}:
            return ERROR, key.target, key.last
        if key.target == target:
            key.alias = True
        else:
            self.point(key, target, alias=True)
        if token:
            key.tokens[token] = target, key.last, self.now_s
        return OK, target, key.last

    def resolve(self, name: str) -> Any:
        key = self.key(name)
        if not key.target:
            return (NOT_FOUND,)
        left_s = None if key.ends_s is None else -(-(key.ends_s - self.now_s) // 1)
        cached_s = 30 if key.ttl_s is None else left_s or 0
        return OK, key.target, key.last, key.hint, 1 if key.alias else cached_s

    def revoke(self, name: str) -> int:
        key = self.key(name)
        found, key.target, key.ends_s = bool(key.target), "", None
        return OK if found else NOT_FOUND

    def sweep(self) -> None:
        for key in self.keys.values():
            key.tokens = {
                token: kept for token, kept in key.tokens.items() if self.now_s - kept[2] <= DAY_S
            }


NAMES = st.sampled_from("xxxy")
TARGETS = st.sampled_from([*READY, "a", "b", "unknown"])
STEPS = st.one_of(
    st.tuples(
        st.just("upsert"), NAMES, TARGETS, st.sampled_from(["", "r"]),
        st.sampled_from([None, 0, 1, 5, 100]),
    ),
    st.tuples(
        st.just("swap"), NAMES, TARGETS, st.sampled_from(["", "", "a", "b"]),
        st.sampled_from([None, None, 0, 1, 2]), st.sampled_from(["", "", "op", "op2"]),
    ),
    st.tuples(
        st.just("swap"), NAMES, st.sampled_from("ab"), st.just(""), st.none(), st.just("op"),
    ),
    st.tuples(st.just("swap"), NAMES, st.sampled_from("abc"), st.just(""), st.none(), st.just("")),
    st.tuples(st.just("resolve"), NAMES),
    st.tuples(st.just("resolve"), NAMES),
    st.tuples(st.just("revoke"), NAMES),
    st.tuples(st.just("pass"), st.sampled_from([1, 4, 99, DAY_S + 1])),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("restart"), st.booleans()),
)  # fmt: skip


async def call(host: Host, what: str, *arguments: Any) -> Any:
    """Make a call; return what the model would."""
    try:
        match what, *arguments:
            case "upsert", name, target, hint, ttl_s:
                request = wire.UpsertKeyMappingRequest(
                    key=name, artifact_id=target, replica_uuid=hint
                )
                if ttl_s is not None:
                    request.ttl.FromSeconds(ttl_s)
                answer = await host.call(request)
                other = next((a for a in READY if f"at {a};" in answer.conflict_reason), "")
                return answer.status, other
            case "swap", name, target, guard, number, token:
                answer = await host.call(
                    wire.SwapKeyMappingRequest(
                        key=name, new_artifact_id=target, expected_artifact_id=guard,
                        expected_generation=number, operation_id=token,
                    )
                )  # fmt: skip
                return answer.status, answer.artifact_id, answer.generation
            case "resolve", name:
                answer = await host.call(wire.ResolveKeyMappingRequest(key=name))
                if answer.status == NOT_FOUND:
                    return (NOT_FOUND,)
                hint, cached_s = answer.replica_uuid, answer.cache_ttl_seconds
                return answer.status, answer.artifact_id, answer.generation, hint, cached_s
            case "revoke", name:
                return (await host.call(wire.RevokeKeyMappingRequest(key=name))).status
    except CallFailed as error:
        return error.code


async def run(steps: list[Any], clock: trio.testing.MockClock) -> None:
    model = Model()
    with folder_in_memory() as folder:
        async with trio.open_nursery() as nursery:
            # Nothing is forgotten but in the steps that say so.
            host = Host(folder, nursery, worker_policy={"cleanup_interval": "100000000s"})
            await host.start()
            for artifact_id in READY:
                described = common.ArtifactDescriptor(
                    artifact_id=artifact_id, index_multihash=multihash.of(INDEX)
                )
                await host.call(
                    wire.UpsertArtifactMetadataRequest(
                        descriptor=described, canonical_index_data=INDEX
                    )
                )
            targets: dict[tuple[str, int], str] = {}
            for what, *arguments in steps:
                if what == "pass":
                    clock.jump(arguments[0])
                    model.now_s += arguments[0]
                elif not await swept_or_restarted(host, model, what, *arguments):
                    assert await call(host, what, *arguments) == getattr(model, what)(*arguments), (
                        what,
                        arguments,
                    )
                for name, key in model.keys.items():
                    if model.key(name).target:
                        # A generation names one target, for ever.
                        assert targets.setdefault((name, key.last), key.target) == key.target
            nursery.cancel_scope.cancel()


@histories(60)
@given(steps=st.lists(STEPS, min_size=8, max_size=40))
def test_any_history_of_keys(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "disabled", True)
    run_history(run, steps)
