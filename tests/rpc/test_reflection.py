"""Reflection: both versions answer every kind of question, and survive the odd one."""

import purerpc
import pytest
from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from globalstore.api.standard.health import HealthService
from globalstore.api.standard.reflection import reflection_services
from globalstore.gen.grpc.reflection.v1 import reflection_grpc as grpc_v1
from globalstore.gen.grpc.reflection.v1 import reflection_pb2 as v1
from globalstore.gen.grpc.reflection.v1alpha import reflection_grpc as grpc_v1alpha
from globalstore.gen.grpc.reflection.v1alpha import reflection_pb2 as v1alpha

from .echo import listening

versions = pytest.mark.parametrize(
    ("messages", "stubs"), [(v1, grpc_v1), (v1alpha, grpc_v1alpha)], ids=["v1", "v1alpha"]
)


async def ask(messages, stubs, *questions):
    services = [HealthService().service, *reflection_services(["grpc.health.v1.Health"])]
    async with (
        listening(*services) as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
    ):
        stub = stubs.ServerReflectionStub(channel)

        async def requests():
            for question in questions:
                yield messages.ServerReflectionRequest(**question)

        return [answer async for answer in stub.ServerReflectionInfo(requests())]


def files(answer):
    found = [
        FileDescriptorProto.FromString(raw)
        for raw in answer.file_descriptor_response.file_descriptor_proto
    ]
    return [each.name for each in found]


@versions
async def test_services_are_listed_with_reflection_itself(messages, stubs):
    (answer,) = await ask(messages, stubs, {"list_services": "*"})
    assert [each.name for each in answer.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


@versions
async def test_a_symbol_and_its_file_lead_to_the_same_description(messages, stubs):
    by_symbol, by_method, by_field = await ask(
        messages,
        stubs,
        {"file_containing_symbol": "grpc.health.v1.Health"},
        {"file_containing_symbol": "grpc.health.v1.Health.Check"},
        {"file_containing_symbol": "grpc.health.v1.HealthCheckRequest.service"},
    )
    (name,) = files(by_symbol)
    assert name.endswith("health.proto")
    assert files(by_method) == files(by_field) == [name]
    (by_name,) = await ask(messages, stubs, {"file_by_filename": name})
    assert files(by_name) == [name]


@versions
async def test_imports_come_with_their_file(messages, stubs):
    (answer,) = await ask(
        messages, stubs, {"file_by_filename": "google/protobuf/compiler/plugin.proto"}
    )
    assert plugin_pb2.DESCRIPTOR.name in files(answer)
    assert "google/protobuf/descriptor.proto" in files(answer)


@versions
async def test_extension_numbers_are_told(messages, stubs):
    (answer,) = await ask(
        messages, stubs, {"all_extension_numbers_of_type": "google.protobuf.FieldOptions"}
    )
    numbers = answer.all_extension_numbers_response
    assert numbers.base_type_name == "google.protobuf.FieldOptions"
    assert list(numbers.extension_number) == sorted(numbers.extension_number)


@versions
async def test_what_is_unknown_is_answered_and_the_stream_goes_on(messages, stubs):
    answers = await ask(
        messages,
        stubs,
        {"file_by_filename": "no/such.proto"},
        {"file_containing_symbol": "grpc.health.v1.Health.NoSuchMethod"},
        {"all_extension_numbers_of_type": "no.such.Type"},
        {"file_containing_extension": {"containing_type": "no.Type", "extension_number": 1}},
        {
            "file_containing_extension": {
                "containing_type": "google.protobuf.FieldOptions",
                "extension_number": 536870911,
            }
        },
        {},
        {"list_services": ""},
    )
    assert [a.error_response.error_code for a in answers[:5]] == [5] * 5
    assert answers[5].error_response.error_code == 3
    assert len(answers[6].list_services_response.service) == 3
    assert answers[0].original_request.file_by_filename == "no/such.proto"
