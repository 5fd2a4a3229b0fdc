"""What the contract of workers speaks of: workers, replicas, answers.

Times are seconds on the clock that nobody sets; wall times are microseconds.
"""

from typing import Any, NamedTuple

import attrs
from purerpc import StatusCode

TIMEOUT_S = 10.0
GRACE_S = 0.8
HEARTBEAT_INTERVAL_MS = 5000
LABELS = {1: "RAM", 2: "GPU"}


class Refused(Exception):
    """The call ends with this code, and has changed nothing."""

    def __init__(self, code: StatusCode) -> None:
        super().__init__(code.name)
        self.code = code


class Identity(NamedTuple):
    """What makes a replica the same one; within one worker all but address and port do."""

    artifact: str
    view: str
    node: str
    address: str
    port: int
    label: str
    device: int

    @property
    def match(self) -> tuple[object, ...]:
        return self[:3] + self[5:]


@attrs.define
class Row:
    """A replica. ``keys`` is the sum of its buffer sizes, 0 for one that nobody can read.

    ``listed_available`` is what was last told of its availability; ``confirmed`` falls when that
    counts no longer: its worker was lost, or the server was.
    """

    owner: str
    order: int
    created_us: int
    listed_available: bool
    size: int
    keys: int
    generation: int
    confirmed: bool = True

    @property
    def available(self) -> bool:
        return self.listed_available and self.confirmed


@attrs.define
class Worker:
    worker_id: str
    daemon_id: str
    registration: Any
    endpoint: tuple[str, int] | None
    accepting: bool
    flags: int
    free: int
    heartbeat_at: float | None
    expires_at: float
    active: bool = True
    generation: int = 1
    process: int = 1
    proven: int = 0
    seq: int = 0
    version: int = 1
    needs_reconcile: bool = False
    reported_checksum: str = ""
    gap_since: float | None = None
    must_register: bool = False
    doubted: bool = False
    prove_by: float | None = None

    def fresh(self, now: float) -> bool:
        return self.active and self.heartbeat_at is not None and now - self.heartbeat_at < TIMEOUT_S


class Reconciled(NamedTuple):
    kind: int
    version: int
    checksum: str
    retry_after_ms: int = 0
    expected: tuple[Identity, ...] = ()
    changes: tuple[tuple[int, Identity, bool], ...] = ()


def usable(keys: int, size: int, key: Identity) -> int:
    """Buffers count when they are as long as the replica, and when it can be reached."""
    return keys if keys == size and key.address and key.port else 0


def identity(artifact: str, info: Any, node: str = "") -> Identity:
    return Identity(
        artifact,
        info.byte_space.id,
        info.node_id or node,
        info.node_address,
        info.node_port,
        LABELS.get(info.memory_type, "DISK"),
        info.device_id,
    )
