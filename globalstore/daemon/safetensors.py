"""Reads a safetensors file as an artifact.

The file is an 8-byte little-endian header length, a JSON header (name to dtype, shape and byte
range of the data part; ``__metadata__`` is free text), then the data part.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from globalstore.rules import artifact_ids, multihash, tensor_index
from globalstore.rules.tensor_index import Tensor

# The format's own bound on its header.
_HEADER_BYTES_MAX = 100_000_000

# Bits of one element. A type that is not listed cannot be checked and is refused.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "F4": 4,
    "C64": 64,
}

_CHUNK_BYTES = 1 << 20


class Malformed(Exception):
    """A file that is not safetensors; the text says where it goes wrong."""


@attrs.frozen
class Artifact:
    """A model file under its content address; ``size`` is that of its stream, in bytes."""

    path: Path
    artifact_id: str
    index: bytes
    index_multihash: str
    data_multihash: str
    size: int
    tensors: tuple[Tensor, ...]
    data_start: int

    def stream(self) -> Iterator[bytes]:
        """Yield the canonical stream in chunks of up to 1 MiB."""
        with self.path.open("rb") as file:
            yield from _stream(file, self.tensors, self.data_start)


def write_sample(path: Path, elements: int) -> None:
    """Write a file with two tensors of ``elements`` random 32-bit numbers each."""
    length = 4 * elements
    header = {
        name: {"dtype": "F32", "shape": [elements], "data_offsets": [start, start + length]}
        for name, start in (("layer.weight", 0), ("layer.bias", length))
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + os.urandom(2 * length))


def read_artifact(path: Path) -> Artifact:
    """Read a file's header, hash its bytes and name it.

    Blocks for as long as the disk takes; call it in a thread. Raises Malformed or OSError.
    """
    with path.open("rb") as file:
        tensors, data_start = _header(file)
        digest = hashlib.sha256()
        size = 0
        for chunk in _stream(file, tensors, data_start):
            digest.update(chunk)
            size += len(chunk)
    index = tensor_index.canonical(tensors)
    index_multihash = multihash.of(index)
    data_multihash = multihash.encode(digest.digest())
    return Artifact(
        path=path,
        artifact_id=artifact_ids.mi2(index_multihash, data_multihash),
        index=index,
        index_multihash=index_multihash,
        data_multihash=data_multihash,
        size=size,
        tensors=tensors,
        data_start=data_start,
    )


def _stream(file: BinaryIO, tensors: tuple[Tensor, ...], data_start: int) -> Iterator[bytes]:
    for tensor in tensors:
        file.seek(data_start + tensor.begin)
        left = tensor.length
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise Malformed(f"the file ends inside of tensor {tensor.name!r}")
            left -= len(chunk)
            yield chunk


def _header(file: BinaryIO) -> tuple[tuple[Tensor, ...], int]:
    """Return the tensors in canonical order and where the data part begins."""
    raw = file.read(8)
    if len(raw) < 8:
        raise Malformed("the file is shorter than the 8 bytes of its header length")
    (length,) = struct.unpack("<Q", raw)
    data_bytes = os.fstat(file.fileno()).st_size - 8 - length
    if length > _HEADER_BYTES_MAX or data_bytes < 0:
        raise Malformed(f"the header claims {length} bytes, more than the file has")
    try:
        header = json.loads(file.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Malformed(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise Malformed("the header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = [_tensor(name, entry, data_bytes) for name, entry in header.items()]
    if not tensors:
        raise Malformed("the file has no tensors")
    _check_layout(tensors, data_bytes)
    return tuple(tensor_index.in_canonical_order(tensors)), 8 + length


def _tensor(name: str, entry: Any, data_bytes: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        bits = _BITS[dtype]
        counts = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise Malformed(
            f"tensor {name!r}: expected a known dtype, a shape and two data_offsets"
        ) from None
    if not all(type(count) is int and count >= 0 for count in counts):
        raise Malformed(f"tensor {name!r}: shape and data_offsets must be non-negative integers")
    elements = 1
    for extent in shape:
        elements *= extent
    if not begin <= end <= data_bytes:
        raise Malformed(f"tensor {name!r}: bytes {begin}..{end} lie outside of the data part")
    if (end - begin) * 8 != elements * bits:
        raise Malformed(
            f"tensor {name!r}: {end - begin} bytes, expected {elements * bits // 8}"
            f" for {dtype} {list(shape)}"
        )
    return Tensor(name, dtype, shape, begin, end)


def _check_layout(tensors: list[Tensor], data_bytes: int) -> None:
    """Refuse overlaps and holes: the format has neither, and either may hide bytes."""
    position = 0
    for tensor in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if tensor.begin != position:
            raise Malformed(f"tensor {tensor.name!r} begins at {tensor.begin}, expected {position}")
        position = tensor.end
    if position != data_bytes:
        raise Malformed(f"{data_bytes - position} bytes at the end belong to no tensor")
