"""The client of commands: against grpcio's server, and against peers that do anything."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest

from globalstore.client import blocking
from globalstore.client.blocking import BlockingConnection, CallFailed
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.rpc import blocks, frames

METHOD = admin.DESCRIPTOR.services_by_name["AdminService"].methods_by_name["ShowKey"]
PATH = "/globalstore.admin.v1.AdminService/ShowKey"
REQUEST = admin.ShowKeyRequest(key="k")
ANSWER = admin.ShowKeyResponse(key=admin.KeyRecord(key="k", generation=7))

# As long as a test may take that does not wait for it to end.
PATIENCE_S = 30.0


def connected(port: int, patience_s: float = PATIENCE_S, *metadata: Any) -> BlockingConnection:
    return BlockingConnection("127.0.0.1", port, None, metadata, patience_s)


@contextmanager
def grpcio(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[int]:
    """A server of grpcio with one method; the block gets its port."""
    handler = grpc.unary_unary_rpc_method_handler(answer)
    service, _, method = PATH[1:].partition("/")
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {method: handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@contextmanager
def peer(*answers: bytes, closes: bool = True) -> Iterator[int]:
    """A peer that reads a request's bytes and sends what it is given, whatever was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            with listener.accept()[0] as stream:
                stream.recv(1 << 16)
                # The other side may leave before it has been sent everything.
                with suppress(OSError):
                    for each in answers:
                        stream.sendall(each)
                    if closes:
                        # Not before the other side has read, or it would only see a reset.
                        stream.shutdown(socket.SHUT_WR)
                done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()


def framed(message: Any) -> bytes:
    serialized = message.SerializeToString()
    return b"\x00" + len(serialized).to_bytes(4, "big") + serialized


SETTINGS = frames.settings(())
HEAD = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, blocks.RESPONSE)
DATA = frames.frame(frames.DATA, 0, 1, framed(ANSWER))


def trailers(code: int, message: str = "") -> bytes:
    flags = frames.END_HEADERS | frames.END_STREAM
    return frames.frame(frames.HEADERS, flags, 1, blocks.trailers_block(code, message, ()))


def test_calls_follow_one_another_on_a_connection() -> None:
    seen = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        seen.append((admin.ShowKeyRequest.FromString(request).key, metadata["authorization"]))
        return ANSWER.SerializeToString()

    with (
        grpcio(answer) as port,
        connected(port, PATIENCE_S, ("authorization", "Bearer secret")) as connection,
    ):
        for key in ("a", "b", "c"):
            assert connection.call(METHOD, admin.ShowKeyRequest(key=key)) == ANSWER
    assert seen == [(key, "Bearer secret") for key in ("a", "b", "c")]


def test_messages_are_longer_than_any_window_or_frame() -> None:
    long = "x" * 1_000_000

    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        key = admin.ShowKeyRequest.FromString(request).key
        return admin.ShowKeyResponse(key=admin.KeyRecord(key=key)).SerializeToString()

    with grpcio(answer) as port, connected(port) as connection:
        for _ in range(3):
            assert connection.call(METHOD, admin.ShowKeyRequest(key=long)).key.key == long


def test_an_error_has_its_name_and_its_text_and_spares_the_connection() -> None:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if admin.ShowKeyRequest.FromString(request).key == "k":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % not “ready”\n")
        return ANSWER.SerializeToString()

    with grpcio(answer) as port, connected(port) as connection:
        with pytest.raises(CallFailed) as failed:
            connection.call(METHOD, REQUEST)
        assert (failed.value.status, failed.value.message) == (
            "FAILED_PRECONDITION",
            "100 % not “ready”\n",
        )
        assert connection.call(METHOD, admin.ShowKeyRequest(key="other")) == ANSWER


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_every_status_has_the_name_that_grpc_gives_it(code: grpc.StatusCode) -> None:
    number = code.value[0]
    if code is grpc.StatusCode.OK:
        return
    with peer(SETTINGS, HEAD, trailers(number, "why")) as port, connected(port) as connection:
        with pytest.raises(CallFailed) as failed:
            connection.call(METHOD, REQUEST)
        assert (failed.value.status, failed.value.message) == (code.name, "why")


