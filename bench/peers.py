"""The same HealthCheck on grpcio's own servers: ``peers.py threads`` or ``peers.py asyncio``."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

SERVICE = "tensorcast.global_store.v1.ClusterAdminService"


def handler(behavior: Any) -> grpc.GenericRpcHandler:
    """Return the handler of HealthCheck that answers by ``behavior``."""
    method = grpc.unary_unary_rpc_method_handler(
        behavior,
        request_deserializer=wire.HealthCheckRequest.FromString,
        response_serializer=wire.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"HealthCheck": method})


def answer() -> wire.HealthCheckResponse:
    """Return the answer to HealthCheck."""
    return wire.HealthCheckResponse(status=wire.STATUS_OK, cluster_token="")


def serve_threads() -> None:
    """Serve with grpcio's threads."""
    server = grpc.server(ThreadPoolExecutor(10))
    server.add_generic_rpc_handlers((handler(lambda request, context: answer()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"port={port}", file=sys.stderr, flush=True)
    server.wait_for_termination()


async def serve_asyncio() -> None:
    """Serve with grpcio on asyncio."""

    async def check(request: wire.HealthCheckRequest, context: Any) -> wire.HealthCheckResponse:
        return answer()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(check),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port={port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1:] == ["threads"]:
        serve_threads()
    else:
        asyncio.run(serve_asyncio())
