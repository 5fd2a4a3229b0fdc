"""The canonical index of an artifact and the byte order it describes.

The canonical stream is the tensors' bytes one after the other, in the byte order of their names
and without gaps. The index is a JSON object, name to ``[offset, length, shape, stride, dtype,
storage_offset]``: offset and length in bytes of the stream, stride in elements, keys sorted, no
white space, non-ASCII as is. Files that hold the same tensors therefore have the same index and
the same stream, however they are laid out, and one content address.
"""

import json
from collections.abc import Iterable

import attrs


@attrs.frozen
class Tensor:
    """A tensor in a file: its bytes are ``[begin, end)`` of the file's data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def length(self) -> int:
        """Size in bytes."""
        return self.end - self.begin


def strides(shape: tuple[int, ...]) -> list[int]:
    """Return the strides, in elements, of a tensor stored row by row."""
    found: list[int] = []
    step = 1
    for extent in reversed(shape):
        found.append(step)
        step *= extent
    return found[::-1]


def in_canonical_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors in the order of the canonical stream."""
    return sorted(tensors, key=lambda tensor: tensor.name.encode())


def canonical(tensors: Iterable[Tensor]) -> bytes:
    """Return the bytes of the canonical index."""
    entries = {}
    offset = 0
    for tensor in in_canonical_order(tensors):
        stride = strides(tensor.shape)
        entries[tensor.name] = [
            offset, tensor.length, list(tensor.shape), stride, tensor.dtype, 0
        ]  # fmt: skip
        offset += tensor.length
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
