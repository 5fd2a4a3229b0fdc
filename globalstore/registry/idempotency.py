"""One effect, and one answer, for all repeats of a request that carries an id of its own.

The answer is recorded in the transaction of the effect: a crash leaves both or neither, so that no
request id is ever stuck in between. Daemons make their ids from the payload alone, so that the same
id may also be a new wish: a record counts only while what it made is still so.
"""

from collections.abc import Callable
from typing import TypeVar

import attrs

from globalstore.db import Transaction
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument, Refusal

Result = TypeVar("Result")

# Refusals that keep their id from being used for another request. Any other one frees the id.
_DETERMINISTIC: dict[str, type[Refusal]] = {
    kind.__name__: kind for kind in (InvalidArgument, FailedPrecondition)
}


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
    that number, and tells whether what was made is still so.
    """

    worker_generation: Callable[[Transaction], int]
    holds: Callable[[Transaction, bytes, int], bool]


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
) -> Reply | Refusal:
    """Run ``act`` unless a request with this id ran before; return its answer, old or new.

    A record whose ``basis`` is gone counts for nothing, and one of a refusal made nothing: then the
    request is looked at anew. A refusal is returned, not raised, because recording it is an effect
    that has to commit. Raises PayloadConflict when the id was used for another request.
    """
    row = tx.one(
        "SELECT operation_kind, payload_digest, refusal, reply, worker_generation"
        " FROM recorded_replies WHERE request_id = :request_id",
        {"request_id": token.request_id},
    )
    if row is not None:
        kind, digest, refusal, reply, generation = row
        if (kind, digest) != (token.operation_kind, token.payload_digest):
            raise PayloadConflict(
                f"client_request_id {token.request_id[:80]!r} was already used for another"
                f" {kind} request"
            )
        if not refusal and basis.holds(tx, reply, generation):
            return Reply(reply, replayed=True)
    outcome: Reply | Refusal
    try:
        body, refused_as = encode(act(tx)), ""
        outcome = Reply(body, replayed=False)
    except tuple(_DETERMINISTIC.values()) as refused:
        body, refused_as = str(refused).encode(), type(refused).__name__
        outcome = refused
    tx.run(
        "INSERT OR REPLACE INTO recorded_replies VALUES"
        " (:request_id, :kind, :digest, :refusal, :reply, :now, :generation)",
        {
            "request_id": token.request_id,
            "kind": token.operation_kind,
            "digest": token.payload_digest,
            "refusal": refused_as,
            "reply": body,
            "now": now_us,
            "generation": basis.worker_generation(tx),
        },
    )
    return outcome


def purge_replies(tx: Transaction, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` answers recorded before a time; return how many."""
    return tx.run(
        "DELETE FROM recorded_replies WHERE request_id IN ("
        " SELECT request_id FROM recorded_replies WHERE created_at < :before"
        " ORDER BY created_at, request_id LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )
