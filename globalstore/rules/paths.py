"""Paths below a root that every node has, in the one spelling that is accepted of each."""

from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import required


def relative_path(field: str, value: str) -> str:
    """Return a path that stays below its root, whatever the root is.

    ``a//b`` and ``./a/b`` would be other names of ``a/b``, so they are refused like ``..``.
    """
    path = required(field, value)
    if "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise InvalidArgument(
            f"{field} must be a safe, relative path: components separated by single slashes, none"
            " of them . or .., no backslash"
        )
    return path
