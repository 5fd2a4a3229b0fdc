"""Who a daemon is."""

import attrs


@attrs.frozen
class Identity:
    """Who a daemon is. ``node_address`` is what other machines dial; pool size in bytes."""

    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    pool_bytes: int = 0
