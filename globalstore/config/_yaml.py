"""YAML text to a tree of nodes, from the parser's events and without recursion."""

import re

import attrs
import yaml

from globalstore.config.nodes import DEPTH_MAX, DocumentError, Node, Problem, Value, join_path

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {
    spelling: value
    for word, value in (("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_OCTAL = re.compile(r"0o([0-7]{1,100})")
_HEX = re.compile(r"0x([0-9a-fA-F]{1,100})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?\.(?:inf|Inf|INF))|(\.(?:nan|NaN|NAN))")


def parse_yaml(text: str) -> tuple[Node, list[Problem]]:
    """Return the one document in ``text`` and the problems that do not stop the reader.

    Raises DocumentError for a syntax error, a second document, or nesting beyond ``DEPTH_MAX``.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "cannot be parsed"
        line = mark.line + 1 if mark else None
        raise DocumentError(f"not valid YAML: {reason}", line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: character U+{ord(text[error.position]):04X} is not allowed"
        raise DocumentError(message, line) from None
    return builder.root or Node(None, 1), builder.problems


@attrs.define
class _Open:
    """A list or mapping whose end has not come yet."""

    path: str
    line: int
    items: list[Node] | None
    entries: dict[str, Node] | None
    key: str | None = None
    key_line: int = 0


@attrs.define
class _Builder:
    """Puts events together; ``root`` is set when the document is complete."""

    root: Node | None = None
    problems: list[Problem] = attrs.Factory(list)
    _open: list[_Open] = attrs.Factory(list)
    _documents: int = 0

    def take(self, event: yaml.Event) -> None:
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise DocumentError("expected one document, found a second ('---')", line)
        elif isinstance(event, yaml.AliasEvent):
            self._refuse(f"aliases (*{event.anchor}) are not supported; write the value out", line)
            self._add(Node(None, line))
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_properties(event, line)
            plain = event.implicit[0] and event.style is None
            value = _plain_value(event.value) if plain else event.value
            self._add(Node(value, line), event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_properties(event, line)
            self._begin(isinstance(event, yaml.MappingStartEvent), line)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self._open.pop()
            self._add(Node(done.items if done.entries is None else done.entries, done.line))

    def _begin(self, mapping: bool, line: int) -> None:
        if len(self._open) >= DEPTH_MAX:
            raise DocumentError(f"nested more than {DEPTH_MAX} levels deep", line, self._path())
        parent = self._open[-1] if self._open else None
        if parent and parent.entries is not None and parent.key is None:
            raise DocumentError("a key must be plain text", line, parent.path)
        path = self._path()
        self._open.append(_Open(path, line, None if mapping else [], {} if mapping else None))

    def _add(self, node: Node, text: str = "") -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if parent.items is not None:
            parent.items.append(node)
            return
        assert parent.entries is not None
        if parent.key is None:
            parent.key, parent.key_line = text, node.line
            return
        if parent.key in parent.entries:
            first = parent.entries[parent.key].line
            self._refuse(f"duplicate key, first given on line {first}", parent.key_line)
        else:
            # An entry stands where its key stands: that is the line to look for.
            parent.entries[parent.key] = Node(node.value, parent.key_line)
        parent.key = None

    def _path(self) -> str:
        if not self._open:
            return ""
        parent = self._open[-1]
        if parent.items is not None:
            return f"{parent.path}[{len(parent.items)}]"
        return parent.path if parent.key is None else join_path(parent.path, parent.key)

    def _refuse(self, message: str, line: int) -> None:
        self.problems.append(Problem(self._path(), message, line))

    def _refuse_properties(
        self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int
    ) -> None:
        if event.anchor is not None:
            self._refuse(f"anchors (&{event.anchor}) are not supported", line)
        if event.tag is not None:
            self._refuse(f"tags ({event.tag}) are not supported; write a plain value", line)


def _plain_value(text: str) -> Value:
    """Return the value of an unquoted word by the core schema: ``yes`` and ``1:30`` are text."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if match := _OCTAL.fullmatch(text):
        return int(match[1], 8)
    if match := _HEX.fullmatch(text):
        return int(match[1], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _NOT_FINITE.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text
