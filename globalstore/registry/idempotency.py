"""One effect, and one answer, for all repeats of a request that carries an id of its own.

The answer is recorded in the transaction of the effect: a crash leaves both or neither, so that no
request id is ever stuck in between.
"""

from collections.abc import Callable
from typing import TypeVar

import attrs

from globalstore.db import Transaction
from globalstore.rules.refusals import FailedPrecondition, InvalidArgument, Refusal

Result = TypeVar("Result")

# Refusals that a repeat would get again, and that are therefore recorded. Any other outcome frees
# the id.
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
) -> Reply | Refusal:
    """Run ``act`` unless a request with this id ran before; return its answer, old or new.

    A refusal is returned, not raised, because recording it is an effect that has to commit.
    Raises PayloadConflict when the id was used for another request.
    """
    row = tx.one(
        "SELECT operation_kind, payload_digest, refusal, reply FROM recorded_replies"
        " WHERE request_id = :request_id",
        {"request_id": token.request_id},
    )
    if row is not None:
        kind, digest, refusal, reply = row
        if (kind, digest) != (token.operation_kind, token.payload_digest):
            raise PayloadConflict(
                f"client_request_id {token.request_id[:80]!r} was already used for another"
                f" {kind} request"
            )
        if refusal:
            return _DETERMINISTIC[refusal](reply.decode())
        return Reply(reply, replayed=True)
    outcome: Reply | Refusal
    try:
        body, refused_as = encode(act(tx)), ""
        outcome = Reply(body, replayed=False)
    except tuple(_DETERMINISTIC.values()) as refused:
        body, refused_as = str(refused).encode(), type(refused).__name__
        outcome = refused
    tx.run(
        "INSERT INTO recorded_replies VALUES (:request_id, :kind, :digest, :refusal, :reply, :now)",
        {
            "request_id": token.request_id,
            "kind": token.operation_kind,
            "digest": token.payload_digest,
            "refusal": refused_as,
            "reply": body,
            "now": now_us,
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
