"""A small store daemon: the reference for how one talks to the Global Store.

``StoreClient`` is the connection with its retries. ``Daemon`` keeps a worker registered, alive and
in step: ``Inventory`` is what it holds, ``Cursor`` where its reconciles stand, ``Outbox`` what
waits for the store. ``safetensors`` turns a model file into an artifact and ``bytes_server`` moves
its bytes between daemons. All of it knows the wire contract and nothing of the server's inside.
"""

from globalstore.client.store import StoreClient, Unreachable
from globalstore.daemon.daemon import Daemon, Refused, Source
from globalstore.daemon.identity import Identity
from globalstore.daemon.inventory import Held, Inventory
from globalstore.daemon.outbox import OutboxFull
from globalstore.daemon.safetensors import Artifact, Malformed, read_artifact
from globalstore.rpc import RpcFailedError

__all__ = [
    "Artifact",
    "Daemon",
    "Held",
    "Identity",
    "Inventory",
    "Malformed",
    "OutboxFull",
    "Refused",
    "RpcFailedError",
    "Source",
    "StoreClient",
    "Unreachable",
    "read_artifact",
]
