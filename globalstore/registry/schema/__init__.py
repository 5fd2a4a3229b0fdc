"""The tables: ``datamodel.sql`` is what they are now, the numbered files are the steps to it.

A step that was released is never edited. A new one is the next number and a name, and
``datamodel.sql`` says what it leads to; nothing reads that file but people and the test that holds
it equal to the steps.
"""

from importlib import resources
from importlib.resources.abc import Traversable

from globalstore.db import Migration


def _step(file: Traversable) -> Migration:
    number, _, name = file.name.removesuffix(".sql").partition("_")
    return Migration(int(number), name.replace("_", " "), file.read_text("utf-8"))


MIGRATIONS = tuple(
    _step(file)
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name)
    if file.name[0].isdigit() and file.name.endswith(".sql")
)
