"""Tokens, which allow calls (``server.auth.token_file``)."""

from collections import deque
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import trio

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

# Probes have no tokens, and what they learn is no secret. HealthCheck is theirs too: its secret is
# told to those alone who have one.
OPEN_PATHS: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/tensorcast.global_store.v1.ClusterAdminService/HealthCheck",
    }
)

HEALTH_CHECK: Final = "HealthCheck"

# The calls that daemons make are those of the contract with them.
_OF_DAEMONS: Final = "tensorcast."

# Calls ended before others get a turn: each takes some ten microseconds.
_ENDS_PER_TURN: Final = 32

_BEARER: Final = "bearer "

_WITHDRAWN: Final = "authorization: this token was withdrawn, or allows less, since the call began"


class _Unknown(NamedTuple):
    """Why a call has no token that is known: the reason that is counted, and that is told."""

    kind: str
    reason: str


class Tokens:
    """The tokens of a file. ``reload`` reads it again; a bad file keeps what was read before.

    As an observer of calls it knows which are in flight by which token. ``refused`` notes each
    refusal.
    """

    def __init__(self, path: Path, refused: RefusedCallers) -> None:
        self._path = path
        self._refused = refused
        self._grants = _by_digest(path)
        self._in_flight: dict[Call, Grant] = {}
        self._withdrawn: deque[Call] = deque()
        self._some_withdrawn = trio.Event()

    def reload(self) -> None:
        """Read the file again; calls that it allows no longer are ended by ``end_withdrawn``.

        Raises TokenFileUnusable; then nothing changes.
        """
        former, self._grants = self._grants, _by_digest(self._path)
        changed = {digest for digest in former if self._grants.get(digest) != former[digest]}
        if not changed:
            return
        for call, before in self._in_flight.items():
            if before.digest in changed:
                grant = self._grants.get(before.digest)
                if grant is not None and _allows_still(grant, before, call.method):
                    self._in_flight[call] = grant
                else:
                    self._withdrawn.append(call)
        self._some_withdrawn.set()

    async def end_withdrawn(self) -> None:
        """End calls whose token was withdrawn, until cancelled; however many, in turns."""
        while True:
            await self._some_withdrawn.wait()
            self._some_withdrawn = trio.Event()
            while self._withdrawn:
                for _ in range(min(_ENDS_PER_TURN, len(self._withdrawn))):
                    self._end(self._withdrawn.popleft())
                await trio.lowlevel.checkpoint()

    def _end(self, call: Call) -> None:
        if call in self._in_flight and call.end is None:
            self._refused.note(call, "withdrawn")
            reason = (reason_trailer(_WITHDRAWN),)
            call.cancel(Status(StatusCode.UNAUTHENTICATED, _WITHDRAWN, reason))

    def authorize(self, call: Call) -> None:
        """Abort a call that its token does not allow; those of ``OPEN_PATHS`` need none."""
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

    def may_see_secrets(self, call: Call) -> bool:
        """Tell whether a call may be told secrets; one that needs no token may yet bring one."""
        grant = self._in_flight.get(call) or self._looked_up(call)
        return isinstance(grant, Grant) and grant.role is not Role.READ

    def _grant_of(self, call: Call) -> Grant:
        found = self._looked_up(call)
        if isinstance(found, _Unknown):
            self._refuse(call, found.kind, found.reason)
        return found

    def _looked_up(self, call: Call) -> "Grant | _Unknown":
        """Return what the token of a call allows."""
        fields = call.metadata_values("authorization")
        if not fields:
            return _Unknown("missing", "authorization: none sent, expected 'Bearer TOKEN'")
        if len(fields) > 1:
            return _Unknown("several", "authorization: sent more than once, expected one")
        (header,) = fields
        if not header.lower().startswith(_BEARER):
            return _Unknown("malformed", "authorization: expected 'Bearer TOKEN'")
        token = header[len(_BEARER) :].strip()
        if not token:
            return _Unknown("malformed", "authorization: the token is blank")
        grant = self._grants.get(digest_of(token))
        return _Unknown("unknown", self._why_unknown(token)) if grant is None else grant

    def _why_unknown(self, token: str) -> str:
        """Return what to tell a caller whose token has no line in the file."""
        try:
            is_listed = bytes.fromhex(token) in self._grants
        except ValueError:
            is_listed = False
        if is_listed:
            return (
                "authorization: the token file has this very text, where the SHA-256 of the token"
                " belongs"
            )
        return "authorization: expected a known Bearer token"

    def _refuse(
        self,
        call: Call,
        kind: str,
        reason: str,
        code: StatusCode = StatusCode.UNAUTHENTICATED,
    ) -> NoReturn:
        self._refused.note(call, kind)
        call.abort(code, reason, [reason_trailer(reason)])


def _by_digest(path: Path) -> dict[bytes, Grant]:
    """Read a token file. Raises TokenFileUnusable.

    Looking a digest up takes as long for a wrong token as for any other: the table compares keyed
    hashes first, which nobody outside can choose, and only then the digests.
    """
    return {grant.digest: grant for grant in read_token_file(path)}


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
