"""The place of a daemon's reconciles in their sequence."""

import pytest

from globalstore.daemon.cursor import Cursor, Then
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


def registered() -> Cursor:
    cursor = Cursor()
    cursor.registered(wire.RegisterWorkerResponse(reconcile_generation=4, expected_state_version=9))
    return cursor


def answer(kind: str, version: int = 9) -> wire.ReconcileWorkerStateResponse:
    return wire.ReconcileWorkerStateResponse(
        result_kind=f"RECONCILE_RESULT_KIND_{kind}", new_state_version=version
    )


def test_a_generation_begins_with_request_1() -> None:
    cursor = registered()
    request = cursor.request("w", "d", [])
    assert (request.worker_id, request.daemon_id) == ("w", "d")
    assert (request.generation, request.request_seq) == (4, 1)
    assert request.request_kind == wire.RECONCILE_REQUEST_KIND_SNAPSHOT
    assert cursor.state_version == 9


@pytest.mark.parametrize("kind", ["APPLIED", "NOOP"])
def test_an_accepted_request_moves_number_and_version(kind: str) -> None:
    cursor = registered()
    assert cursor.answered(answer(kind, 10)) is Then.GO_ON
    assert cursor.request("w", "d", []).request_seq == 2
    assert cursor.state_version == 10


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        ("RETRY_LATER", Then.SEND_AGAIN),
        ("REBASE_REQUIRED", Then.REGISTER),
        ("IGNORED_STALE", Then.REGISTER),
        ("UNSPECIFIED", Then.REGISTER),
    ],
)
def test_one_that_was_not_accepted_keeps_its_number(kind: str, then: Then) -> None:
    cursor = registered()
    cursor.answered(answer("APPLIED", 10))
    assert cursor.answered(answer(kind, 77)) is then
    assert cursor.request("w", "d", []).request_seq == 2
    assert cursor.state_version == 10


def test_without_an_answer_the_same_number_is_sent_again() -> None:
    cursor = registered()
    assert cursor.request("w", "d", []).request_seq == cursor.request("w", "d", []).request_seq == 1


def test_a_new_registration_begins_again() -> None:
    cursor = registered()
    cursor.answered(answer("APPLIED", 10))
    cursor.registered(
        wire.RegisterWorkerResponse(reconcile_generation=5, expected_state_version=10)
    )
    request = cursor.request("w", "d", [])
    assert (request.generation, request.request_seq) == (5, 1)
