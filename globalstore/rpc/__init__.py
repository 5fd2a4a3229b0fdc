"""A gRPC listener on trio: HTTP/2 in, handlers of purerpc services out.

It knows nothing of what the services do. Handlers are purerpc's, ``async def Name(self,
message)`` or ``(self, message, request)`` where ``request`` is a ``Call``;
streams are asynchronous iterators.
"""

import globalstore.rpc._h2_events  # noqa: F401  before any import of purerpc, which needs it

# isort: split
from purerpc import Cardinality, RpcFailedError, StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import CallObserver, Handler, Interceptor, fast_path
from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.in_process import CallEnded, InProcess
from globalstore.rpc.limits import Limits
from globalstore.rpc.listener import DrainReport, Listener, Statistics
from globalstore.rpc.method import Method
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.serving import ListenerOptions
from globalstore.rpc.sockets import CannotListen, PortBusy
from globalstore.rpc.status import Abort, Status
from globalstore.rpc.tls import server_context

__all__ = [
    "Abort",
    "Call",
    "CallEnded",
    "CallObserver",
    "CannotListen",
    "Cardinality",
    "DrainReport",
    "FairSlots",
    "Handler",
    "InProcess",
    "Interceptor",
    "Limits",
    "Listener",
    "ListenerOptions",
    "Method",
    "PortBusy",
    "RequestBounds",
    "RpcFailedError",
    "Statistics",
    "Status",
    "StatusCode",
    "fast_path",
    "server_context",
]
