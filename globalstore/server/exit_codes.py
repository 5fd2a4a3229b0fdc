"""The exit code and the last line of a server that did not start, or ended."""

from typing import NamedTuple

# Each first word of the last line on stderr belongs to one of them.
OK = 0
INTERNAL = 1
CONFIG = 2
DATABASE = 3
LISTEN = 4


class Refusal(NamedTuple):
    """Why the server did not start, or ended: the last line on stderr and the exit code."""

    code: int
    word: str
    text: str
