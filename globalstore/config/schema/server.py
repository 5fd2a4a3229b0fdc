"""Sections ``server`` and ``shutdown``."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

import attrs

from globalstore.config.kinds import Duration, Port, PositiveUInt64, StreamCount, UInt32
from globalstore.config.schema._settings import section, setting


@attrs.frozen
class Listen:
    """Where the server accepts calls."""

    host: str = setting(
        "127.0.0.1",
        "Address to bind. 0.0.0.0 binds every interface for IPv4, :: and * for IPv4 and IPv6; a "
        "name binds every address of this host that it stands for.",
    )
    port: Port = setting(50051, "TCP port; an explicit 0 takes any free port.")


@attrs.frozen
class Advertise:
    """What clients are told to dial."""

    host: str = setting(
        "",
        "Address given to clients when it differs from the bound one (NAT, a service name). It "
        "must be reachable from other machines, so loopback and 0.0.0.0 are refused. Empty: "
        "derived from listen.host, else from the route to the outside.",
    )
    port: Port = setting(0, "Port given to clients; 0: the bound port.")


@attrs.frozen
class Tls:
    """Encryption of the gRPC port."""

    enabled: bool = setting(
        False, "Serve TLS 1.2 or newer only. A plaintext client is then refused."
    )
    cert_file: str = setting("", "PEM certificate chain; required when enabled.")
    key_file: str = setting("", "PEM private key of the certificate; required when enabled.")
    client_ca_file: str = setting(
        "", "PEM authorities. When given, every client must show a certificate one of them signed."
    )
    daemon_id_from_certificate: bool = setting(
        False,
        "Let a client act only for daemons whose id its certificate has as common name (CN) or as "
        "alternative name (DNS or URI), and for what belongs to them. Needs client_ca_file. A full "
        "token is not bound by it.",
    )


@attrs.frozen
class Grpc:
    """The HTTP/2 connections that calls arrive on."""

    max_concurrent_streams: StreamCount = setting(
        0,
        "Calls that may be open at once on one connection, those that only wait included; a client "
        "that has so many holds back the next one, a heartbeat for instance. 0: no bound but the "
        "memory that they hold.",
    )
    keepalive_time: Duration | None = setting(
        None,
        "Ping a connection after this long without traffic, and every 5 s while calls of it wait, "
        "to notice peers that vanished or are frozen. null: 30 s. 0s: no pings, and what such a "
        "peer was handed stays with it until its time is over.",
    )
    keepalive_timeout: Duration | None = setting(
        None, "Close a connection that leaves a ping unanswered this long. null or 0s: 10 s."
    )
    max_connection_idle: Duration = setting(
        0.0, "Close a connection that had no call for this long. 0s: never."
    )
    max_connection_age: Duration = setting(
        0.0,
        "Ask clients to reconnect after this long, up to a tenth more or less for each, so that "
        "they spread anew. 0s: never.",
    )
    tcp_nodelay: bool = setting(
        True,
        "Set TCP_NODELAY: small answers leave at once. Without it some of them take 40 ms more.",
    )
    so_reuseport: bool = setting(
        False,
        "Set SO_REUSEPORT. Two servers on one port split the connections between them, so leave "
        "it off unless something outside makes sure there is only one.",
    )
    tls: Tls = section(Tls, "Encryption of the gRPC port.")


@attrs.frozen
class Auth:
    """Who may call."""

    token_file: str = setting(
        "",
        "File of lines 'full DIGEST', 'read DIGEST' or 'daemon DIGEST ID[,ID...]', where DIGEST is "
        "the SHA-256 of a token; callers then need an 'authorization: Bearer' header. A full token "
        "is the whole cluster; one of a daemon acts for these daemon ids only. Empty: no tokens.",
    )


@attrs.frozen
class ServerLimits:
    """What one client, and all of them together, may make the server hold."""

    max_message_bytes: PositiveUInt64 = setting(
        64 << 20, "Largest message in either direction; the largest index and inventory fit."
    )
    max_answer_bytes: PositiveUInt64 = setting(
        4 << 20,
        "Largest answer of a call that lists without pages; a longer list is refused with "
        "RESOURCE_EXHAUSTED. gRPC's own clients take 4 MiB: raise it when those that list are "
        "told to take more.",
    )
    max_connections: PositiveUInt64 = setting(
        16384, "Connections open at once; one more is closed again."
    )
    max_connections_per_address: PositiveUInt64 = setting(
        1024,
        "Connections of one address; proxy_networks lifts it. At either bound the oldest "
        "connection that never made a call which needs a token is closed for the new one.",
    )
    max_calls: PositiveUInt64 = setting(
        32768,
        "Calls open at once, those that wait included. Beyond it addresses with more than an equal "
        "part are refused with UNAVAILABLE.",
    )
    max_calls_per_address: PositiveUInt64 = setting(
        4096, "Calls of one address open at once; proxy_networks lifts it."
    )
    max_held_bytes: PositiveUInt64 = setting(
        512 << 20,
        "Bytes held for clients in all: calls that arrive, wait or run, 16 KiB each beside their "
        "requests, and answers not yet taken. Beyond it the largest calls of the address that "
        "holds most end with UNAVAILABLE; must hold at least max_held_bytes_per_address.",
    )
    max_held_bytes_per_address: PositiveUInt64 = setting(
        256 << 20,
        "The same for one address, which is refused what it asks for beyond; proxy_networks lifts "
        "it. Must hold at least two messages of max_message_bytes.",
    )
    proxy_networks: tuple[str, ...] = setting(
        (),
        "Networks of proxies, such as [10.0.3.0/24, 'fd00::/64']: many clients come from one "
        "address there, so that the bounds of one address do not apply. Nobody else should be "
        "able to connect from them.",
    )
    max_inbound_buffer_bytes: PositiveUInt64 = setting(
        256 << 20,
        "Bytes of incomplete messages over all connections. Beyond it the largest one is refused "
        "with RESOURCE_EXHAUSTED; must hold at least one message of max_message_bytes.",
    )


@attrs.frozen
class Server:
    """The ports and what stands behind them."""

    listen: Listen = section(Listen, "Where the server accepts calls.")
    advertise: Advertise = section(Advertise, "What clients are told to dial.")
    max_workers: UInt32 = setting(
        10,
        "Handlers running at once; further calls wait in line. Calls that only wait for an event "
        "take no place. An explicit 0: no bound.",
    )
    metrics_port: Port = setting(
        8000,
        "HTTP port of /metrics, /health, /ready and /livez, on listen.host; an explicit 0 takes "
        "any free port.",
    )
    grpc: Grpc = section(Grpc, "The HTTP/2 connections that calls arrive on.")
    reflection: bool = setting(
        True, "Let tools list the services and their messages without the .proto files."
    )
    auth: Auth = section(Auth, "Who may call.")
    limits: ServerLimits = section(ServerLimits, "Bounds on what clients can make it hold.")


@attrs.frozen
class Shutdown:
    """How the server leaves."""

    drain_delay: Duration = setting(
        0.0,
        "Keep accepting this long after the stop signal, already reported not ready, so that load "
        "balancers notice first.",
    )
    grace_period: Duration = setting(
        5.0, "How long calls in flight may still run before they are cut off."
    )
