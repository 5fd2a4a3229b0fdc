"""The exit code and the last line of a server that did not start, or ended."""

from collections.abc import Mapping
from typing import Final, NamedTuple

OK: Final = 0
INTERNAL: Final = 1
CONFIG: Final = 2

# The code of each word that the last line on stderr can begin with. What the text of the
# configuration tells is 2, which a supervisor need not try again. The database has 3, and whatever
# else of the host is not as it has to be, or not yet, has 4.
CODES: Final[Mapping[str, int]] = {
    "internal": INTERNAL,
    "config": CONFIG,
    "db-locked": 3,
    "db-damaged": 3,
    "db-foreign": 3,
    "db-newer": 3,
    "db-filesystem": 3,
    "migration": 3,
    "port-busy": 4,
    "address": 4,
    "tls": 4,
    "log-file": 4,
    "host": 4,
}

# For --help and for the README, which a test compares.
HELP: Final = """\
exit codes, and the word that the last line on stderr begins with:
  0                 stopped by a signal; with --check-config: valid
  1  internal       a fault of this program, or the disk failed at a commit: start it again
  2  config         the command line or the text of the configuration is wrong: correct it
  3  db-locked      another process has the database: stop that one
     db-damaged     the database fails its checks: restore a backup
     db-foreign     the file is no database of this program: name another
     db-newer       a newer version wrote the database: start that version
     db-filesystem  no database can be there: access, space, a network file system
     migration      the schema could not be brought up to date: it is as it was
  4  port-busy      something else listens on the port
     address        the address is not of this machine, or not yet
     tls            certificate, key, authorities or token file cannot be used
     log-file       a log file cannot be written
     host           open files, threads, memory or new enough libraries cannot be had"""


class Refusal(NamedTuple):
    """Why the server did not start, or ended: the last line on stderr and the exit code."""

    word: str
    text: str

    @property
    def code(self) -> int:
        """The exit code that belongs to the word."""
        return CODES[self.word]
