"""The head of a request: what a decoded header list must satisfy to become a call."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

import attrs
from purerpc import StatusCode

from globalstore.rpc.status import Metadata, Status

# RFC 9110 tokens without capitals: HTTP/2 knows only lower-case names.
valid_name: Final = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_FORBIDDEN_IN_VALUE: Final = re.compile(rb"[\x00\r\n]").search
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
# Names the protocol keeps for itself: never shown to handlers as metadata.
_RESERVED: Final = frozenset({b"te", b"content-type", b"content-length", b"host"})
ENCODINGS: Final = ("identity", "gzip")
ACCEPT_ENCODING: Final = ("grpc-accept-encoding", ",".join(ENCODINGS))
# RFC 9113 §6.5.2 counts each field with this much on top.
FIELD_OVERHEAD_BYTES: Final = 32

# Values that a proxy may have joined to one; each would become an object of its own.
_JOINED_MAX: Final = 64

Fields = Sequence[tuple[bytes, bytes]]


class Malformed(Exception):
    """A header list that HTTP/2 forbids: its stream is reset, nobody else notices."""


@attrs.frozen(eq=False)
class RequestHead:
    """The head of one call, shared by all calls with the same header block."""

    path: str
    authority: str = ""
    user_agent: str = ""
    gzip: bool = False
    timeout_seconds: float | None = None
    content_length: int | None = None
    # The client's own metadata as it came; see ``metadata``.
    fields: Fields = ()
    # The answer, where the head alone decides that the call cannot be served.
    refusal: Status | None = None
    # An HTTP status where the request is not gRPC at all.
    http_status: int | None = None

    @property
    def metadata(self) -> Metadata:
        """The client's own metadata; values of ``-bin`` names as bytes. Made anew each time."""
        found: list[tuple[str, str | bytes]] = []
        for raw_name, value in self.fields:
            name = raw_name.decode("ascii")
            if name.endswith("-bin"):
                found.extend((name, _from_base64(part)) for part in value.split(b","))
            else:
                found.append((name, value.decode("latin-1")))
        return tuple(found)


def list_bytes(fields: Fields) -> int:
    """Return the size of a header list as RFC 9113 §6.5.2 counts it."""
    return sum(len(name) + len(value) for name, value in fields) + FIELD_OVERHEAD_BYTES * len(
        fields
    )


def check_fields(fields: Fields, *, trailers: bool) -> dict[bytes, bytes]:
    """Check what HTTP/2 demands of any header list; return its pseudo-headers.

    Raises Malformed and says what was wrong.
    """
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or trailers:
                raise Malformed("pseudo-header after a regular one or in trailers")
            if name not in _PSEUDO or name in pseudo:
                raise Malformed(f"pseudo-header {name[:40]!r} unknown or twice")
            pseudo[name] = value
        else:
            regular = True
            if not valid_name(name):
                raise Malformed(f"header name {name[:40]!r} is not a lower-case token")
            if name in _HOP_BY_HOP or (name == b"te" and value != b"trailers"):
                raise Malformed(f"header {name!r} belongs to HTTP/1")
        if _FORBIDDEN_IN_VALUE(value):
            raise Malformed(f"header {name[:40]!r} holds CR, LF or NUL")
    return pseudo


def parse_head(fields: Fields, list_bytes_max: int) -> RequestHead:
    """Turn a decoded header list into the head of a call.

    ``list_bytes_max`` is the size above which the call is refused RESOURCE_EXHAUSTED.
    Raises Malformed for what HTTP/2 forbids; what only gRPC forbids becomes a refusal.
    """
    pseudo = check_fields(fields, trailers=False)
    method, path = pseudo.get(b":method"), pseudo.get(b":path")
    if method is None or not path or b":scheme" not in pseudo:
        raise Malformed(":method, :scheme or :path is missing")
    regular: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            if name == b"content-length" and regular.get(name, value) != value:
                raise Malformed("two different content-lengths")
            regular[name] = value
    authority = pseudo.get(b":authority", regular.get(b"host", b""))
    head = RequestHead(
        path=path.decode("latin-1"),
        authority=authority.decode("latin-1"),
        user_agent=regular.get(b"user-agent", b"").decode("latin-1"),
        content_length=_content_length(regular.get(b"content-length")),
    )
    if method != b"POST":
        return attrs.evolve(head, http_status=405)
    content_type = regular.get(b"content-type", b"")
    if not re.fullmatch(rb"application/grpc([+;].*)?", content_type):
        return attrs.evolve(head, http_status=415)
    if list_bytes(fields) > list_bytes_max:
        return attrs.evolve(
            head,
            refusal=Status(
                StatusCode.RESOURCE_EXHAUSTED,
                f"metadata: expected at most {list_bytes_max} bytes, got {list_bytes(fields)}",
            ),
        )
    return _with_grpc_fields(head, regular, fields)


def _content_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 19:
        raise Malformed("content-length is not a number")
    return int(value)


def _with_grpc_fields(
    head: RequestHead, regular: dict[bytes, bytes], fields: Fields
) -> RequestHead:
    encoding = regular.get(b"grpc-encoding", b"identity").decode("latin-1")
    if encoding not in ENCODINGS:
        return attrs.evolve(
            head,
            refusal=Status(
                StatusCode.UNIMPLEMENTED,
                f"grpc-encoding: expected one of {', '.join(ENCODINGS)}, got {encoding[:40]!r}",
                (ACCEPT_ENCODING,),
            ),
        )
    timeout: float | None = None
    if (raw := regular.get(b"grpc-timeout")) is not None:
        if (match := _TIMEOUT(raw)) is None:
            return _invalid(head, "grpc-timeout: expected 1 to 8 digits and one of H M S m u n")
        timeout = int(match[1]) * _SECONDS[match[2]]
    own = tuple(each for each in fields if _is_metadata(each[0]))
    for name, value in own:
        if name[-4:] == b"-bin" and (fault := _fault_in_binary(value)):
            return _invalid(head, f"{name[:80].decode('ascii')}: {fault}")
    return attrs.evolve(head, gzip=encoding == "gzip", timeout_seconds=timeout, fields=own)


def _invalid(head: RequestHead, message: str) -> RequestHead:
    return attrs.evolve(head, refusal=Status(StatusCode.INVALID_ARGUMENT, message))


def _is_metadata(name: bytes) -> bool:
    return name[:1] != b":" and name not in _RESERVED and name[:5] != b"grpc-"


def _fault_in_binary(value: bytes) -> str | None:
    """Return what is wrong with the value of a ``-bin`` name; a proxy may have joined several."""
    if value.count(b",") >= _JOINED_MAX:
        return f"expected at most {_JOINED_MAX} values"
    try:
        for part in value.split(b","):
            _from_base64(part)
    except binascii.Error:
        return "expected base64"
    return None


def _from_base64(value: bytes) -> bytes:
    value = value.strip()
    return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
