"""The signals of the operating system: what each is for, and who takes them before the server does.

Every signal that would end a process by default is taken, but those that tell of a fault of the
program, so that nobody who sends one kills it without a line.
As the first process of a container it gets no signal at all that it has not asked for, so they are
taken before anything that takes long is imported.
"""

import os
import signal
from types import FrameType
from typing import Final

# These ask for an end; a second one wants it at once. POWER comes from a failing supply, XCPU
# from a limit on the processor time, a second before the kernel kills.
STOPPING: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU}
)
RELOADING: Final = signal.SIGHUP
REOPENING: Final = signal.SIGUSR1
SUMMARISING: Final = signal.SIGUSR2

# Nobody can take the first two. The next are for a debugger or a terminal and stop a process, no
# more. Faults of the program end it; ``faulthandler`` would tell more of them, but has the handlers
# of all signals run on a stack so small that a few signals at once overflow it. The last are
# ignored by the interpreter, which makes errors of them, or by default.
_LEFT: Final = frozenset(
    {
        signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
        signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT,
        signal.SIGTRAP, signal.SIGSYS,
        signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG,
        signal.SIGWINCH,
    }
)  # fmt: skip

# Everything that has a deadly default and no harm in it.
TAKEN: Final = frozenset(signal.valid_signals()) - _LEFT


def name_of(number: int) -> str:
    """Return the name of a signal; those for free use have none but their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def take_early() -> None:
    """Take the signals until the server does: an end is an end, the others come too early."""
    for number in TAKEN:
        signal.signal(number, _end if number in STOPPING else _ignore)


def leave_to_server() -> None:
    """Ignore the signals where the server does not take them: from its own end on."""
    for number in TAKEN:
        signal.signal(number, _ignore)


def _end(number: int, frame: FrameType | None) -> None:
    # Nothing was answered, so there is nothing to tidy up; what the database began, its next
    # start ends.
    os.write(2, f"stopped by {name_of(number)} before it served\n".encode())
    os._exit(0)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
