"""One effect, and one answer, for all repeats of a request that carries an id of its own.

The answer is recorded in the transaction of the effect: a crash leaves both or neither, so that no
request id is ever stuck in between. What changed nothing is not recorded: a repeat of it is looked
at anew. Daemons make their ids from the payload alone, so that the same id may also be a new wish:
a record counts only while what it made is still so.
"""

from collections.abc import Callable
from typing import TypeVar

import attrs

from globalstore.db import LimitReached, Transaction
from globalstore.rules.refusals import FailedPrecondition

Result = TypeVar("Result")


class PayloadConflict(FailedPrecondition):
    """A client_request_id came again with another request."""


@attrs.frozen
class Token:
    """What a repeat is recognised by.

    ``operation_kind`` is the name of the RPC and ``payload_digest`` the SHA-256 of the whole
    request in its deterministic encoding.
    """

    request_id: str
    operation_kind: str
    payload_digest: bytes


@attrs.frozen
class Basis:
    """What an answer rests on.

    ``worker_generation`` returns a number to record with it; ``holds`` gets the recorded answer and
    that number, and tells whether what was made is still so. ``is_end`` for what ends something: it
    is done even if there is no room to record it, since a repeat finds it ended.
    """

    worker_generation: Callable[[Transaction], int]
    holds: Callable[[Transaction, bytes, int], bool]
    is_end: bool = False


@attrs.frozen
class Reply:
    """An encoded answer; ``replayed`` when it was recorded by an earlier request."""

    body: bytes
    replayed: bool


def once(
    tx: Transaction,
    token: Token,
    now_us: int,
    act: Callable[[Transaction], Result],
    encode: Callable[[Result], bytes],
    basis: Basis,
) -> Reply:
    """Run ``act`` unless a request with this id ran before; return its answer, old or new.

    A record whose ``basis`` is gone counts for nothing: then the request is looked at anew. Raises
    PayloadConflict when the id was used for another request, LimitReached when there is no room to
    record another answer, and what ``act`` refuses with.
    """
    row = tx.one(
        "SELECT operation_kind, payload_digest, reply, worker_generation FROM recorded_replies"
        # Earlier versions recorded refusals too.
        " WHERE request_id = :request_id AND refusal = ''",
        {"request_id": token.request_id},
    )
    if row is not None:
        kind, digest, reply, generation = row
        if (kind, digest) != (token.operation_kind, token.payload_digest):
            raise PayloadConflict(
                f"client_request_id {token.request_id[:80]!r} was already used for another"
                f" {kind} request"
            )
        if basis.holds(tx, reply, generation):
            return Reply(reply, replayed=True)
    before = tx.changes
    outcome = Reply(encode(act(tx)), replayed=False)
    if tx.changes != before:
        _record(tx, token, outcome.body, basis, now_us)
    return outcome


def _record(tx: Transaction, token: Token, reply: bytes, basis: Basis, now_us: int) -> None:
    try:
        tx.run(
            "INSERT INTO recorded_replies VALUES"
            " (:request_id, :kind, :digest, '', :reply, :now, :generation)"
            " ON CONFLICT (request_id) DO UPDATE SET operation_kind = :kind,"
            " payload_digest = :digest, refusal = '', reply = :reply, created_at = :now,"
            " worker_generation = :generation",
            {
                "request_id": token.request_id,
                "kind": token.operation_kind,
                "digest": token.payload_digest,
                "reply": reply,
                "now": now_us,
                "generation": basis.worker_generation(tx),
            },
        )
    except LimitReached:
        if not basis.is_end:
            raise


def purge_replies(tx: Transaction, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` answers recorded before a time; return how many."""
    return tx.run(
        "DELETE FROM recorded_replies WHERE request_id IN ("
        " SELECT request_id FROM recorded_replies WHERE created_at < :before"
        " ORDER BY created_at, request_id LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )
