"""What all calls about groups have in common: they can be switched off, and are measured."""

import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import trio

from globalstore.api.application import Application
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.refusals import FailedPrecondition, Refusal

_RESULTS = {
    wire.STATUS_OK: "ok",
    wire.STATUS_NOT_FOUND: "not_found",
    wire.STATUS_TIMED_OUT: "timed_out",
    wire.STATUS_ERROR: "failed",
}


class _Face(Protocol):
    app: Application


F = TypeVar("F", bound=_Face)
A = TypeVar("A")
P = ParamSpec("P")

Handler = Callable[Concatenate[F, P], Coroutine[Any, Any, A]]


def group_call(operation: str) -> Callable[[Handler[F, P, A]], Handler[F, P, A]]:
    """Refuse a call while groups are switched off, and count and time it under a name."""

    def decorate(handler: Handler[F, P, A]) -> Handler[F, P, A]:
        @wraps(handler)
        async def call(face: F, /, *args: P.args, **kwargs: P.kwargs) -> A:
            began, result = trio.current_time(), "error"
            try:
                if not face.app.config.worker_policy.group_realization.enabled:
                    raise FailedPrecondition(
                        "group realization is switched off; set"
                        " worker_policy.group_realization.enabled"
                    )
                answer = await handler(face, *args, **kwargs)
                result = _RESULTS[getattr(answer, "status", wire.STATUS_OK)]
                return answer
            except Refusal as refused:
                result = _snake(type(refused).__name__)
                raise
            finally:
                face.app.metrics.groups.called(operation, result, trio.current_time() - began)

        return call

    return decorate


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
