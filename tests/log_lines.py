"""What the loggers of the server wrote, for tests to look at."""

import logging
from typing import Any

import pytest

from globalstore.telemetry.outputs import as_line


class Lines(logging.Handler):
    """What the loggers of the server wrote: level, message and fields of each event."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(getattr(record, "fields", {}))
        self.events.append((record.levelname, record.getMessage(), fields))

    def named(self, message: str) -> list[tuple[str, dict[str, Any]]]:
        return [(level, fields) for level, line, fields in self.events if line == message]

    def only(self, message: str, level: str) -> dict[str, Any]:
        [(found, fields)] = self.named(message)
        assert found == level
        return fields


def has(fields: dict[str, Any], **expected: object) -> None:
    assert {name: fields.get(name) for name in expected} == expected


def told(caplog: pytest.LogCaptureFixture, level: int = logging.DEBUG) -> list[str]:
    """What was logged from a level upwards, as an operator reads it, without the time."""
    lines = [as_line(record) for record in caplog.records if record.levelno >= level]
    return [line.partition(" ")[2] for line in lines]
