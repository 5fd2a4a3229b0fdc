"""The identity of a daemon."""

import attrs


@attrs.frozen
class Identity:
    """How a daemon registers. ``node_address`` is what other machines dial; pool size in bytes."""

    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    pool_bytes: int = 0
