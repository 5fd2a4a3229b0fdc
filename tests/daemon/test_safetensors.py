"""Model files as artifacts."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from globalstore.daemon import Malformed, read_artifact
from globalstore.daemon.safetensors import write_sample
from globalstore.rules import artifact_ids, multihash

HEADER = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "a": {"dtype": "I16", "shape": [2, 3], "data_offsets": [16, 28]},
}
DATA = bytes(range(28))


def write(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_the_stream_is_the_tensors_by_name_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    artifact = read_artifact(write(tmp_path / "m.safetensors", HEADER, DATA))
    stream = DATA[16:28] + DATA[0:16]
    assert b"".join(artifact.stream()) == stream
    assert artifact.size == 28
    assert artifact.index == b'{"a":[0,12,[2,3],[3,1],"I16",0],"b":[12,16,[4],[1],"F32",0]}'
    assert artifact.index_multihash == multihash.of(artifact.index)
    assert artifact.data_multihash == multihash.of(stream)
    assert artifact.artifact_id == f"mi2:{artifact.index_multihash}:{artifact.data_multihash}"
    assert artifact_ids.digests_of(artifact.artifact_id)


def test_two_layouts_of_the_same_tensors_have_one_id(tmp_path: Path) -> None:
    swapped = {
        "a": {"dtype": "I16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [12, 28]},
    }
    one = read_artifact(write(tmp_path / "1", HEADER, DATA))
    other = read_artifact(write(tmp_path / "2", swapped, DATA[16:] + DATA[:16]))
    assert one.artifact_id == other.artifact_id


def test_a_sample_is_a_file_like_any_other(tmp_path: Path) -> None:
    write_sample(tmp_path / "s", 1000)
    artifact = read_artifact(tmp_path / "s")
    assert artifact.size == 8000
    assert hashlib.sha256(b"".join(artifact.stream())).digest() == multihash.decode(
        "data", artifact.data_multihash
    )


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    ("header", "data", "length", "text"),
    [
        (b"", b"", 5, "header claims"),
        (b"{}", b"", 2**63, "header claims"),
        (b"junk", b"", None, "not JSON"),
        (b"\xff\xff", b"", None, "not JSON"),
        (b"[" * 100_000, b"", None, "not JSON"),
        (b"[]", b"", None, "not a JSON object"),
        (b"{}", b"", None, "no tensors"),
        ({"a": 1}, b"", None, "'a'"),
        ({"a": {"dtype": "F32"}}, b"", None, "'a'"),
        (entry(dtype="Q7"), bytes(16), None, "known dtype"),
        (entry(shape=[-4]), bytes(16), None, "non-negative"),
        (entry(shape=[True]), bytes(16), None, "non-negative"),
        (entry(shape=[5]), bytes(16), None, "expected 20"),
        (entry(data_offsets=[0, 17]), bytes(16), None, "outside"),
        (entry(data_offsets=[16, 0]), bytes(16), None, "outside"),
        (entry(data_offsets=[4, 20]), bytes(20), None, "begins at 4"),
        (entry(), bytes(17), None, "belong to no tensor"),
        (entry(shape=[10**30]), bytes(16), None, "expected"),
    ],
)
def test_what_is_not_safetensors_is_refused_with_the_place(
    tmp_path: Path, header: Any, data: bytes, length: int | None, text: str
) -> None:
    with pytest.raises(Malformed, match=text):
        read_artifact(write(tmp_path / "m", header, data, length))


def test_a_file_shorter_than_its_first_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"1234")
    with pytest.raises(Malformed, match="shorter"):
        read_artifact(tmp_path / "m")
