"""Secrets are left out of the answers to those who may only read.

Whoever has a token of role full or daemon is told everything that a call tells; a token of role
read, or none where none is needed, gets blanks in place of secrets.
"""

import inspect
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any, Final

import trio

from globalstore.api.middleware.tokens import HEALTH_CHECK, READS, Tokens
from globalstore.rpc import Call, Cardinality
from globalstore.text.secret_fields import Hider, hider

# Messages of a list that are gone through before others get a turn: a microsecond or two each.
_MESSAGES_PER_TURN: Final = 200

# Calls that may be made without a token that may do more than read.
OPEN: Final = READS | {HEALTH_CHECK}

_ONE_ANSWER: Final = (Cardinality.UNARY_UNARY, Cardinality.STREAM_UNARY)


def hide_secrets(services: Iterable[Any], tokens: Tokens) -> None:
    """Let the methods of ``services`` leave secrets out of what their caller may not see.

    Methods whose answers have none, and those that only change, are left as they are.
    """
    for service in services:
        for name, bound in service.methods.items():
            kind = bound.signature.response_type
            hide = hider(kind.DESCRIPTOR) if name in OPEN else None
            if hide is not None:
                answers = _Answers(kind, hide, tokens)
                one = bound.signature.cardinality in _ONE_ANSWER
                hidden = answers.of_one if one else answers.of_stream
                service.methods[name] = bound._replace(method_fn=hidden(bound.method_fn))


class _Answers:
    """The answers of one method, as their callers may see them."""

    def __init__(self, kind: Any, hide: Hider, tokens: Tokens) -> None:
        self._kind = kind
        self._hide = hide
        self._tokens = tokens

    def of_one(self, function: Any) -> Any:
        """Return a method that answers once, as ``function`` does."""

        async def method(message: Any, request: Call) -> Any:
            return await self._shown(await function(message, request), request)

        answer = getattr(function, "fast_path", None)
        if answer is not None:

            def fast(servicer: Any, message: Any, call: Call) -> Any:
                reply = answer(servicer, message, call)
                if reply is None or self._tokens.may_see_secrets(call):
                    return reply
                shown = self._copied(reply)
                for _ in self._hide(shown):
                    pass
                return shown

            method.fast_path = fast  # type: ignore[attr-defined]
            method.__self__ = function.__self__  # type: ignore[attr-defined]
        return method

    def of_stream(self, function: Any) -> Any:
        """Return a method that answers as often as ``function`` does."""

        async def method(message: Any, request: Call) -> AsyncIterator[Any]:
            replies = function(message, request)
            if inspect.iscoroutine(replies):
                # A servicer's method that was not overridden is a coroutine that raises.
                replies = await replies
            async with aclosing(replies):
                async for reply in replies:
                    yield await self._shown(reply, request)

        return method

    async def _shown(self, reply: Any, call: Call) -> Any:
        """Return an answer as its caller may see it; long ones are gone through in turns."""
        if self._tokens.may_see_secrets(call):
            return reply
        shown = self._copied(reply)
        for number, _ in enumerate(self._hide(shown), 1):
            if number % _MESSAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return shown

    def _copied(self, reply: Any) -> Any:
        """Return an answer to be changed: others may get the same, and some are bytes already."""
        return self._kind.FromString(reply.SerializeToString())
