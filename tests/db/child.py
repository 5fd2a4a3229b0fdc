"""A process that serves a store until something ends it; its parent looks at what is left.

Arguments: the database file, a verb, and what the verb takes. Every answered write is printed as
soon as it is answered, unbuffered.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

import ledger
import trio

from globalstore.db import (
    Closed,
    Migration,
    OutcomeUnknown,
    Site,
    StartRefused,
    Store,
    fail_at,
    opening,
)

LATER = (
    *ledger.MIGRATIONS,
    Migration(2, "colour", ["ALTER TABLE entry ADD COLUMN colour TEXT"]),
    Migration(3, "index", ["CREATE INDEX entry_size ON entry (size)"]),
)


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


async def hold(path: Path) -> None:
    """Open the store and keep it."""
    async with Store(path, migrations=ledger.MIGRATIONS):
        _say("open")
        await trio.sleep_forever()


async def enter(path: Path, site: str, occurrence: str, versions: str = "1") -> None:
    """Write from several tasks, and end at a site."""
    end = fail_at(Site(int(site)), int(occurrence))
    token = trio.lowlevel.current_trio_token()
    passes = 0

    def let_answers_out() -> None:
        # What was answered before is resumed in the pass after, and printed in that.
        for _ in range(4):
            passed_by = threading.Event()
            token.run_sync_soon(passed_by.set)
            passed_by.wait()

    def observer(passed: Site) -> None:
        nonlocal passes
        passes += passed == int(site)
        if passes == int(occurrence):
            # An answer given too early has to get out, or nobody would notice.
            let_answers_out()
        end(passed)

    migrations = LATER[: int(versions)]

    async def submit(number: int) -> None:
        for i in range(40):
            _say("asked " + f"{number} {i}")
            _say("stored " + await store.write(ledger.add, f"{number} {i}", 1))

    async with Store(path, migrations=migrations, at_site=observer) as store:
        await store.write(ledger.add_blob, 6_000_000)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(submit, number)
    _say("end")


async def flood(path: Path, start: str) -> None:
    """Write ever higher numbers from many tasks."""
    following = int(start)

    async def submit() -> None:
        nonlocal following
        while True:
            following += 1
            number = following
            await store.write(ledger.add, f"{number:09}", number)
            _say(f"{number}")

    store = Store(path, migrations=ledger.MIGRATIONS)
    async with store, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(submit)


async def flood_unsynced(path: Path, start: str) -> None:
    """The same without fsync, which the test of power cuts has to notice."""
    prepare = opening.prepare_writer
    opening.prepare_writer = lambda *arguments, durable: prepare(*arguments, durable=False)
    await flood(path, start)


async def outgrow(path: Path, limit_bytes: str) -> None:
    """Write until the operating system refuses to let the log grow, in the middle of a COMMIT."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = int(limit_bytes)

    async def submit(number: int) -> None:
        try:
            for i in range(1000):
                _say("stored " + await store.write(ledger.add, f"{number} {i} " + "x" * 100))
        except OutcomeUnknown:
            _say("unknown")
        except Closed:
            _say("closed")

    async with Store(path, migrations=ledger.MIGRATIONS) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(submit, number)
            await store.failed.wait()
        _say(f"failure {type(store.failure).__name__}")


def main() -> None:
    path, verb, *arguments = sys.argv[1:]
    verbs = {f.__name__: f for f in (hold, enter, flood, flood_unsynced, outgrow)}
    try:
        trio.run(verbs[verb], Path(path), *arguments)
    except StartRefused as error:
        print(f"{error.word}: {error}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
