"""Which fields of the wire are secret, and how they are left out of what is shown.

The one list that the log, the answers to tokens of role read and the command line follow; events
that are to come follow it too. A test holds it against every field of every request and response:
one whose name suggests a secret stands in one of the two tables.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

_STORE: Final = "tensorcast.global_store.v1."
_COMMON: Final = "tensorcast.common.v1."
_OPERATION: Final = "tensorcast.operation.v1."
_LAYOUT: Final = "tensorcast.layout.v1."
_TIERS: Final = "tensorcast.memory_tier.v1."
_ADMIN: Final = "globalstore.admin.v1."

# What a field opens to whoever knows it.
SECRET: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            f"{_COMMON}MemoryInfo.remote_memory_keys",
            f"{_COMMON}ReplicaTransportMetadata.remote_memory_keys",
        ),
        "the memory of a daemon, to be read from afar",
    ),
    **dict.fromkeys(
        (
            f"{_COMMON}MemoryInfo.verification_json",
            f"{_COMMON}ReplicaTransportMetadata.verification_json",
        ),
        "opaque, and goes with the keys of the memory",
    ),
    **dict.fromkeys(
        (
            f"{_STORE}ShardHomeLease.lease_token",
            f"{_STORE}KeepaliveShardHomeLeaseRequest.lease_token",
            f"{_STORE}ShardHomeLeaseKeepalive.lease_token",
            f"{_STORE}ShardHomeLeaseKeepaliveOutcome.lease_token",
            f"{_STORE}ReleaseShardHomeLeaseRequest.lease_token",
            f"{_OPERATION}OperationLease.lease_token",
            f"{_OPERATION}KeepaliveOperationLeaseRequest.lease_token",
            f"{_OPERATION}ReleaseOperationLeaseRequest.lease_token",
            f"{_STORE}GroupPublishAuthority.operation_lease_id",
        ),
        "the lease of another holder",
    ),
    f"{_STORE}GroupPublishAuthority.capability_token": "the right to publish",
    f"{_STORE}StagedBindingValueRef.staging_token": "a value that a daemon has prepared",
    f"{_STORE}HealthCheckResponse.cluster_token": "the cluster, to servers that pretend",
}

# Why a field is none although its name suggests it.
NOT_SECRET: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            f"{_STORE}UpsertKeyMappingRequest.key",
            f"{_STORE}SwapKeyMappingRequest.key",
            f"{_STORE}ResolveKeyMappingRequest.key",
            f"{_STORE}RevokeKeyMappingRequest.key",
            f"{_STORE}RegisterGroupVersionSetRequest.key",
            f"{_STORE}KeyVersionReference.key",
            f"{_ADMIN}KeyRecord.key",
            f"{_ADMIN}ShowKeyRequest.key",
            f"{_ADMIN}ShowKeyResponse.key",
            f"{_ADMIN}ShowArtifactResponse.keys",
            f"{_ADMIN}ListKeysResponse.keys",
        ),
        "a name that points at an artifact",
    ),
    **dict.fromkeys(
        (
            f"{_STORE}RegisterGroupVersionSetRequest.key_generation",
            f"{_STORE}BeginOrJoinGroupRealizationResponse.key_generation",
            f"{_STORE}VersionReference.key_reference",
        ),
        "which target of such a name",
    ),
    **dict.fromkeys(
        (
            f"{_STORE}RegisterInstanceRequest.LabelsEntry.key",
            f"{_STORE}ListActiveInstancesResponse.InstanceInfo.LabelsEntry.key",
            f"{_COMMON}ViewSpec.TensorsEntry.key",
            f"{_LAYOUT}LayoutSpec.TensorsEntry.key",
        ),
        "the name of an entry",
    ),
    **dict.fromkeys(
        (
            f"{_COMMON}MemoryInfo.tensor_index_key",
            f"{_STORE}GetArtifactIndexRequest.tensor_index_key",
        ),
        "the digest of an index",
    ),
    **dict.fromkeys(
        (f"{_COMMON}Pagination.page_token", f"{_COMMON}PageInfo.next_page_token"),
        "where a page ends",
    ),
    **dict.fromkeys(
        (
            f"{_TIERS}MemoryTierLease.lease_id",
            f"{_TIERS}AcknowledgeMemoryTierLeaseRequest.lease_id",
            f"{_TIERS}RevokeMemoryTierLeaseRequest.lease_id",
            f"{_STORE}AssemblySlotOccupancy.lease_id",
            f"{_STORE}UpdateAssemblySlotOccupancyStateRequest.expected_lease_id",
            f"{_STORE}PlacementTarget.lease_id",
        ),
        "names a lease of memory; whose it is is told by who calls",
    ),
}

_WORDS: Final = (
    "tokens?|secrets?|pass(?:words?|wd|phrases?)|authorization|credentials?|rkeys?"
    "|(?:memory|private|access|encryption)_keys?"
)

# What names of fields have somebody say whether they are secret, wherever in the name it stands.
_SUGGESTIVE: Final = re.compile(
    rf"(?:^|_)(?:{_WORDS}|keys?|handles?|verification|lease_ids?)(?:_|$)", re.IGNORECASE
)

# What is secret under any name that ends so: settings and our own log lines have names that no
# field has.
_SECRET_NAME: Final = re.compile(rf"(?:^|[_\-.])(?:{_WORDS})$", re.IGNORECASE)

_FIELD_NAMES: Final = frozenset(name.rpartition(".")[2] for name in SECRET)


def suggests_secret(field: str) -> bool:
    """Tell whether the name of a field is such that somebody has to say whether it is secret."""
    return _SUGGESTIVE.search(field) is not None


def is_secret(name: str) -> bool:
    """Tell whether a value under this name must never be written: a token, password, memory key."""
    return _SECRET_NAME.search(name) is not None or name.rpartition(".")[2] in _FIELD_NAMES


# Changes a message; yields after each message of a list, so that others can be given a turn.
Hider = Callable[[Any], Iterator[None]]

_made: dict[tuple[str, str], Hider | None] = {}


def hider(kind: Any, instead: str = "") -> Hider | None:
    """Return what puts ``instead`` in place of each secret in messages of a type.

    ``kind`` is its descriptor; no message has one of its own type within. None if they have no
    secret. A list of secrets stays as long as it was; what is no text, and a map, is cleared.
    """
    name = kind.full_name, instead
    if name not in _made:
        _made[name] = None
        _made[name] = _new_hider(kind, instead)
    return _made[name]


def _new_hider(kind: Any, instead: str) -> Hider | None:
    secret = [field for field in kind.fields if field.full_name in SECRET]
    inner = {
        field: within
        for field in kind.fields
        if field.message_type is not None
        and field not in secret
        and (within := hider(field.message_type, instead)) is not None
    }
    if not secret and not inner:
        return None
    maps = [field for field in inner if field.message_type.GetOptions().map_entry]
    secret += maps
    for field in maps:
        del inner[field]

    def hide(message: Any) -> Iterator[None]:
        for field in secret:
            _hide_field(message, field, instead)
        for field, within in inner.items():
            if not field.is_repeated:
                if message.HasField(field.name):
                    yield from within(getattr(message, field.name))
                continue
            for each in getattr(message, field.name):
                yield from within(each)
                yield

    return hide


def _hide_field(message: Any, field: "FieldDescriptor", instead: str) -> None:
    value = getattr(message, field.name)
    if field.type not in (field.TYPE_STRING, field.TYPE_BYTES):
        message.ClearField(field.name)
    elif not value:
        return
    else:
        shown = instead if field.type == field.TYPE_STRING else instead.encode()
        if field.is_repeated:
            value[:] = [shown] * len(value)
        else:
            setattr(message, field.name, shown)


def hidden(message: Any, instead: str) -> Any:
    """Return a message with ``instead`` in place of its secrets, itself if it has none."""
    hide = hider(message.DESCRIPTOR, instead)
    if hide is None:
        return message
    shown = type(message)()
    shown.CopyFrom(message)
    for _ in hide(shown):
        pass
    return shown
