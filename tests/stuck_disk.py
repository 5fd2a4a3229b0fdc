"""A disk that does not answer: the database's writer stands still until it does."""

import threading
from typing import Any

import trio
from server_process import PATIENCE_S
from servers import Serving


class StuckDisk:
    """Holds the store's writer inside an operation, as a disk that does not answer would."""

    def __init__(self, store: Serving, nursery: trio.Nursery) -> None:
        self._store = store
        self._nursery = nursery
        self._go = threading.Event()

    async def __aenter__(self) -> "StuckDisk":
        entered = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def stand_still(tx: Any) -> None:
            token.run_sync_soon(entered.set)
            self._go.wait(PATIENCE_S)

        self._nursery.start_soon(self._store.components.store.write, stand_still)
        await entered.wait()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._go.set()
