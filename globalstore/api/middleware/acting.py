"""For whom a call acts, told by what its request names.

A caller that is bound to daemons may name these, and what belongs to them. What nobody has is
nobody else's: the handler answers as it would to anyone.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from google.protobuf.descriptor import Descriptor

from globalstore.api.context import HandlerContext
from globalstore.api.middleware.tokens import READS
from globalstore.db import Snapshot
from globalstore.registry.runtime import owners
from globalstore.rpc import Call, Cardinality
from globalstore.rules.refusals import PermissionDenied
from globalstore.rules.values import uuid_bytes


class Named(enum.Enum):
    """What a field of a request can name that belongs to a daemon."""

    DAEMON = "daemon"
    WORKER = "worker"
    REPLICA = "replica"
    TRANSPORT = "transport"
    INSTANCE = "instance"
    NODE = "node"
    TIER_LEASE = "tier lease"


# What a field of this name names, in whichever request; a test keeps it complete.
FIELDS: Final[Mapping[str, Named]] = {
    "daemon_id": Named.DAEMON,
    "holder_daemon_id": Named.DAEMON,
    "contributor_daemon_id": Named.DAEMON,
    "worker_id": Named.WORKER,
    "previous_worker_id": Named.WORKER,
    "requester_worker_id": Named.WORKER,
    "replica_id": Named.REPLICA,
    "transport_id": Named.TRANSPORT,
    "instance_id": Named.INSTANCE,
    "node_id": Named.NODE,
    "source_node_id": Named.NODE,
}

# Where a field says something else than elsewhere. The lease of an operation is known by a secret;
# whoever registers says which node it is on, which others may be on too.
EXCEPTIONS: Final[Mapping[str, Named | None]] = {
    "RegisterWorkerRequest.node_id": None,
    "AcknowledgeMemoryTierLeaseRequest.lease_id": Named.TIER_LEASE,
    "RevokeMemoryTierLeaseRequest.lease_id": Named.TIER_LEASE,
}

# What is known by a UUID is stored as its bytes.
_BY_UUID: Final = frozenset({Named.REPLICA, Named.TRANSPORT})

_OWNERS: Final[Mapping[Named, Callable[[Snapshot, Any], set[str]]]] = {
    Named.WORKER: owners.daemons_of_worker,
    Named.REPLICA: owners.daemons_of_replica,
    Named.TRANSPORT: owners.daemons_of_transport,
    Named.INSTANCE: owners.daemons_of_instance,
    Named.NODE: owners.daemons_of_node,
    Named.TIER_LEASE: owners.daemons_of_tier_lease,
}

# Where requests say at which address and port their worker is, or what it holds. Whoever names that
# of another live worker takes what is there away from it.
ENDPOINTS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "RegisterWorker": (("node_address", "grpc_port"), ("node_address", "p2p_port")),
    "RegisterReplica": (("mem_info.node_address", "mem_info.node_port"),),
}


class Field(NamedTuple):
    """A field that names something; ``path`` has the names of the messages around it, by dots."""

    path: str
    named: Named
    value: Callable[[Any], str]


class Callers(Protocol):
    """Knows who makes a call."""

    def daemon_ids(self, call: Call) -> frozenset[str] | None:
        """Return the daemons that a call may act for, None for any."""

    def stranger(self, call: Call) -> None:
        """Take in that a call was refused because it named what belongs to another daemon."""


def acting_fields(request: Descriptor) -> list[Field]:
    """Return the fields of a request that name something, also within messages it has one of.

    Lists are left out: what they name is of the one whom the request names beside them.
    """
    return [
        Field(path, named, attrgetter(path)) for path, named in _fields(request, "", (request,))
    ]


def _fields(
    message: Descriptor, prefix: str, above: tuple[Descriptor, ...]
) -> Iterator[tuple[str, Named]]:
    for field in message.fields:
        if field.is_repeated:
            continue
        inner = field.message_type
        if inner is not None and inner not in above:
            yield from _fields(inner, f"{prefix}{field.name}.", (*above, inner))
        named = EXCEPTIONS.get(f"{message.name}.{field.name}", FIELDS.get(field.name))
        if inner is None and named is not None:
            yield f"{prefix}{field.name}", named


def bind(services: Iterable[Any], callers: Callers, context: HandlerContext) -> None:
    """Let the methods of ``services`` refuse what their callers may not act for.

    Calls that only read are left alone: whoever may read may read everything.
    """
    for service in services:
        for name, bound in service.methods.items():
            signature = bound.signature
            if name not in READS and signature.cardinality is Cardinality.UNARY_UNARY:
                guard = _Guard(name, signature.request_type.DESCRIPTOR, callers, context)
                service.methods[name] = bound._replace(method_fn=guard.guarded(bound.method_fn))


class _Guard:
    """Checks the requests of one method."""

    def __init__(
        self, method: str, request: Descriptor, callers: Callers, context: HandlerContext
    ) -> None:
        self._endpoints = [attrgetter(*names) for names in ENDPOINTS.get(method, ())]
        self._fields = acting_fields(request)
        self._callers = callers
        self._context = context

    def guarded(self, function: Any) -> Any:
        """Return a method that checks its request before it does what ``function`` does."""

        async def method(message: Any, request: Call) -> Any:
            daemon_ids = self._callers.daemon_ids(request)
            if daemon_ids is not None:
                await self._check(message, request, daemon_ids)
            return await function(message, request)

        answer = getattr(function, "fast_path", None)
        if answer is not None:

            def fast(servicer: Any, message: Any, call: Call) -> Any:
                daemon_ids = self._callers.daemon_ids(call)
                if daemon_ids is not None and (
                    self._endpoints or self._doubtful(message, daemon_ids)
                ):
                    return None
                return answer(servicer, message, call)

            method.fast_path = fast  # type: ignore[attr-defined]
            method.__self__ = function.__self__  # type: ignore[attr-defined]
        return method

    async def _check(self, message: Any, call: Call, daemon_ids: frozenset[str]) -> None:
        """Raise PermissionDenied if the request names what belongs to another daemon alone."""
        read = self._context.store.read
        for field in self._doubtful(message, daemon_ids):
            value = field.value(message).strip()
            if field.named is Named.DAEMON:
                self._refuse(call, f"{field.path} {value!r}", daemon_ids)
            it = uuid_bytes(field.path, value) if field.named in _BY_UUID else value
            found = await read(_OWNERS[field.named], it)
            if found and not found & daemon_ids:
                self._refuse(call, f"{field.path} {value!r}", daemon_ids)
        for endpoint in self._endpoints:
            address, port = endpoint(message)
            found = await read(owners.daemons_at_endpoint, address.strip(), port)
            if found - daemon_ids:
                self._refuse(call, f"the endpoint {address}:{port}, still in use,", daemon_ids)

    def _refuse(self, call: Call, what: str, daemon_ids: frozenset[str]) -> NoReturn:
        self._callers.stranger(call)
        own = ", ".join(sorted(daemon_ids)) or "none"
        raise PermissionDenied(
            f"{what} belongs to another daemon; this caller may act for its own alone: {own[:200]}"
        )

    def _doubtful(self, message: Any, daemon_ids: frozenset[str]) -> list[Field]:
        """Return the fields that name what is not known in memory to belong to these daemons."""
        doubtful = []
        for field in self._fields:
            value = field.value(message).strip()
            if value and not self._is_of(field.named, value, daemon_ids):
                doubtful.append(field)
        return doubtful

    def _is_of(self, named: Named, value: str, daemon_ids: frozenset[str]) -> bool:
        context = self._context
        match named:
            case Named.DAEMON:
                return value in daemon_ids
            case Named.WORKER:
                worker = context.workers.find(value)
                return worker is not None and worker.daemon_id in daemon_ids
            case Named.INSTANCE:
                instance = context.instances.find(value)
                return instance is not None and instance.state.daemon_id in daemon_ids
            case Named.NODE:
                own = map(context.workers.id_of_daemon, daemon_ids)
                live = (context.workers.find(worker_id) for worker_id in own)
                return any(worker is not None and worker.node_id == value for worker in live)
        return False
