"""The .proto files are the manual of the wire: everything in them is explained."""

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)
from wire_contract import compiled

# Numbers of the fields of descriptor.proto that make up a source path.
FILE_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
FILE_ENUM = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
FILE_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
FILE_SYNTAX = FileDescriptorProto.SYNTAX_FIELD_NUMBER
NESTED_MESSAGE = DescriptorProto.NESTED_TYPE_FIELD_NUMBER
NESTED_ENUM = DescriptorProto.ENUM_TYPE_FIELD_NUMBER
ENUM_VALUE = EnumDescriptorProto.VALUE_FIELD_NUMBER
METHOD = ServiceDescriptorProto.METHOD_FIELD_NUMBER

Path = tuple[int, ...]


def messages(
    scope: str, path: Path, children: list[DescriptorProto], kind: int
) -> Iterator[tuple[Path, str, DescriptorProto]]:
    for index, message in enumerate(children):
        if not message.options.map_entry:
            here, name = (*path, kind, index), f"{scope}{message.name}"
            yield here, name, message
            yield from messages(f"{name}.", here, list(message.nested_type), NESTED_MESSAGE)


def explained(file: FileDescriptorProto) -> Iterator[tuple[Path, str]]:
    """Yield the place and name of everything in a file that has to have a comment."""
    yield (FILE_SYNTAX,), "head of the file"
    for index, enum in enumerate(file.enum_type):
        yield (FILE_ENUM, index), enum.name
    for index, service in enumerate(file.service):
        yield (FILE_SERVICE, index), service.name
        for number, rpc in enumerate(service.method):
            yield (FILE_SERVICE, index, METHOD, number), f"{service.name}.{rpc.name}"
    for path, name, message in messages("", (), list(file.message_type), FILE_MESSAGE):
        yield path, name
        for index, enum in enumerate(message.enum_type):
            yield (*path, NESTED_ENUM, index), f"{name}.{enum.name}"


@pytest.fixture(scope="module")
def files() -> list[FileDescriptorProto]:
    found = compiled("--include_source_info")
    assert len(found) >= 5
    return found


def comments(file: FileDescriptorProto) -> dict[Path, str]:
    return {
        tuple(place.path): place.leading_comments.strip()
        for place in file.source_code_info.location
        if place.leading_comments.strip()
    }


def test_every_rpc_message_enum_and_service_is_explained(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        documented = comments(file)
        bare += [f"{file.name}: {name}" for path, name in explained(file) if path not in documented]
    assert not bare, "\n".join(bare)


def test_no_comment_only_repeats_the_name(files: list[FileDescriptorProto]) -> None:
    for file in files:
        documented = comments(file)
        for path, name in explained(file):
            words = re.findall(r"[A-Z]?[a-z]+", name.rpartition(".")[2])
            text = re.findall(r"[a-z]+", documented.get(path, "").lower())
            filler = {"a", "an", "the", "of", "to", "for", "is", *(w.lower() for w in words)}
            assert set(text) - filler, f"{file.name}: {name}"


def names(file: FileDescriptorProto) -> Iterator[str]:
    """Yield the names that a comment may refer to: types, RPCs, Type.field and enum values."""
    for service in file.service:
        yield service.name
        yield from (rpc.name for rpc in service.method)
    enums = [("", enum) for enum in file.enum_type]
    for _, name, message in messages("", (), list(file.message_type), FILE_MESSAGE):
        yield name
        yield from (f"{name}.{field.name}" for field in message.field)
        enums += [(f"{name}.", enum) for enum in message.enum_type]
    for scope, enum in enums:
        yield f"{scope}{enum.name}"
        yield from (value.name for value in enum.value)


def test_comments_refer_to_what_exists(files: list[FileDescriptorProto]) -> None:
    known = {name for file in files for name in names(file)}
    types = {name.split(".")[0] for name in known}
    seen = 0
    for file in files:
        for text in comments(file).values():
            references = re.findall(r"\bSTATUS_[A-Z_]+|\b(?:[A-Z][a-z0-9]+)+\.[a-z_]+\b", text)
            references += re.findall(r"\b(?:[A-Z][a-z]+){2,}(?:Request|Response)\b", text)
            for reference in references:
                if "." in reference and reference.split(".")[0] not in types:
                    continue
                assert reference in known, f"{file.name}: {reference}"
                seen += 1
    assert seen > 100


def test_lines_of_comments_fit_the_page(files: list[FileDescriptorProto]) -> None:
    for file in files:
        for text in comments(file).values():
            assert max(map(len, text.splitlines())) <= 97, f"{file.name}: {text}"
