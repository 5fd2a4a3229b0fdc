"""Stores of every kind, and a gate that holds the writer."""

import threading
from collections.abc import Callable
from pathlib import Path

import ledger
import pytest

from globalstore.db import Runner, Site, Store

KINDS = {
    "file": (True, Runner.THREADS),
    "memory": (False, Runner.THREADS),
    "inline": (False, Runner.INLINE),
    "file inline": (True, Runner.INLINE),
}


@pytest.fixture(params=KINDS)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Store]:
    """Makes a store; the test runs once on a file, once in memory, once without threads."""
    on_file, runner = KINDS[request.param]

    def make(**arguments) -> Store:
        arguments = {"migrations": ledger.MIGRATIONS, "runner": runner} | arguments
        return Store(tmp_path / "store.db" if on_file else None, **arguments)

    return make


class Gate:
    """An observer that stops the writer at a site until it is opened."""

    def __init__(self, site: Site = Site.BEFORE_BEGIN) -> None:
        self.site = site
        self.reached = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def __call__(self, site: Site) -> None:
        if site is self.site and not self._open.is_set():
            self.reached.set()
            assert self._open.wait(30), "the gate was never opened"

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()
