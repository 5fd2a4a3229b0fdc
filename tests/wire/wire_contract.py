#!/usr/bin/env python3
"""The wire contract as one row per fact: ``uv run tests/wire/wire_contract.py [--renew]``.

A row says what a client has compiled into itself: the number, name, type and label of a
field, the name and number of an enum value, the messages of an RPC. Without a flag the
.proto files are compared with ``golden_contract.tsv``; ``--renew`` adds what is new, and
refuses, changing nothing, when a row has changed or gone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTOS = HERE.parents[1] / "protos"
GOLDEN = HERE / "golden_contract.tsv"

Row = tuple[str, ...]


def compiled(*options: str) -> list[FileDescriptorProto]:
    """Return the files of the tensorcast packages as protoc describes them."""
    include = Path(protoc.__file__).parent / "_proto"
    names = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "tensorcast").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.pb"
        arguments = [f"-I{PROTOS}", f"-I{include}", *options, f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *arguments, *names]) != 0:
            sys.exit("protoc failed; its message stands above")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def field_rows(name: str, message: DescriptorProto) -> Iterator[Row]:
    entries = {f".{name}.{n.name}": n for n in message.nested_type if n.options.map_entry}

    def type_of(field: FieldDescriptorProto) -> str:
        if field.type_name in entries:
            key, value = entries[field.type_name].field
            return f"map<{type_of(key)},{type_of(value)}>"
        if field.type_name:
            return field.type_name.removeprefix(".")
        return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()

    def label_of(field: FieldDescriptorProto) -> str:
        if field.type_name in entries:
            return "map"
        if field.proto3_optional:
            return "optional"
        if field.HasField("oneof_index"):
            return f"oneof:{message.oneof_decl[field.oneof_index].name}"
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        return "repeated" if repeated else "singular"

    for field in message.field:
        yield "field", name, str(field.number), field.name, type_of(field), label_of(field)
    for reserved in message.reserved_range:
        first, last = reserved.start, reserved.end - 1
        yield "reserved", name, str(first) if first == last else f"{first} to {last}"
    for word in message.reserved_name:
        yield "reserved", name, word


def message_rows(scope: str, message: DescriptorProto) -> Iterator[Row]:
    name = f"{scope}.{message.name}"
    yield "message", name
    yield from field_rows(name, message)
    for enum in message.enum_type:
        yield from enum_rows(name, enum)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from message_rows(name, nested)


def enum_rows(scope: str, enum: EnumDescriptorProto) -> Iterator[Row]:
    for value in enum.value:
        yield "enum", f"{scope}.{enum.name}", str(value.number), value.name


def service_rows(scope: str, service: ServiceDescriptorProto) -> Iterator[Row]:
    for rpc in service.method:
        yield (
            "rpc",
            f"{scope}.{service.name}",
            rpc.name,
            rpc.input_type.removeprefix("."),
            rpc.output_type.removeprefix("."),
            {(0, 0): "unary", (0, 1): "server-stream", (1, 0): "client-stream"}.get(
                (rpc.client_streaming, rpc.server_streaming), "bidi-stream"
            ),
        )


def contract(files: Iterable[FileDescriptorProto]) -> set[Row]:
    """Return every fact of the files that a client depends on."""
    rows: set[Row] = set()
    for file in files:
        rows.add(("file", file.name, file.package, file.syntax))
        for service in file.service:
            rows.update(service_rows(file.package, service))
        for message in file.message_type:
            rows.update(message_rows(file.package, message))
        for enum in file.enum_type:
            rows.update(enum_rows(file.package, enum))
    return rows


def by_noun(row: Row) -> list[tuple[bool, int, str]]:
    """Sort key under which numbers count as numbers."""
    return [(not c.isdigit(), int(c) if c.isdigit() else 0, c) for c in row]


def read(path: Path) -> set[Row]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(line.split("\t")) for line in lines}


def write(path: Path, rows: set[Row]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in sorted(rows, key=by_noun)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the wire contract with its record.")
    parser.add_argument("--renew", action="store_true", help="record what is new")
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="the record")
    options = parser.parse_args()
    recorded, current = read(options.golden), contract(compiled())
    gone = recorded - current
    for row in sorted(gone, key=by_noun):
        print("changed or gone:", *row, file=sys.stderr)
    if gone:
        print("Clients rely on these rows; only additions are possible.", file=sys.stderr)
        return 1
    if options.renew:
        write(options.golden, current)
    print(f"{len(recorded)} rows hold, {len(current - recorded)} are new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
