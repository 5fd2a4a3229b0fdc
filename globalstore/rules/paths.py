"""Paths below a root that every node has, in the one spelling that is accepted of each."""

from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import existing, required


def relative_path(field: str, value: str) -> str:
    """Return a path that stays below its root, whatever the root is.

    ``a//b`` and ``./a/b`` would be other names of ``a/b``, so they are refused like ``..``.
    """
    return existing_path(field, required(field, value))


def existing_path(field: str, value: str) -> str:
    """Return such a path that is only looked for."""
    path = existing(field, value)
    if "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise InvalidArgument(
            f"{field} must be a safe, relative path: components separated by single slashes, none"
            " of them . or .., no backslash"
        )
    return path
