"""Spread a safetensors file over three daemons that run in this process.

The daemons register with a running server. The first offers the file; the others ask the server
for a source, pull the bytes from whom they are sent to, verify them, and offer them in turn. The
server never sees a byte of it.
"""

import argparse
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import trio

from globalstore.cli import connecting, exit_codes, output
from globalstore.cli.connecting import Address
from globalstore.client.blocking import BlockingConnection
from globalstore.client.store import Unreachable
from globalstore.daemon import (
    Artifact,
    Daemon,
    Identity,
    Malformed,
    RpcFailedError,
    StoreClient,
    read_artifact,
)
from globalstore.daemon.bytes_server import BytesServer, TransferFailed, fetch
from globalstore.daemon.daemon import Refused, Source
from globalstore.daemon.safetensors import write_sample
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.host import causes

_DAEMONS = 3

_HEALTH_CHECK = wire.DESCRIPTOR.services_by_name["ClusterAdminService"].methods_by_name[
    "HealthCheck"
]

# The demo waits this long for the server to take a connection, at first and again, in seconds.
_CONNECT_S = 5.0

# A daemon waits this long for its turn at a source, and tries so many sources.
_PATIENCE_S = 60.0
_TRIES = 3

_CHUNK_BYTES = 1 << 20

# 16 MB in two tensors: long enough to see the daemons take turns.
_SAMPLE_ELEMENTS = 2_000_000


class _Failed(Exception):
    """The demo did not come to its end; the text says why."""

    def __init__(self, text: str, code: int = exit_codes.NOT_SO) -> None:
        super().__init__(text)
        self.code = code


