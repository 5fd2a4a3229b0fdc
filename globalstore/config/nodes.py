"""Values of a configuration file that know their line, and what can be wrong with them."""

from typing import Final, TypeAlias

import attrs

from globalstore.text.printing import printable

# The schema is five levels deep; the readers stop long before the interpreter's stack does.
DEPTH_MAX: Final = 32

# Longest excerpt of a value in a message: a line stays a line.
_SHOWN_CHARS_MAX: Final = 60

Value: TypeAlias = "bool | int | float | str | list[Node] | dict[str, Node] | None"


@attrs.frozen
class Problem:
    """One thing that is wrong with a configuration.

    ``path`` is the dotted path of the key, "" for the file itself. ``message`` says what was found
    and what was expected. ``line`` counts from 1; None where no line can be named.
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = "" if self.line is None else f" (line {self.line})"
        return f"{self.path}: {self.message}{where}" if self.path else f"{self.message}{where}"


class ConfigError(Exception):
    """A configuration that cannot be used.

    ``source`` is the file as it was named, ``problems`` everything that is wrong, in the order of
    the file. ``may_pass`` says that the host could not read it at this moment.
    """

    # More than a screenful helps nobody and a hostile file could fill the log.
    SHOWN_MAX: Final = 100

    def __init__(self, source: str, problems: list[Problem], *, may_pass: bool = False) -> None:
        super().__init__(source, problems)
        self.source = source
        self.may_pass = may_pass
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[: self.SHOWN_MAX]]
        if len(self.problems) > self.SHOWN_MAX:
            lines.append(f"… and {len(self.problems) - self.SHOWN_MAX} more problems")
        return "\n".join(lines)


@attrs.frozen
class Node:
    """A value and the line it stands on."""

    value: Value
    line: int

    def shown(self, secret: bool) -> str:
        """Return the value for a message: shortened, printable, withheld when it is a secret."""
        value = self.value
        if value is None:
            return "nothing"
        if isinstance(value, dict):
            return "a mapping"
        if isinstance(value, list):
            return "a list"
        if secret:
            return {str: "a string", bool: "a boolean"}.get(type(value), "a number")
        if isinstance(value, bool):
            return "true" if value else "false"
        return shown_text(repr(value))


def shown_text(text: str) -> str:
    """Return ``text`` on one line and no longer than a message can bear."""
    line = printable(text)
    return line if len(line) <= _SHOWN_CHARS_MAX else line[: _SHOWN_CHARS_MAX - 1] + "…"


def join_path(path: str, key: str) -> str:
    """Return the dotted path of ``key`` inside ``path``."""
    return f"{path}.{shown_text(key)}" if path else shown_text(key)


class DocumentError(Exception):
    """The text is not a document; carries the one problem that stopped the reader."""

    def __init__(
        self, message: str, line: int | None, path: str = "", *, may_pass: bool = False
    ) -> None:
        super().__init__(message)
        self.problem = Problem(path, message, line)
        self.may_pass = may_pass
