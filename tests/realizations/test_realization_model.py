"""Any sequence of calls, clocks and restarts leaves of realizations what the contract says."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from model_histories import histories, run_history, swept_or_restarted
from purerpc import StatusCode
from realization_calls import ABORTED, EXPIRED, PREPARING, PUBLISHED, joining, reporting
from simulated_host import CallFailed, Host, folder_in_memory

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import realizations

FAILED, EXISTS = StatusCode.FAILED_PRECONDITION, StatusCode.ALREADY_EXISTS
MISSING = StatusCode.NOT_FOUND
DAY_S = 86400
LIFE_S = 30
PARTS = "01"

# Long enough for the server to do what is due.
MOMENT_S = 0.001


@attrs.define
class Member:
    """A part that has joined: who plays it, and what it has reported."""

    daemon: str = ""
    session: str = ""
    value: str | None = None
    source: str = ""


@attrs.define
class Slot:
    """What the contract says of one slot."""

    version: str
    ends_s: float
    state: int = PREPARING
    code: str = ""
    ended_s: float = 0.0
    members: dict[str, Member] = attrs.Factory(dict)

    def end(self, state: int, code: str, at_s: float) -> None:
        self.state, self.code, self.ended_s = state, code, at_s


class Model:
    """Slots by epoch, and the seconds that have passed."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self.now_s = 0.0

    def slot(self, epoch: int) -> Slot | None:
        slot = self.slots.get(epoch)
        if slot is not None and slot.state == PREPARING and slot.ends_s <= self.now_s:
            slot.end(EXPIRED, "deadline_exceeded", self.now_s)
        return slot

    def join(self, epoch: int, part: str, version: str, daemon: str, session: str) -> Any:
        slot = self.slot(epoch)
        if slot is None:
            slot = self.slots[epoch] = Slot(version, self.now_s + LIFE_S)
            slot.members[part] = Member(daemon, session)
            return PREPARING
        if slot.state in {ABORTED, EXPIRED}:
            return FAILED
        if slot.version != version:
            return EXISTS
        member = slot.members.get(part)
        if member is None:
            if slot.state == PREPARING:
                slot.members[part] = Member(daemon, session)
            return slot.state
        restarted = member.value is None and bool(session) and member.daemon == daemon != ""
        for old, new in ((member.daemon, daemon), (member.session, session)):
            if old and new and old != new and not restarted:
                return EXISTS
        if slot.state == PREPARING:
            member.daemon, member.session = daemon or member.daemon, session or member.session
        return slot.state

    def report(self, epoch: int, part: str, daemon: str, value: str, source: str) -> Any:
        slot = self.slot(epoch)
        if slot is None or part not in slot.members:
            return MISSING
        if slot.state in {ABORTED, EXPIRED}:
            return FAILED
        member = slot.members[part]
        if member.daemon and daemon and member.daemon != daemon:
            return EXISTS
        arguments = f"{daemon} {value}"
        if member.value is not None:
            return slot.state if (member.value, member.source) == (arguments, source) else EXISTS
        member.value, member.source, member.daemon = arguments, source, daemon or member.daemon
        if [part for part in PARTS if part in slot.members and slot.members[part].value] != list(
            PARTS
        ):
            return PREPARING
        if any(each.source for each in slot.members.values()):
            slot.end(ABORTED, "source_visibility_stale", self.now_s)
            return EXISTS
        slot.end(PUBLISHED, "", self.now_s)
        return PUBLISHED

    def publish(self, epoch: int) -> Any:
        slot = self.slot(epoch)
        if slot is None:
            return MISSING
        return PUBLISHED if slot.state == PUBLISHED else FAILED

    def abort(self, epoch: int, code: str) -> Any:
        slot = self.slot(epoch)
        if slot is None:
            return MISSING
        if slot.state == PUBLISHED:
            return FAILED
        if slot.state == PREPARING:
            slot.end(ABORTED, code or "aborted", self.now_s)
        return slot.state

    def poll(self, epoch: int) -> Any:
        slot = self.slot(epoch)
        return MISSING if slot is None else slot.state

    def show(self, epoch: int) -> Any:
        slot = self.slot(epoch)
        if slot is None:
            return None
        prepared = [part for part in PARTS if part in slot.members and slot.members[part].value]
        there = (
            list(PARTS) if slot.state == PUBLISHED else prepared if slot.state == PREPARING else []
        )
        fenced = slot.code == "source_visibility_stale"
        names = {PREPARING: None, PUBLISHED: 4, ABORTED: 5 if fenced else 6, EXPIRED: 7}
        return (
            slot.state,
            slot.code,
            [part for part in PARTS if part not in there],
            len(there),
            len(PARTS) if fenced else 0,
            len(PARTS) if slot.state == PUBLISHED else 0,
            [
                (
                    part,
                    names[slot.state] or (3 if member.value else 1),
                    member.daemon,
                    member.session,
                )
                for part, member in sorted(slot.members.items())
            ],
        )

    def sweep(self) -> None:
        for epoch in list(self.slots):
            slot = self.slot(epoch)
            assert slot is not None
            if slot.state != PREPARING and self.now_s - slot.ended_s > DAY_S:
                slot.members = {}


