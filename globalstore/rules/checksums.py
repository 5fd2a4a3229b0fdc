"""The digest of the replica set that a worker and the server each believe it holds.

Both sides compute it on their own, so every byte counts: entries sorted, joined with nothing
between, FNV-1a with 64 bits, 16 lower-case hex digits.
"""

from collections.abc import Iterable

import attrs
from fnv_c import fnv1a_64

# The hash of nothing.
EMPTY = "cbf29ce484222325"


@attrs.frozen
class Entry:
    """What the digest covers of one replica.

    ``label`` is GPU, RAM or DISK; ``device`` is the device number of a GPU and 0 otherwise;
    ``view_id`` is empty for the canonical bytes.
    """

    artifact_id: str
    view_id: str
    node_id: str
    node_address: str
    node_port: int
    label: str
    device: int
    available: bool

    def text(self) -> str:
        """Return the text of the entry that the checksum is made of."""
        return (
            f"{self.artifact_id}:{self.view_id}:{self.node_id}:{self.node_address}:"
            f"{self.node_port}:{self.device}:{self.label}:{int(self.available)};"
        )

    def order(self) -> tuple[bytes, bytes, str, int, bytes, bytes, int, bool]:
        """Return what entries are sorted by."""
        return (
            self.artifact_id.encode(),
            self.view_id.encode(),
            self.label,
            self.device,
            self.node_id.encode(),
            self.node_address.encode(),
            self.node_port,
            self.available,
        )


def of_replicas(entries: Iterable[Entry]) -> str:
    """Return the digest of a set of replicas; their order does not matter."""
    return of_sorted_texts(entry.text() for entry in sorted(entries, key=Entry.order))


def of_sorted_texts(texts: Iterable[str]) -> str:
    """Return the digest of entries that were written and sorted already."""
    return f"{fnv1a_64(''.join(texts).encode()):016x}"