# What ends the demo with a line instead of a traceback, and the exit code.
_FORESEEN: dict[type[BaseException], int] = {
    Refused: exit_codes.REFUSED,
    RpcFailedError: exit_codes.REFUSED,
    Unreachable: exit_codes.UNANSWERED,
    output.NotWritten: exit_codes.UNWRITTEN,
    # Of the folder for the bytes, its disk, or the sockets between the daemons.
    OSError: exit_codes.NOT_SO,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    connecting.tell_exit_codes(parser)
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE.safetensors",
        help="the model file; without one, 16 MB of random numbers serve",
    )
    parser.add_argument(
        "--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the daemons alive at the end, until Ctrl-C"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when every daemon has the verified bytes."""
    try:
        host, port = connecting.host_and_port(arguments.server)
    except connecting.Unusable as error:
        return connecting.fail("demo", str(error), exit_codes.USAGE)
    # Daemons wait for a server for ever; who starts a demo wants to know that there is none.
    if code := connecting.converse("demo", Address(host, port, None, ""), _is_there):
        return code
    try:
        trio.run(_demo, arguments.file, host, port, arguments.keep, strict_exception_groups=True)
    except BaseException as error:
        found = list(causes(error))
        if any(isinstance(cause, KeyboardInterrupt) for cause in found):
            return exit_codes.INTERRUPTED
        codes = [known for cause in found if (known := _code(cause)) is not None]
        if len(codes) < len(found):
            raise
        return connecting.fail("demo", str(found[0]), codes[0])
    return exit_codes.DONE


def _is_there(server: BlockingConnection) -> int:
    server.call(_HEALTH_CHECK, wire.HealthCheckRequest())
    return exit_codes.DONE


def _code(error: BaseException) -> int | None:
    """Return the exit code for an error that was foreseen, None for any other."""
    if isinstance(error, _Failed):
        return error.code
    return next((code for kind, code in _FORESEEN.items() if isinstance(error, kind)), None)


@attrs.define(eq=False)
class _Node:
    """A daemon, what it serves bytes with, and where the others reach it."""

    name: str
    daemon: Daemon
    client: StoreClient
    server: BytesServer
    folder: Path


def _say(name: str, text: str) -> None:
    output.say(f"{name:<9} {text}")


async def _demo(file: Path | None, host: str, port: int, keep: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        artifact = await trio.to_thread.run_sync(_read, file, Path(folder))
        _say("file", f"{len(artifact.tensors)} tensors, {artifact.size:,} bytes")
        _say("artifact", artifact.artifact_id)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as watching:
                # The store refuses loopback addresses, which mean another machine to everybody who
                # reads them. So the daemons advertise names that only they resolve.
                ports: dict[str, int] = {}
                clients = [StoreClient(host, port) for _ in range(_DAEMONS)]
                for client in clients:
                    with trio.move_on_after(_CONNECT_S) as patience:
                        await nursery.start(client.run)
                    if patience.cancelled_caught:
                        raise _gone(host, port)
                    watching.start_soon(_watch, client, host, port)
                nodes = [
                    await _start(nursery, number, Path(folder), client, ports)
                    for number, client in enumerate(clients, 1)
                ]
                await _offer(nodes[0], artifact, artifact.stream)
                async with trio.open_nursery() as pulling:
                    for node in nodes[1:]:
                        pulling.start_soon(_pull, node, artifact, ports)
                await _show(nodes[0], artifact)
                watching.cancel_scope.cancel()
            if keep:
                _say("daemons", "kept alive; Ctrl-C ends them")
                await trio.sleep_forever()
            for node in nodes:
                await node.daemon.leave()
            nursery.cancel_scope.cancel()
    _say("done", f"{_DAEMONS} daemons held the same verified bytes, and left")


def _read(file: Path | None, folder: Path) -> Artifact:
    if file is None:
        file = folder / "sample.safetensors"
        write_sample(file, _SAMPLE_ELEMENTS)
    try:
        return read_artifact(file)
    except Malformed as error:
        text = f"{file} is not a safetensors file: {error}"
        raise _Failed(text, exit_codes.USAGE) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _Failed(f"{file} cannot be read: {reason}", exit_codes.USAGE) from None


async def _start(
    nursery: trio.Nursery, number: int, folder: Path, client: StoreClient, ports: dict[str, int]
) -> _Node:
    name = f"daemon-{number}"
    address = f"{name}.{secrets.token_hex(4)}.demo"
    server = BytesServer()
    ports[address] = await nursery.start(server.serve, "127.0.0.1")
    identity = Identity(
        daemon_id=address,
        node_id=name,
        node_address=address,
        grpc_port=ports[address],
        p2p_port=ports[address],
        pool_bytes=shutil.disk_usage(folder).free,
    )
    daemon = Daemon(client, identity, on_event=partial(_say, name))
    await nursery.start(daemon.run)
    return _Node(name, daemon, client, server, folder)


async def _watch(client: StoreClient, host: str, port: int) -> None:
    """Fail when the server is gone: daemons would wait for it for ever."""
    while True:
        number = client.connections
        await client.broken()
        with trio.move_on_after(_CONNECT_S) as patience:
            await client.newer_than(number)
        if patience.cancelled_caught:
            raise _gone(host, port)


def _gone(host: str, port: int) -> _Failed:
    return _Failed(f"the server at {host}:{port} has gone", exit_codes.UNANSWERED)


async def _offer(node: _Node, artifact: Artifact, stream: Callable[[], Iterator[bytes]]) -> None:
    # One transport at a time, so that the third daemon has to wait for its turn.
    key = secrets.token_hex(20)
    node.server.streams[key] = (artifact.size, stream)
    await node.daemon.offer(artifact, max_concurrency=1, memory_key=key)
    _say(node.name, "offers a replica in RAM")


async def _pull(node: _Node, artifact: Artifact, ports: dict[str, int]) -> None:
    """Get the bytes from the source that the store names, and offer them in turn."""
    for _ in range(_TRIES):
        source = await node.daemon.claim(artifact.artifact_id, _PATIENCE_S)
        if source is None:
            raise _Failed(f"{node.name}: no source within {_PATIENCE_S:.0f} s")
        _say(node.name, f"may read from {source.node_id} (transport {source.transport_id})")
        target = node.folder / node.name
        try:
            began = trio.current_time()
            await _fetch(node, artifact, source, ports, target)
            seconds = max(trio.current_time() - began, 1e-6)
        except TransferFailed as error:
            _say(node.name, f"transfer failed: {error}")
            await node.daemon.complete(source, False, str(error))
            continue
        await node.daemon.complete(source, True)
        rate = artifact.size / seconds / 1e6
        _say(node.name, f"verified {artifact.size:,} bytes ({rate:,.0f} MB/s)")
        await _offer(node, artifact, partial(_chunks, target))
        return
    raise _Failed(f"{node.name}: {_TRIES} transfers failed")


async def _fetch(
    node: _Node, artifact: Artifact, source: Source, ports: dict[str, int], target: Path
) -> None:
    done = 0
    shown = 0

    def show(size: int) -> None:
        nonlocal done, shown
        done += size
        quarter = 4 * done // artifact.size
        if quarter > shown:
            shown = quarter
            _say(node.name, f"{25 * quarter:3d} % of {artifact.size:,} bytes")

    port = ports.get(source.node_address)
    if port is None:
        raise TransferFailed(f"{source.node_address} is not a daemon of this demo")
    await fetch("127.0.0.1", port, source.memory_key, artifact.data_multihash, target, show)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


async def _show(node: _Node, artifact: Artifact) -> None:
    answer = await node.client.call(
        "runtime",
        "BatchGetReplicaCounts",
        wire.BatchGetReplicaCountsRequest(artifact_ids=[artifact.artifact_id]),
        timeout_s=5,
        repeatable=True,
    )
    counted = answer.counts[0]
    _say("store", f"{counted.replica_count} replicas, {counted.available_count} available")