EPOCHS = st.sampled_from([1, 1, 2])
PART = st.sampled_from(PARTS)
DAEMONS = st.sampled_from(["", "d1", "d1", "d2"])
STEPS = st.one_of(
    st.tuples(st.just("join"), EPOCHS, PART, st.sampled_from("aaab"), DAEMONS,
              st.sampled_from(["", "s1", "s2"])),
    st.tuples(st.just("join"), EPOCHS, PART, st.just("a"), st.just(""), st.just("")),
    st.tuples(st.just("report"), EPOCHS, PART, DAEMONS, st.sampled_from("vvw"),
              st.sampled_from(["", "", "", "gone"])),
    st.tuples(st.just("report"), EPOCHS, PART, st.just(""), st.just("v"), st.just("")),
    st.tuples(st.just("all"), EPOCHS),
    st.tuples(st.just("publish"), EPOCHS),
    st.tuples(st.just("abort"), EPOCHS, st.sampled_from(["", "x"])),
    st.tuples(st.just("poll"), EPOCHS),
    st.tuples(st.just("pass"), st.sampled_from([1, 10, 29, LIFE_S, DAY_S + 1])),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("restart"), st.booleans()),
)  # fmt: skip


def transaction_id(epoch: int, version: str) -> str:
    """The id that a slot's realization has, known before it begins."""
    encoded = b"\x0a\x01" + version.encode()
    chosen = realizations.Selection(encoded, version, "", realizations.computed_hash(encoded), b"")
    version_set = realizations.same_for_all(chosen, PARTS)
    fingerprint = realizations.transaction_fingerprint(
        group_kind="tp_serving", group_id="g1", epoch=epoch, required_part_ids=list(PARTS),
        manifest_hash=version_set.manifest_hash, kind=version_set.kind, key_generation=None,
    )  # fmt: skip
    return f"grt_{fingerprint.hex()}"


async def call(host: Host, id_: str, what: str, epoch: int, *arguments: Any) -> Any:
    """Make a call; return what the model would."""
    try:
        match what, *arguments:
            case "join", part, version, daemon, session:
                chosen = wire.VersionReference()
                chosen.explicit_selection.artifact_id = version
                answer = await host.call(
                    joining(part, chosen, PARTS, epoch=epoch, daemon_id=daemon,
                            daemon_session_id=session)
                )  # fmt: skip
                assert answer.part.part_id == part
            case "report", part, daemon, value, source:
                answer = await host.call(
                    reporting(id_, part, daemon_id=daemon, source_replica_id=source,
                              staged={"binding_value_id": value})
                )  # fmt: skip
            case ("publish",):
                answer = await host.call(wire.PublishGroupRealizationRequest(transaction_id=id_))
            case "abort", code:
                answer = await host.call(
                    wire.AbortGroupRealizationRequest(transaction_id=id_, failure_code=code)
                )
            case ("poll",):
                answer = await host.call(
                    wire.WaitGroupRealizationPublishedRequest(transaction_id=id_)
                )
        return answer.state
    except CallFailed as error:
        return error.code


async def seen(host: Host, id_: str) -> Any:
    """Look at a realization; return what the model would."""
    shown = await host.call(wire.GetGroupRealizationRequest(transaction_id=id_))
    if shown.status == wire.STATUS_NOT_FOUND:
        return None
    if shown.failure_code == "source_visibility_stale":
        assert json.loads(shown.failure_detail)
    return (
        shown.state,
        shown.failure_code,
        list(shown.missing_part_ids),
        shown.prepared_count,
        shown.failed_count,
        shown.published_count,
        [
            (each.part_id, each.state, each.daemon_id, each.daemon_session_id)
            for each in shown.members
        ],
    )


async def run(steps: list[Any], clock: trio.testing.MockClock) -> None:
    model = Model()
    with folder_in_memory() as folder:
        async with trio.open_nursery() as nursery:
            # Nothing is forgotten but in the steps that say so.
            policy = {"group_realization": {"enabled": True}, "cleanup_interval": "100000000s"}
            host = Host(folder, nursery, worker_policy=policy)
            await host.start()
            for what, *arguments in steps:
                for epoch in model.slots:
                    model.slot(epoch)
                if what == "pass":
                    # What is due already ends now, not after the jump.
                    await trio.sleep(MOMENT_S)
                    clock.jump(arguments[0] - MOMENT_S)
                    model.now_s += arguments[0]
                elif not await swept_or_restarted(host, model, what, *arguments):
                    slot = model.slots.get(arguments[0])
                    id_ = transaction_id(arguments[0], "a" if slot is None else slot.version)
                    outcome = await call(host, id_, what, *arguments)
                    expected = getattr(model, what)(*arguments)
                    assert outcome == expected, (what, arguments)
                    slot = model.slots.get(arguments[0])
                    if slot is not None:
                        id_ = transaction_id(arguments[0], slot.version)
                        assert await seen(host, id_) == model.show(arguments[0]), (what, arguments)
            used = await host.rows("SELECT epoch, count(*) FROM group_transactions GROUP BY epoch")
            assert used == [(epoch, 1) for epoch in sorted(model.slots)]
            nursery.cancel_scope.cancel()


def expanded(steps: list[Any]) -> Iterator[Any]:
    """Yield the steps; one of all parts as those of each of them, so that some get published."""
    for what, *arguments in steps:
        if what == "all":
            for part in PARTS:
                yield "join", arguments[0], part, "a", "", ""
                yield "report", arguments[0], part, "", "v", ""
        else:
            yield what, *arguments


@histories(80)
@given(steps=st.lists(STEPS, min_size=8, max_size=40))
def test_any_history_of_realizations(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "disabled", True)
    run_history(run, list(expanded(steps)))
