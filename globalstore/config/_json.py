"""JSON text to a tree of nodes; the standard reader forgets lines and duplicate keys."""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

import attrs

from globalstore.config.nodes import DEPTH_MAX, DocumentError, Node, Problem, Value, join_path

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]{0,400}))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, Value]] = {"true": True, "false": False, "null": None}


def parse_json(text: str) -> tuple[Node, list[Problem]]:
    """Return the value in ``text`` and the problems that do not stop the reader (duplicate keys).

    Raises DocumentError for a syntax error, or nesting beyond ``DEPTH_MAX``.
    """
    reader = _Reader(text)
    root = reader.value("", 0)
    if reader.peek():
        raise reader.error("expected the end of the file after the value")
    return root, reader.problems


@attrs.define
class _Reader:
    text: str
    position: int = 0
    problems: list[Problem] = attrs.Factory(list)
    _line: int = 1
    _line_position: int = 0

    def value(self, path: str, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise self.error(f"nested more than {DEPTH_MAX} levels deep", path)
        first = self.peek()
        line = self.line()
        if first == "{":
            return Node(self._object(path, depth), line)
        if first == "[":
            return Node(self._array(path, depth), line)
        if first == '"':
            return Node(self._string(), line)
        for word, value in _WORDS.items():
            if self.text.startswith(word, self.position):
                self.position += len(word)
                return Node(value, line)
        if match := _NUMBER.match(self.text, self.position):
            self.position = match.end()
            whole = match[2] is None and match[3] is None
            return Node(int(match[0]) if whole else float(match[0]), line)
        raise self.error("expected a value")

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return self.text[self.position : self.position + 1]

    def line(self) -> int:
        self._line += self.text.count("\n", self._line_position, self.position)
        self._line_position = self.position
        return self._line

    def error(self, message: str, path: str = "") -> DocumentError:
        return DocumentError(f"not valid JSON: {message}", self.line(), path)

    def _take(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            raise self.error("expected " + " or ".join(repr(c) for c in wanted))
        self.position += 1
        return found

    def _string(self) -> str:
        try:
            text, self.position = scanstring(self.text, self.position + 1, True)
        except json.JSONDecodeError as error:
            raise self.error(error.msg[0].lower() + error.msg[1:]) from None
        return str(text)

    def _array(self, path: str, depth: int) -> list[Node]:
        items: list[Node] = []
        self._take("[")
        if self.peek() == "]":
            self.position += 1
            return items
        while True:
            items.append(self.value(f"{path}[{len(items)}]", depth + 1))
            if self._take(",]") == "]":
                return items

    def _object(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        self._take("{")
        if self.peek() == "}":
            self.position += 1
            return entries
        while True:
            if self.peek() != '"':
                raise self.error("expected a key in double quotes", path)
            line = self.line()
            key = self._string()
            self._take(":")
            node = self.value(join_path(path, key), depth + 1)
            if key in entries:
                message = f"duplicate key, first given on line {entries[key].line}"
                self.problems.append(Problem(join_path(path, key), message, line))
            else:
                # An entry stands where its key stands: that is the line to look for.
                entries[key] = Node(node.value, line)
            if self._take(",}") == "}":
                return entries
