"""A small store daemon: the reference for how one talks to the Global Store.

``StoreClient`` is the connection with its retries, ``Daemon`` keeps a worker registered and alive,
``safetensors`` turns a model file into an artifact and ``bytes_server`` moves its bytes between
daemons. It knows the wire contract and nothing of the server's inside.
"""

from globalstore.daemon.client import StoreClient, Unreachable
from globalstore.daemon.daemon import Daemon, Identity
from globalstore.daemon.safetensors import Artifact, Malformed, read_artifact

__all__ = [
    "Artifact",
    "Daemon",
    "Identity",
    "Malformed",
    "StoreClient",
    "Unreachable",
    "read_artifact",
]
