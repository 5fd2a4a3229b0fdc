"""A configuration file as a tree in which every value knows its line.

YAML is read in a safe subset: the core types (null, booleans, numbers, strings), lists and
mappings. Tags, anchors, aliases and a second document are refused: none of them says anything a
configuration needs, and each is a way to make a small file mean something large or surprising.
"""

from pathlib import Path
from typing import Final

from globalstore.config.nodes import DocumentError, Node, Problem
from globalstore.host import cure, may_pass, read_bounded, reason

# A configuration is a page or two; a megabyte leaves room for comments and none for mischief.
FILE_BYTES_MAX: Final = 1 << 20


def read_document(path: Path, *, may_be_empty: bool = True) -> tuple[Node, list[Problem]]:
    """Read a file as YAML (``.yaml``, ``.yml``) or JSON (any other name).

    Returns the root mapping, empty for an empty file, and the problems that did not stop the
    reader: duplicate keys, tags, anchors, aliases. Raises DocumentError for a file that cannot be
    read, is not UTF-8, has a syntax error or is not a mapping, or is empty but must not be.
    """
    text = _read_text(path)
    if not text.strip():
        return _empty(may_be_empty), []
    # Only the reader that is needed: PyYAML takes longer to import than a file to be read.
    if path.suffix.lower() in {".yaml", ".yml"}:
        from globalstore.config._yaml import parse_yaml as parse
    else:
        from globalstore.config._json import parse_json as parse
    root, problems = parse(text)
    if root.value is None:
        return _empty(may_be_empty), problems
    if not isinstance(root.value, dict):
        message = f"expected a mapping of sections at the top, found {root.shown(False)}"
        raise DocumentError(message, root.line)
    return root, problems


def _empty(may_be_empty: bool) -> Node:
    if not may_be_empty:
        raise DocumentError("the file is empty; write {} for all defaults", None)
    return Node({}, 1)


def _read_text(path: Path) -> str:
    try:
        raw = read_bounded(path, FILE_BYTES_MAX)
    except OSError as error:
        raise DocumentError(
            f"cannot read {path}: {reason(error)}; {cure(error, '--config')}",
            None,
            may_pass=may_pass(error),
        ) from error
    except ValueError as error:  # a NUL in the name
        raise DocumentError(f"cannot read {str(path)!r}: {error}", None) from error
    if len(raw) > FILE_BYTES_MAX:
        raise DocumentError(f"the file is larger than {FILE_BYTES_MAX} bytes", None)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DocumentError("the file is not UTF-8 text", line) from error
