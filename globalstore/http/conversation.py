"""What hypercorn does for us: HTTP/1.1 on one connection.

It would speak HTTP/2 too, and websockets, to whoever asks; ``heads`` lets nobody ask.

It is loaded by ``serving`` when the first connection needs it, or a little after the start.
"""

import logging
from typing import Any, cast

from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app

from globalstore.http.app import HttpApp
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.http")


class _HypercornLog:
    """Takes what hypercorn has to say: failures to our log, announcements nowhere."""

    def __init__(self, config: Config) -> None:
        pass

    async def access(self, request: Any, response: Any, request_time: float) -> None:
        code = None if response is None else response["status"]
        _log.debug("http request", path=request["path"], code=code, seconds=request_time)

    async def debug(self, message: str, *args: Any, **kwargs: Any) -> None:
        pass

    async def info(self, message: str, *args: Any, **kwargs: Any) -> None:
        pass

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log.limited(message, "http server warns", reason=message)

    async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log.limited(message, "http server failed", level=logging.ERROR, reason=message)

    critical = error

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        _log.exception("http request failed", reason=message)


def _config(head_seconds_max: float, head_bytes_max: int) -> Config:
    config = Config()
    config.logger_class = _HypercornLog  # type: ignore[assignment]
    config.include_server_header = False
    config.keep_alive_timeout = head_seconds_max
    config.h11_max_incomplete_size = head_bytes_max
    return config


class Conversation:
    """Speaks for an app on any number of connections.

    ``head_seconds_max`` and ``head_bytes_max`` bound the wait for a request's head, and its size.
    """

    def __init__(self, app: HttpApp, head_seconds_max: float, head_bytes_max: int) -> None:
        self._app: AppWrapper = wrap_app(cast(ASGIFramework, app), 0, "asgi")
        self._config = _config(head_seconds_max, head_bytes_max)
        self._context = WorkerContext(None)

    async def hold(self, stream: Any) -> None:
        """Answer the requests of one connection until it ends; ``stream`` is trio's, or like it."""
        state = ConnectionState({})
        await TCPServer(self._app, self._config, self._context, state, stream).run()
