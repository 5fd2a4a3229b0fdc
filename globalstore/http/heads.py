"""Request heads as they arrive, looked at before the HTTP library sees any of them.

Bytes in, bytes out: a head is passed on once it is whole, bounded and plain HTTP/1. One that is not
is replaced by a request that the app refuses, so that the refusal takes its turn among the answers.
"""

import re
from typing import Final

# How the refusal of a replaced head is named to the app. Nothing a client sends has this name.
REFUSAL: Final = b"globalstore-refusal"

# The end of a head, where the library too sees it.
_END: Final = re.compile(rb"\n\r?\n")

# No method begins with any other byte: TLS to a port without it, for instance.
_METHOD: Final = re.compile(rb"[!-~]|\r|\n")
_VERSION: Final = re.compile(rb" HTTP/(\d)\.\d\r?$")

# To change the protocol, or to ask for a body, is the server's choice; it does neither.
_LEFT_OUT: Final = re.compile(
    rb"(?im)^(?:upgrade|http2-settings|expect|%b)[ \t]*:[^\n]*\n" % REFUSAL
)

# A body, except one that says that it is empty.
_BODY: Final = re.compile(
    rb"(?im)^(?:transfer-encoding[ \t]*:|content-length[ \t]*:[ \t]*(?!0+\s))"
)


class Heads:
    """The heads of one connection's requests.

    After a head that announces a body, or is refused, nothing is passed on any more: bodies are
    never read, and where the next head would begin nobody knows.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting = bytearray()
        self._looked_at = 0
        self._is_over = False

    def take(self, data: bytes) -> bytes:
        """Return what of the bytes so far is to be passed on now, which may be nothing."""
        waiting, passed = self._waiting, b""
        waiting += b"" if self._is_over else data
        while waiting:
            # Three bytes end a head, of which two may have been there before.
            end = _END.search(waiting, max(0, self._looked_at - 2))
            size = end.end() if end else len(waiting)
            if not _METHOD.match(waiting):
                passed += self._refused(400)
            elif size > self._bytes_max:
                passed += self._refused(431)
            elif end is None:
                self._looked_at = size
                break
            else:
                passed += self._head(bytes(waiting[:size]))
                del waiting[:size]
                self._looked_at = 0
            if self._is_over:
                waiting.clear()
        return passed

    def rest(self) -> bytes:
        """Return what waits for more when no more comes, for the library to refuse."""
        rest = bytes(self._waiting)
        self._waiting.clear()
        return rest

    def _head(self, head: bytes) -> bytes:
        line, _, fields = head.partition(b"\n")
        version = _VERSION.search(line)
        if version and version[1] != b"1":
            return self._refused(505)
        if _BODY.search(fields):
            self._is_over = True
        return line + b"\n" + _LEFT_OUT.sub(b"", fields)

    def _refused(self, code: int) -> bytes:
        self._is_over = True
        return b"GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n%b: %d\r\n\r\n" % (
            REFUSAL,
            code,
        )