def test_frames_may_come_in_pieces_padded_and_with_others_between() -> None:
    block, message = blocks.RESPONSE, framed(ANSWER)
    priority = bytes(5)
    answer = b"".join(
        (
            frames.settings(((4, 100),)),
            frames.frame(frames.SETTINGS, frames.ACK, 0),
            frames.ping(b"12345678"),
            frames.frame(
                frames.HEADERS, frames.PADDED | frames.PRIORITY_FLAG, 1,
                b"\x02" + priority + block[:3] + b"\0\0",
            ),
            frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[3:]),
            frames.frame(77, 0, 0, b"of a type that nobody knows"),
            frames.frame(frames.DATA, frames.PADDED, 1, b"\x03" + message[:4] + b"\0\0\0"),
            frames.frame(frames.DATA, 0, 1, b""),
            frames.frame(frames.DATA, 0, 1, message[4:]),
            trailers(0),
        )
    )  # fmt: skip
    pieces = [answer[start : start + 7] for start in range(0, len(answer), 7)]
    with peer(*pieces) as port, connected(port) as connection:
        assert connection.call(METHOD, REQUEST) == ANSWER


@pytest.mark.parametrize(
    ("answers", "fragment"),
    [
        ((), "the connection ended before the answer came"),
        ((SETTINGS, HEAD), "the connection ended before the answer came"),
        ((SETTINGS, HEAD, DATA[:-1]), "the connection ended before the answer came"),
        ((SETTINGS, frames.rst_stream(1, 2)), "the server broke the call off"),
        ((SETTINGS, frames.goaway(0, 0)), "leaving and has not taken the call"),
        (
            (SETTINGS, frames.goaway(1, 0), HEAD, DATA, trailers(0)),
            "leaving, and what became of the call is not known",
        ),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "no gRPC, but something else"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "no gRPC, but something else"),
        (
            (SETTINGS, frames.frame(1, 5, 1, blocks.http_status_block(405))),
            "no gRPC, but HTTP status 405",
        ),
        ((SETTINGS, frames.frame(1, 5, 1, b"\xff\xff\xff\xff")), "broken HTTP/2"),
        (
            (SETTINGS, frames.frame(1, 1, 1, b"x"), frames.frame(9, 0, 1, bytes(1)) * 100),
            "broken HTTP/2",
        ),
        ((SETTINGS, frames.frame(8, 0, 0, b"")), "broken HTTP/2"),
        ((SETTINGS, frames.frame(7, 0, 0, b"")), "broken HTTP/2"),
        ((SETTINGS, b"\xff\xff\xff" + bytes(6)), "broken HTTP/2"),
        ((SETTINGS, HEAD, frames.frame(0, 1, 1, framed(ANSWER))), "the answer has no status"),
        ((SETTINGS, HEAD, trailers(0)), "the answer is not one plain message"),
        ((SETTINGS, HEAD, DATA, DATA, trailers(0)), "the answer is not one plain message"),
        (
            (SETTINGS, HEAD, frames.frame(0, 0, 1, b"\0\0\0\0\1\xff"), trailers(0)),
            "the answer is no ShowKeyResponse",
        ),
    ],
)
def test_a_peer_that_does_not_answer_is_an_os_error_that_says_why(
    answers: tuple[bytes, ...], fragment: str
) -> None:
    with (
        peer(*answers) as port,
        connected(port) as connection,
        pytest.raises(OSError, match=fragment),
    ):
        connection.call(METHOD, REQUEST)


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "ANSWER_BYTES_MAX", 1000)
    endless = frames.frame(frames.DATA, 0, 1, bytes(600))
    with (
        peer(SETTINGS, HEAD, endless, endless) as port,
        connected(port) as connection,
        pytest.raises(OSError, match="longer than 1000 bytes"),
    ):
        connection.call(METHOD, REQUEST)


@pytest.mark.parametrize("answers", [(), (SETTINGS,), (SETTINGS, HEAD, DATA)])
def test_a_silent_peer_takes_all_patience_and_no_more(answers: tuple[bytes, ...]) -> None:
    with peer(*answers, closes=False) as port, connected(port, 0.2) as connection:
        with pytest.raises(TimeoutError) as late:
            connection.call(METHOD, REQUEST)
        assert late.value.errno is None


def test_nobody_listens_at_any_of_the_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="Connection refused"):
        connected(port)


def test_a_resolver_that_does_not_answer_takes_all_patience_and_no_more(monkeypatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [answer.wait()])
    with pytest.raises(TimeoutError) as late:
        connected(1, 0.05)
    assert late.value.errno is None
    answer.set()


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "host.invalid", "\ud800"])
def test_what_names_no_host_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011 (what the resolver says is the system's)
        BlockingConnection(host, 1, None, (), 10)
