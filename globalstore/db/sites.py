"""Numbered places in the life of the database where a test may look in, wait, or end the process.

A store without an observer passes them at no cost. The numbers are stable: a failing crash test
names one, and the same number finds the place again.
"""

import os
from collections.abc import Callable
from enum import IntEnum


class Site(IntEnum):
    """A place where what is on disk and what callers know may differ."""

    CREATED = 1
    CREATED_AND_RENAMED = 2
    BEFORE_BACKUP = 3
    BACKUP_COPIED = 4
    BACKUP_VERIFIED = 5
    BACKUP_RENAMED = 6
    MIGRATION_BEGUN = 7
    MIGRATION_BEFORE_COMMIT = 8
    MIGRATION_COMMITTED = 9
    BEFORE_BEGIN = 10
    AFTER_BEGIN = 11
    AFTER_OPERATION = 12
    BEFORE_COMMIT = 13
    AFTER_COMMIT = 14
    AFTER_WAKE = 15
    BEFORE_CHECKPOINT = 16
    AFTER_CHECKPOINT = 17
    BEFORE_CLOSE = 18
    AFTER_CLOSE = 19
    READER_SNAPSHOT = 20


Observer = Callable[[Site], None]


def unobserved(_site: Site) -> None:
    """Do nothing: the observer of every store outside the tests."""


def fail_at(site: Site, occurrence: int = 1, exit_code: int = 137) -> Observer:
    """Return an observer that ends the process, without any clean-up, at a site.

    ``occurrence`` counts the passes of ``site`` from 1; ``exit_code`` is what the parent sees.
    """
    passes = 0

    def observe(passed: Site) -> None:
        nonlocal passes
        if passed is site:
            passes += 1
            if passes == occurrence:
                os._exit(exit_code)

    return observe
