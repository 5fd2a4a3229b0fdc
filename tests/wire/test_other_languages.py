"""Clients of other languages make their code from the same files, with the usual tool."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from wire_contract import PROTOS, compiled, contract


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("buf")
    if tool is None and os.environ.get("CI") == "true":
        pytest.fail("buf is not on the PATH")
    if tool is None:
        pytest.skip("buf is not on the PATH")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def test_buf_reads_the_same_contract(tmp_path: Path) -> None:
    image = tmp_path / "image.binpb"
    done = buf("build", PROTOS, "-o", image, "--as-file-descriptor-set")
    assert done.returncode == 0, done.stderr
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    ours = [file for file in files if file.package.startswith("tensorcast.")]
    assert contract(ours) == contract(compiled())


def test_the_files_keep_the_common_rules() -> None:
    done = buf("lint", PROTOS)
    assert done.returncode == 0, done.stdout


def test_the_files_are_formatted() -> None:
    done = buf("format", "--diff", "--exit-code", PROTOS)
    assert done.returncode == 0, done.stdout
