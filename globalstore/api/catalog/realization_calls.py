"""What all calls about realizations have in common: a switch, metrics, names and states."""

import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

from globalstore.api.context import HandlerContext
from globalstore.config.kinds import GroupPublishAuthorityMode
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog.realization_joins import Identity
from globalstore.registry.catalog.realization_rows import MemberState, RealizationState
from globalstore.rules.realizations import TRANSACTION_PREFIX, digest_of
from globalstore.rules.refusals import FailedPrecondition, NotFound, Refusal
from globalstore.rules.values import identifier

_RESULTS = {
    wire.STATUS_OK: "ok",
    wire.STATUS_NOT_FOUND: "not_found",
    wire.STATUS_TIMED_OUT: "timed_out",
    wire.STATUS_ERROR: "failed",
}


STATES: dict[RealizationState, wire.GroupRealizationState] = {
    RealizationState.PREPARING: wire.GROUP_REALIZATION_STATE_PREPARING,
    RealizationState.READY_TO_PUBLISH: wire.GROUP_REALIZATION_STATE_READY_TO_PUBLISH,
    RealizationState.PUBLISHED: wire.GROUP_REALIZATION_STATE_PUBLISHED,
    RealizationState.ABORTED: wire.GROUP_REALIZATION_STATE_ABORTED,
    RealizationState.EXPIRED: wire.GROUP_REALIZATION_STATE_EXPIRED,
}
MEMBER_STATES: dict[MemberState, wire.GroupRealizationMemberState] = {
    MemberState.JOINED: wire.GROUP_REALIZATION_MEMBER_STATE_JOINED,
    MemberState.PREPARED: wire.GROUP_REALIZATION_MEMBER_STATE_PREPARED,
    MemberState.PUBLISHED: wire.GROUP_REALIZATION_MEMBER_STATE_PUBLISHED,
    MemberState.FAILED: wire.GROUP_REALIZATION_MEMBER_STATE_FAILED,
    MemberState.CANCELLED: wire.GROUP_REALIZATION_MEMBER_STATE_CANCELLED,
    MemberState.EXPIRED: wire.GROUP_REALIZATION_MEMBER_STATE_EXPIRED,
}


class _Handlers(Protocol):
    context: HandlerContext


F = TypeVar("F", bound=_Handlers)
A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")

Handler = Callable[Concatenate[F, P], Coroutine[Any, Any, A]]


def realization_call(operation: str) -> Callable[[Handler[F, P, A]], Handler[F, P, A]]:
    """Refuse a call while realizations are switched off, and count and time it under a name."""

    def decorate(handler: Handler[F, P, A]) -> Handler[F, P, A]:
        @wraps(handler)
        async def call(handlers: F, /, *args: P.args, **kwargs: P.kwargs) -> A:
            began, result = trio.current_time(), "error"
            try:
                if not handlers.context.config.worker_policy.group_realization.enabled:
                    raise FailedPrecondition(
                        "group realization is switched off; set"
                        " worker_policy.group_realization.enabled"
                    )
                answer = await handler(handlers, *args, **kwargs)
                result = _RESULTS[getattr(answer, "status", wire.STATUS_OK)]
                return answer
            except Refusal as refused:
                result = _snake(type(refused).__name__)
                raise
            finally:
                handlers.context.metrics.realizations.called(
                    operation, result, trio.current_time() - began
                )

        return call

    return decorate


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def accepted(outcome: R | Refusal) -> R:
    """Raise the refusal that an operation returned to keep what it wrote, or return the result."""
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


def fingerprint_of(transaction_id: str) -> bytes:
    """Return the fingerprint from which a transaction id is made. Raises NotFound."""
    fingerprint = digest_of(TRANSACTION_PREFIX, transaction_id)
    if fingerprint is None:
        raise NotFound(f"no group realization {transaction_id[:80]!r}")
    return fingerprint


def identity_of(
    message: wire.BeginOrJoinGroupRealizationRequest | wire.ReportGroupRealizationPreparedRequest,
) -> Identity:
    """Return the identity that a request gives for its sender."""
    return Identity(
        identifier("daemon_id", message.daemon_id),
        identifier("daemon_session_id", message.daemon_session_id),
        identifier("worker_id", message.worker_id),
    )


def is_explicit(context: HandlerContext) -> bool:
    """Tell whether a coordinator publishes realizations, or the last prepared part does."""
    return (
        context.config.worker_policy.group_realization.publish_authority_mode
        is GroupPublishAuthorityMode.GROUP_PUBLISH_AUTHORITY_MODE_COORDINATOR_EXPLICIT
    )
