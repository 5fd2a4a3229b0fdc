"""The exit codes of the verbs that talk to a running server; those of a server are its own."""

from typing import Final

# What was wanted is so.
DONE: Final = 0
# The server answered, and it is not so: nothing of that name, or it points elsewhere.
NOT_SO: Final = 1
# The words of the command, or a file that they name.
USAGE: Final = 2
# The server answered with an error, which stands on stderr.
REFUSED: Final = 5
# The server has not taken the call, so nothing was changed.
UNREACHABLE: Final = 6
# The call was made and no answer came: whether it was carried out is not known.
UNANSWERED: Final = 7
# What came could not be written to standard output.
UNWRITTEN: Final = 8
INTERRUPTED: Final = 130

TABLE: Final = """\
exit codes:
  0  what was wanted is so
  1  the server answered, and it is not so: nothing of that name, or it points elsewhere
  2  the words of the command cannot be used, or a file that they name
  5  the server refused the call, for the reason given
  6  the server was not reached, or did not take the call: nothing was changed
  7  no answer came: whether the call was carried out is not known
  8  standard output could not be written
  130  interrupted
"""
