"""Tokens, which allow calls (``server.auth.token_file``).

The file has lines ``role sha256-of-token``; role is ``full`` or ``read``. Only digests are kept and
compared, so neither the file nor a dump of the process shows a token.
"""

import enum
import hashlib
import hmac
import string
from pathlib import Path
from typing import Final, NoReturn

from globalstore.api.middleware.status_codes import reason_trailer
from globalstore.host import HostRefused, host_step, read_bounded
from globalstore.rpc import Call, StatusCode

# A line has some 70 bytes: room for ten thousand tokens, each of which every call is compared with.
_FILE_BYTES_MAX: Final = 1 << 20


class Role(enum.Enum):
    """What a token allows."""

    FULL = "full"
    READ = "read"


class TokenFileUnusable(HostRefused):
    """The token file cannot be read, or a line of it is malformed."""

    word = "tls"


# Calls that change nothing. Whatever is not listed is a mutation, new calls included.
_READS = frozenset(
    {
        "BatchGetReplicaCounts",
        "BatchGetShardHomeLeases",
        "CheckProofCommitmentsMatch",
        "ExplainSources",
        "GetArtifactBinding",
        "GetArtifactIndex",
        "GetArtifactIndexById",
        "GetArtifactInfoById",
        "GetAssemblyAttempt",
        "GetAssemblyLayoutBinding",
        "GetAssemblyReadinessCut",
        "GetAssemblySlotOccupancy",
        "GetGroupRealization",
        "GetLayoutSpec",
        "GetOperation",
        "GetServerInfo",
        "GetShardHomeLease",
        "ListActiveInstances",
        "ListActiveWorkers",
        "ListArtifactDiskLocations",
        "ListArtifacts",
        "ListArtifactLayouts",
        "ListAssemblySlotOccupancies",
        "ListKeys",
        "ListOutstandingLeases",
        "ListReplicasV2",
        "ListViews",
        "QueryChunkLocations",
        "QueryTransportWindow",
        "ResolveKeyMapping",
        "ServerReflectionInfo",
        "ShowArtifact",
        "ShowKey",
        "WaitGroupRealizationPublished",
        "WaitReplicaDrain",
    }
)

# Probes have no tokens, and what they learn is no secret.
OPEN_PATHS: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck",
    }
)

_BEARER = "bearer "


class Tokens:
    """The tokens of a file. ``reload`` reads it again; a bad file keeps what was read before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._roles = _read(path)

    def reload(self) -> None:
        """Read the file again. Raises TokenFileUnusable."""
        self._roles = _read(self._path)

    def authorize(self, call: Call) -> None:
        """Abort a call that its token does not allow; those of ``OPEN_PATHS`` need none."""
        role = self._role(call.metadata_value("authorization"))
        if role is None:
            _refuse(
                call,
                StatusCode.UNAUTHENTICATED,
                "authorization: expected a known Bearer token",
            )
        if role is Role.READ and call.method.name not in _READS:
            _refuse(
                call, StatusCode.PERMISSION_DENIED, f"{call.method.name} needs a token of role full"
            )

    def _role(self, header: str | bytes | None) -> Role | None:
        if not isinstance(header, str) or not header.lower().startswith(_BEARER):
            return None
        given = hashlib.sha256(header[len(_BEARER) :].strip().encode()).digest()
        found = None
        # Every entry is compared in full, so that time tells nothing about where a match is.
        for digest, role in self._roles:
            if hmac.compare_digest(digest, given):
                found = role
        return found


def _refuse(call: Call, code: StatusCode, reason: str) -> NoReturn:
    call.abort(code, reason, [reason_trailer(reason)])


def _read(path: Path) -> list[tuple[bytes, Role]]:
    with host_step("server.auth.token_file", path, TokenFileUnusable):
        content = read_bounded(path, _FILE_BYTES_MAX)
        lines = content.decode().splitlines()
    if len(content) > _FILE_BYTES_MAX:
        raise TokenFileUnusable(
            f"server.auth.token_file {path}: larger than {_FILE_BYTES_MAX} bytes; leave only tokens"
            " in use in it"
        )
    roles = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if (
            len(words) != 2
            or words[0] not in {role.value for role in Role}
            or len(words[1]) != 64
            or not set(words[1].lower()) <= set(string.hexdigits)
        ):
            raise TokenFileUnusable(
                f"server.auth.token_file {path}, line {number}: expected 'full' or 'read' and the"
                " SHA-256 of a token in hex; correct that line"
            )
        roles.append((bytes.fromhex(words[1]), Role(words[0])))
    if not roles:
        raise TokenFileUnusable(
            f"server.auth.token_file {path} has no tokens; write at least one, or unset the"
            "key to take calls without tokens"
        )
    return roles
