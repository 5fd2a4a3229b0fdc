"""The bounds of every method, derived from those of its request's fields."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from globalstore.api.bounds.checks import Table, is_text, too_many
from globalstore.config import GlobalStoreConfig
from globalstore.gen.globalstore.admin.v1 import admin_pb2
from globalstore.gen.grpc.health.v1 import health_pb2
from globalstore.gen.grpc.reflection.v1 import reflection_pb2
from globalstore.gen.grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rules.refusals import Refusal

_FILES = (
    global_store_pb2,
    memory_tier_pb2,
    admin_pb2,
    health_pb2,
    reflection_pb2,
    reflection_alpha_pb2,
)

# No request is bounded below this, which is room for what newer clients say and we do not know;
# the bounds of larger ones leave an eighth for that, and are multiples of this.
BYTES_STEP = 64 << 10
_UNKNOWN_SHARE = 8

# Bytes of a field's number, and of the length before a string or message.
_TAG_BYTES, _LENGTH_BYTES = 2, 5

# Bytes of a number on the wire: fixed, or a varint of so many bits.
_FIXED = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_UINT32: 5,
    FieldDescriptor.TYPE_SINT32: 5,
    FieldDescriptor.TYPE_BOOL: 1,
}
_VARINT_BYTES = 10


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Yield path and descriptor of every method that a server may offer."""
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


def request_bounds(config: GlobalStoreConfig) -> dict[str, RequestBounds]:
    """Return the bounds of every method by its path, as configured.

    Raises Unbounded for a request with a field that nobody has given a bound.
    """
    table = Table(config)
    most = config.server.limits.max_message_bytes
    return {path: _bounds(table, method.input_type, most) for path, method in methods()}


def _bounds(table: Table, kind: Descriptor, most: int) -> RequestBounds:
    checker = table.checker(kind)
    largest = largest_bytes(table, kind)
    roomy = largest + largest // _UNKNOWN_SHARE
    bytes_max = min(most, max(1, -(-roomy // BYTES_STEP)) * BYTES_STEP)
    fields = {field.full_name: field for field in _lists(kind)}

    def refused(full_name: str, count: int) -> Refusal:
        field = fields[full_name]
        is_nested = field.containing_type is not kind
        bound = table.count(field)
        return too_many(full_name if is_nested else field.name, count, bound)

    return RequestBounds(
        bytes_max=bytes_max,
        entries_max={name: table.count(field).most for name, field in fields.items()},
        check=checker.check,
        check_in_turns=checker.in_turns,
        too_many=refused,
        unchecked_bytes=min(checker.safe_bytes, bytes_max),
    )


def largest_bytes(table: Table, kind: Descriptor) -> int:
    """Return the largest size of a message whose fields keep to their bounds."""
    size = sum(_largest_field(table, field) for field in kind.fields)
    whole = table.message(kind)
    return size if whole is None else min(size, whole.most)


def _largest_field(table: Table, field: FieldDescriptor) -> int:
    """Return the largest size of a field, all its entries included."""
    if is_text(field):
        each = _LENGTH_BYTES + table.size(field).most
    elif field.message_type is not None:
        each = _LENGTH_BYTES + largest_bytes(table, field.message_type)
    else:
        each = _FIXED.get(field.type, _VARINT_BYTES)
    each += _TAG_BYTES
    return each * table.count(field).most if field.is_repeated else each


def _lists(kind: Descriptor) -> Iterator[FieldDescriptor]:
    """Yield every list and map of a message and of those within it."""
    for field in kind.fields:
        if field.is_repeated:
            yield field
        if field.message_type is not None:
            yield from _lists(field.message_type)
