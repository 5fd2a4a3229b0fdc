"""Nothing that a client has compiled into itself may change; things may only be added."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from wire_contract import GOLDEN, HERE, Row, contract, read, write

from globalstore.gen.tensorcast.common.v1 import common_pb2
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2
from globalstore.gen.tensorcast.layout.v1 import layout_pb2
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2
from globalstore.gen.tensorcast.operation.v1 import operation_pb2

MODULES = [common_pb2, global_store_pb2, layout_pb2, memory_tier_pb2, operation_pb2]
SCRIPT = HERE / "wire_contract.py"


@pytest.fixture(scope="module")
def served() -> set[Row]:
    """The contract as the generated code has it, which is what the server speaks."""
    return contract(
        FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in MODULES
    )


def test_no_row_of_the_contract_has_changed_or_gone(served: set[Row]) -> None:
    gone = read(GOLDEN) - served
    assert not gone, "\n".join("\t".join(row) for row in sorted(gone))


def test_every_rpc_of_the_six_services_is_there(served: set[Row]) -> None:
    rpcs = [row for row in read(GOLDEN) if row[0] == "rpc"]
    sizes = {service: 0 for _, service, *_ in rpcs}
    for _, service, *_ in rpcs:
        sizes[service] += 1
    package = "tensorcast.global_store.v1"
    assert sizes == {
        f"{package}.ClusterRuntimeService": 28,
        f"{package}.ArtifactCatalogService": 18,
        f"{package}.AssemblyViewService": 19,
        f"{package}.WorkflowOrchestrationService": 7,
        f"{package}.ClusterAdminService": 2,
        "tensorcast.memory_tier.v1.MemoryTierService": 5,
    }
    assert {row[:3] for row in rpcs} <= {row[:3] for row in served}


def test_the_record_is_as_long_as_it_was_when_it_was_made() -> None:
    kinds = [row[0] for row in read(GOLDEN)]
    assert kinds.count("field") >= 829
    assert kinds.count("enum") >= 120
    assert kinds.count("reserved") >= 4


def renew(golden: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--renew", f"--golden={golden}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_renewal_adds_what_is_new(tmp_path: Path, served: set[Row]) -> None:
    older = {row for row in served if "memory_tier" not in row[1]}
    assert older < served
    golden = tmp_path / "golden.tsv"
    write(golden, older)
    assert renew(golden).returncode == 0
    assert read(golden) == served


CHANGES = [
    ("3", "data_multihash", "string", "singular"),
    ("2", "data_multihash", "string", "singular"),
    ("3", "data_hash", "string", "singular"),
    ("3", "data_multihash", "bytes", "singular"),
    ("3", "data_multihash", "string", "optional"),
]


@pytest.mark.parametrize("recorded", CHANGES[1:])
def test_renewal_refuses_a_changed_field(
    tmp_path: Path, served: set[Row], recorded: tuple[str, ...]
) -> None:
    now = ("field", "tensorcast.common.v1.ArtifactDescriptor", *CHANGES[0])
    assert now in served
    golden = tmp_path / "golden.tsv"
    write(golden, served - {now} | {(*now[:2], *recorded)})
    before = golden.read_bytes()
    done = renew(golden)
    assert done.returncode == 1
    assert " ".join(recorded) in done.stderr
    assert golden.read_bytes() == before


@pytest.mark.parametrize(
    "recorded",
    [
        ("rpc", "a.v1.S", "Call", "a.v1.CallRequest", "a.v1.CallResponse", "unary"),
        ("message", "a.v1.CallRequest"),
        ("enum", "a.v1.Colour", "1", "COLOUR_RED"),
        ("reserved", "a.v1.CallRequest", "5"),
    ],
)
def test_renewal_refuses_to_drop_a_row(
    tmp_path: Path, served: set[Row], recorded: tuple[str, ...]
) -> None:
    golden = tmp_path / "golden.tsv"
    write(golden, served | {recorded})
    assert renew(golden).returncode == 1
    assert recorded in read(golden)
