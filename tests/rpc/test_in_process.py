"""Calls from within the process are served as those of a connection, and end like them."""

from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import StringValue
from purerpc import StatusCode

from globalstore.rpc import Call, CallEnded, InProcess

from .echo import Echo, Recorder, text


def path(method: str) -> str:
    return f"/test.Echo/{method}"


async def ends(calls: InProcess, method: str, **options: Any) -> CallEnded:
    with pytest.raises(CallEnded) as caught:
        await calls.call(path(method), text("x"), **options)
    return caught.value


async def test_a_call_is_answered():
    calls = InProcess([Echo().service])
    answer = await calls.call(path("Unary"), text("hello"))
    assert StringValue.FromString(answer).value == "hello"
    assert calls.calls == frozenset()


async def test_metadata_reaches_the_handler():
    answer = await InProcess([Echo().service]).call(
        path("Metadata"), text(""), metadata=[("authorization", "Bearer x")]
    )
    assert "Bearer x" in StringValue.FromString(answer).value


async def test_the_fast_path_answers_where_it_can():
    calls = InProcess([Echo().service])
    for value, start in (("q", "at once"), ("z", "later")):
        answer = await calls.call(path("Quick"), text(value))
        assert StringValue.FromString(answer).value.startswith(start)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("Abort", StatusCode.ABORTED),
        ("NotFound", StatusCode.NOT_FOUND),
        ("Fail", StatusCode.INTERNAL),
        ("FailInNursery", StatusCode.INTERNAL),
        ("Missing", StatusCode.UNIMPLEMENTED),
        ("NoSuchMethod", StatusCode.UNIMPLEMENTED),
    ],
)
async def test_a_failure_ends_its_call_alone_and_is_observed(method, code):
    seen = Recorder()
    calls = InProcess([Echo().service], observers=[seen])
    ended = await ends(calls, method)
    assert ended.status.code is code
    assert "secret" not in str(ended)
    assert seen.ended == [(method if method != "NoSuchMethod" else "unknown", code.name)]
    await calls.call(path("Unary"), text("hello"))


async def test_a_deadline_cancels_the_handler(autojump_clock: trio.testing.MockClock):
    echo = Echo()
    ended = await ends(InProcess([echo.service]), "Hang", timeout_s=5)
    assert ended.status.code is StatusCode.DEADLINE_EXCEEDED
    assert echo.log == ["cancelled"]
    assert trio.current_time() == pytest.approx(5)


async def test_a_caller_that_goes_away_cancels_the_handler(nursery: trio.Nursery):
    echo, seen = Echo(), Recorder()
    calls = InProcess([echo.service], observers=[seen])
    with trio.CancelScope() as scope:
        nursery.start_soon(calls.call, path("Held"), text("x"))
        await echo.running.wait()
        scope.cancel()
        await calls.call(path("Hang"), text("x"))
    assert seen.ended == [("Hang", "CANCELLED")]
    assert echo.log == ["cancelled"]
    echo.release.set()


async def test_a_call_that_is_not_allowed_reaches_no_handler():
    def deny(call: Call) -> None:
        call.abort(StatusCode.UNAUTHENTICATED, "no token")

    echo = Echo()
    ended = await ends(InProcess([echo.service], authorize=deny), "Hang")
    assert ended.status.code is StatusCode.UNAUTHENTICATED
    assert not echo.running.is_set()


async def test_a_drain_ends_those_who_only_wait_and_lets_others_end(nursery: trio.Nursery):
    echo = Echo()
    calls = InProcess([echo.service])
    answers: list[bytes] = []
    ended: list[CallEnded] = []

    async def hold() -> None:
        answers.append(await calls.call(path("Held"), text("kept")))

    async def wait() -> None:
        ended.append(await ends(calls, "Wait"))

    nursery.start_soon(hold)
    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    calls.drain()
    await trio.testing.wait_all_tasks_blocked()
    assert [each.status.code for each in ended] == [StatusCode.UNAVAILABLE]
    assert (await ends(calls, "Unary")).status.code is StatusCode.UNAVAILABLE
    echo.release.set()
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [text("kept")]


async def test_a_cut_leaves_everybody_without_an_answer(nursery: trio.Nursery):
    echo = Echo()
    calls = InProcess([echo.service])
    ended: list[CallEnded] = []

    async def hang() -> None:
        ended.append(await ends(calls, "Hang"))

    nursery.start_soon(hang)
    await echo.running.wait()
    calls.cut()
    await echo.ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert [each.status.code for each in ended] == [StatusCode.UNAVAILABLE]
