"""The list of secret fields, held against every field of every request and response."""

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from google.protobuf.descriptor import Descriptor

from globalstore.api.middleware.hidden_secrets import OPEN
from globalstore.config.schema import GlobalStoreConfig, manual
from globalstore.gen.globalstore.admin.v1 import admin_pb2
from globalstore.gen.grpc.health.v1 import health_pb2
from globalstore.gen.grpc.reflection.v1 import reflection_pb2
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2
from globalstore.text.secret_fields import (
    NOT_SECRET,
    SECRET,
    hidden,
    hider,
    is_secret,
    suggests_secret,
)

METHODS = [
    method
    for module in (wire, memory_tier_pb2, admin_pb2, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def types() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}

    def add(kind: Descriptor) -> None:
        if kind.full_name not in found:
            found[kind.full_name] = kind
            for field in kind.fields:
                if field.message_type is not None:
                    add(field.message_type)

    for method in METHODS:
        add(method.input_type)
        add(method.output_type)
    return found


FIELDS = {field.full_name: field for kind in types().values() for field in kind.fields}


def test_each_field_whose_name_suggests_a_secret_is_said_to_be_one_or_not() -> None:
    """One that is new stands in SECRET or NOT_SECRET of globalstore/text/secret_fields.py."""
    suggestive = {full for full, field in FIELDS.items() if suggests_secret(field.name)}
    assert len(suggestive) > 30
    assert suggestive - SECRET.keys() - NOT_SECRET.keys() == set()


def test_the_tables_name_fields_that_are_there_and_none_twice() -> None:
    assert (SECRET.keys() | NOT_SECRET.keys()) - FIELDS.keys() == set()
    assert SECRET.keys() & NOT_SECRET.keys() == set()


def test_a_secret_of_one_message_is_none_of_another_under_the_same_name() -> None:
    """The log knows names of fields alone."""
    secret, open_ = ({full.rpartition(".")[2] for full in each} for each in (SECRET, NOT_SECRET))
    assert secret & open_ == set()
    assert all(is_secret(name) for name in secret)
    assert not any(is_secret(name) for name in open_ - {"page_token", "next_page_token"})


def within(kind: Descriptor, above: tuple[Descriptor, ...] = ()) -> Iterator[Descriptor]:
    for field in kind.fields:
        if field.message_type is not None:
            assert field.message_type not in above, f"{field.full_name} is of a type around it"
            yield field.message_type
            yield from within(field.message_type, (*above, field.message_type))


def test_no_answer_contains_itself_so_that_secrets_are_found_at_any_depth() -> None:
    for method in METHODS:
        if not method.output_type.full_name.startswith("grpc."):
            kinds = {method.output_type, *within(method.output_type, (method.output_type,))}
            has_secrets = any(field.full_name in SECRET for kind in kinds for field in kind.fields)
            assert (hider(method.output_type) is not None) == has_secrets


def test_the_answers_that_are_looked_at_for_those_who_may_only_read() -> None:
    assert {
        method.name for method in METHODS if method.name in OPEN and hider(method.output_type)
    } == {
        "GetArtifactInfoById",
        "GetGroupRealization",
        "HealthCheck",
        "ListReplicasV2",
    }


def test_secrets_are_blanked_where_they_stand_and_nothing_else_is() -> None:
    info = common.MemoryInfo(
        node_id="n", remote_memory_keys=["k1", "k2"], buffer_sizes=[1, 2], verification_json="{}"
    )
    info.transport.remote_memory_keys.extend(["k1", "k2"])
    listed = wire.ListReplicasV2Response()
    listed.replicas.add(artifact_id="a", memory_info=info)
    listed.page_info.next_page_token = "next"
    shown = hidden(listed, "")
    assert listed.replicas[0].memory_info == info, "the original is left alone"
    kept = shown.replicas[0].memory_info
    assert list(kept.remote_memory_keys) == list(kept.transport.remote_memory_keys) == ["", ""]
    assert list(kept.buffer_sizes) == [1, 2]
    assert (kept.verification_json, kept.node_id, shown.replicas[0].artifact_id) == ("", "n", "a")
    assert shown.page_info.next_page_token == "next"
    masked: Any = hidden(info, "***")
    assert list(masked.remote_memory_keys) == ["***", "***"]


def settings(section: type, prefix: str = "") -> Iterator[tuple[str, "attrs.Attribute[Any]"]]:
    for field in attrs.fields(attrs.resolve_types(section, include_extras=True)):
        path = f"{prefix}{field.name}"
        if isinstance(field.type, type) and attrs.has(field.type):
            yield from settings(field.type, f"{path}.")
        else:
            yield path, field


# Settings whose name suggests a secret: where one is, and how many keys there may be.
_OPEN_SETTINGS = {
    "limits.rows.key_generations",
    "limits.rows.key_mappings",
    "limits.rows.key_swaps",
    "server.auth.token_file",
    "server.grpc.tls.key_file",
}


def test_each_setting_whose_name_suggests_a_secret_is_marked_as_one() -> None:
    """The log masks a setting by its mark, a field by its name: both know the same secrets."""
    suggestive = {
        path: manual(field).secret
        for path, field in settings(GlobalStoreConfig)
        if suggests_secret(field.name)
    }
    assert "meta.cluster_token" in suggestive
    assert {path for path, secret in suggestive.items() if not secret} == _OPEN_SETTINGS
    for path, field in settings(GlobalStoreConfig):
        assert manual(field).secret or not is_secret(path), path


@pytest.mark.parametrize("name", ["memory_key", "rkey", "x.lease_token", "operation_lease_id"])
def test_the_log_masks_what_the_list_has_and_what_sounds_like_it(name: str) -> None:
    assert is_secret(name)
