"""One normalised form of what a peer needs in order to read a replica's bytes.

The wire carries this metadata twice, and some peers know only one form. Whatever came in, the
store keeps one form, and a replica is a source only when that form is valid: memory keys, one
size per key, every size above 0, and a sum that equals the replica's size.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from globalstore.rules.refusals import InvalidArgument


class ExportState(enum.IntEnum):
    """Whether a replica's memory can be read by others. The numbers are the wire's."""

    PRESENCE_ONLY = 1
    EXPORTABLE = 2
    DRAINING = 3


class Transfer(NamedTuple):
    """How a replica's bytes are read: keys and sizes pair up, ``verification`` is opaque JSON.

    ``generation`` is the daemon's own count of exports; 0 when it was not told.
    """

    state: ExportState = ExportState.PRESENCE_ONLY
    generation: int = 0
    keys: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    verification: str = ""


def _fault(keys: Sequence[str], sizes: Sequence[int], memory_size: int) -> str | None:
    """Return why keys and sizes cannot describe a replica of this size, or None.

    A size of 0 is one that nobody told.
    """
    if not keys:
        return "buffer_sizes without remote_memory_keys" if sizes else "no remote_memory_keys"
    if len(keys) != len(sizes):
        return f"{len(keys)} remote_memory_keys but {len(sizes)} buffer_sizes"
    if min(sizes) == 0:
        return "a buffer_sizes entry of 0"
    if memory_size and sum(sizes) != memory_size:
        return f"buffer_sizes sum to {sum(sizes)}, expected memory_size {memory_size}"
    return None


def from_submessage(
    state: int,
    generation: int,
    keys: Sequence[str],
    sizes: Sequence[int],
    verification: str,
    memory_size: int,
) -> Transfer:
    """Normalise the ``transport`` submessage. Never refuses: what cannot be used is cleared."""
    valid = _fault(keys, sizes, memory_size) is None
    if state == ExportState.EXPORTABLE and valid:
        return Transfer(ExportState.EXPORTABLE, generation, tuple(keys), tuple(sizes), verification)
    if state == ExportState.DRAINING:
        if valid:
            kept = tuple(keys), tuple(sizes), verification
            return Transfer(ExportState.DRAINING, generation, *kept)
        return Transfer(ExportState.DRAINING, generation)
    return Transfer(ExportState.PRESENCE_ONLY, generation)


def from_direct_fields(
    keys: Sequence[str], sizes: Sequence[int], verification: str, memory_size: int
) -> Transfer | None:
    """Normalise the direct fields; None when they say nothing. Refuses inconsistent ones."""
    if not keys and not sizes:
        return None
    fault = _fault(keys, sizes, memory_size)
    if fault is not None:
        raise InvalidArgument(f"mem_info: {fault}")
    return Transfer(ExportState.EXPORTABLE, 0, tuple(keys), tuple(sizes), verification)


def from_inventory(
    keys: Sequence[str], sizes: Sequence[int], verification: str, memory_size: int
) -> Transfer | None:
    """Normalise the direct fields of an inventory entry, of which nothing is ever refused."""
    if not keys and not sizes:
        return None
    if _fault(keys, sizes, memory_size) is not None:
        return Transfer()
    return Transfer(ExportState.EXPORTABLE, 0, tuple(keys), tuple(sizes), verification)
