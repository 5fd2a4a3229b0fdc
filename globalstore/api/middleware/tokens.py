"""Tokens, which allow calls (``server.auth.token_file``)."""

import hmac
from pathlib import Path
from typing import Final, NoReturn

from globalstore.api.middleware.refused_callers import RefusedCallers
from globalstore.api.middleware.status_codes import reason_trailer
from globalstore.api.middleware.token_file import Grant, Role, digest_of, read_token_file
from globalstore.rpc import Call, Method, Status, StatusCode

# Calls that change nothing. Whatever is not listed is a mutation, new calls included.
READS = frozenset(
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
_EXEMPT = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})

# The calls that daemons make are those of the contract with them.
_OF_DAEMONS: Final = "tensorcast."

_BEARER: Final = "bearer "

_WITHDRAWN: Final = "authorization: this token was withdrawn, or allows less, since the call began"


class Tokens:
    """The tokens of a file. ``reload`` reads it again; a bad file keeps what was read before.

    As an observer of calls it knows which are in flight by which token. ``refused`` notes each
    refusal.
    """

    def __init__(self, path: Path, refused: RefusedCallers) -> None:
        self._path = path
        self._refused = refused
        self._grants = read_token_file(path)
        self._in_flight: dict[Call, Grant] = {}

    def reload(self) -> None:
        """Read the file again and end the calls that it allows no longer.

        Raises TokenFileUnusable; then nothing changes.
        """
        self._grants = read_token_file(self._path)
        now = {grant.digest: grant for grant in self._grants}
        for call, before in list(self._in_flight.items()):
            grant = now.get(before.digest)
            if grant is None or not _allows_still(grant, before, call.method):
                self._refused.note(call, "withdrawn")
                call.cancel(
                    Status(StatusCode.UNAUTHENTICATED, _WITHDRAWN, (reason_trailer(_WITHDRAWN),))
                )
            else:
                self._in_flight[call] = grant

    def authorize(self, call: Call) -> None:
        """Abort a call that its token does not allow."""
        if call.path in _EXEMPT or call.method.name == "HealthCheck":
            return
        grant = self._grant_of(call)
        if not _allows(grant, call.method):
            needed = "full or daemon" if _is_of_daemons(call.method) else "full"
            self._refuse(
                call,
                "role",
                f"{call.method.name} needs a token of role {needed}, this one has role"
                f" {grant.role.value}",
                StatusCode.PERMISSION_DENIED,
            )
        self._in_flight[call] = grant

    def started(self, call: Call) -> None:
        """Do nothing: ``authorize`` takes the call in."""

    def finished(self, call: Call, code: StatusCode, seconds: float) -> None:
        """Forget a call that has ended."""
        self._in_flight.pop(call, None)

    def daemon_ids(self, call: Call) -> frozenset[str] | None:
        """Return the daemons that a call may act for, None for any; none once it has ended."""
        grant = self._in_flight.get(call)
        if grant is None:
            return frozenset()
        return grant.daemon_ids if grant.role is Role.DAEMON else None

    def _grant_of(self, call: Call) -> Grant:
        fields = [value for name, value in call.metadata if name == "authorization"]
        if not fields:
            self._refuse(call, "missing", "authorization: none sent, expected 'Bearer TOKEN'")
        if len(fields) > 1:
            self._refuse(call, "several", "authorization: sent more than once, expected one")
        (header,) = fields
        if not isinstance(header, str) or not header.lower().startswith(_BEARER):
            self._refuse(call, "malformed", "authorization: expected 'Bearer TOKEN'")
        token = header[len(_BEARER) :].strip()
        if not token:
            self._refuse(call, "malformed", "authorization: the token is blank")
        given, found = digest_of(token), None
        # Every entry is compared in full, so that time tells nothing about where a match is.
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, given):
                found = grant
        if found is None:
            self._refuse(call, "unknown", "authorization: expected a known Bearer token")
        return found

    def _refuse(
        self,
        call: Call,
        kind: str,
        reason: str,
        code: StatusCode = StatusCode.UNAUTHENTICATED,
    ) -> NoReturn:
        self._refused.note(call, kind)
        call.abort(code, reason, [reason_trailer(reason)])


def _is_of_daemons(method: Method) -> bool:
    return method.service.startswith(_OF_DAEMONS)


def _allows(grant: Grant, method: Method) -> bool:
    match grant.role:
        case Role.FULL:
            return True
        case Role.DAEMON:
            return _is_of_daemons(method) or method.name in READS
        case Role.READ:
            return method.name in READS


def _allows_still(grant: Grant, before: Grant, method: Method) -> bool:
    """Tell whether a call that began under another grant of its token may go on."""
    if method.name in READS:
        return True
    if grant.role is Role.DAEMON:
        # Whom the call acts for was checked when it began.
        return before.role is Role.DAEMON and before.daemon_ids <= grant.daemon_ids
    return _allows(grant, method)
