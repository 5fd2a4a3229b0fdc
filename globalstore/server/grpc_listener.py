"""The gRPC listener as the configuration wants it."""

import math
from typing import Any

import attrs

from globalstore.api.bounds.methods import request_bounds
from globalstore.api.middleware.access_log import AccessLog, log_context
from globalstore.api.middleware.acting import bind
from globalstore.api.middleware.hidden_secrets import hide_secrets
from globalstore.api.middleware.status_codes import status_of
from globalstore.api.middleware.tokens import OPEN_PATHS
from globalstore.api.services import all_services
from globalstore.api.standard.health import ServingStatus
from globalstore.api.standard.reflection import reflection_services
from globalstore.config import GlobalStoreConfig
from globalstore.config.hosts import networks
from globalstore.rpc import Limits, Listener, ListenerOptions
from globalstore.server.components import Components
from globalstore.server.file_limit import FILES_RESERVED
from globalstore.server.tls_files import tls_context


def served(components: Components) -> dict[str, Any]:
    """Return the arguments of ``Listener``, from which every way to take calls is made.

    All health names say NOT_SERVING from then on.
    """
    context, health, tokens = components.context, components.grpc_health, components.tokens
    services = all_services(context)
    if components.callers.are_asked:
        bind(services, components.callers, context)
    if tokens is not None:
        hide_secrets(services, tokens)
    for name in ["", *(service.name for service in services)]:
        health.set(name, ServingStatus.NOT_SERVING)
    offered = [*services, health.service]
    if components.config.server.reflection:
        offered += reflection_services([service.name for service in offered])
    return {
        "services": offered,
        "interceptors": [log_context, context.handler_slots.interceptor],
        "observers": [context.metrics.calls, AccessLog(), *([tokens] if tokens else [])],
        "bounds": request_bounds(components.config),
        "open_paths": OPEN_PATHS,
        "authorize": tokens.authorize if tokens else None,
        "map_error": status_of,
    }


def listener(components: Components) -> Listener:
    """Return the listener with every service, not bound yet. Raises TlsUnusable."""
    config = components.config
    return Listener(**served(components), limits=_limits(config), options=_options(config))


def _limits(config: GlobalStoreConfig) -> Limits:
    bounds = config.server.limits
    limits = Limits(
        message_bytes_max=bounds.max_message_bytes,
        inbound_bytes_max=bounds.max_inbound_buffer_bytes,
        connections_max=bounds.max_connections,
        connections_per_address_max=bounds.max_connections_per_address,
        calls_max=bounds.max_calls,
        calls_per_address_max=bounds.max_calls_per_address,
        held_bytes_max=bounds.max_held_bytes,
        held_bytes_per_address_max=bounds.max_held_bytes_per_address,
    )
    streams = config.server.grpc.max_concurrent_streams
    return attrs.evolve(limits, streams_max=streams) if streams else limits


def _options(config: GlobalStoreConfig) -> ListenerOptions:
    grpc = config.server.grpc
    options = ListenerOptions(
        host=config.server.listen.host,
        port=config.server.listen.port,
        ssl_context=tls_context(config),
        tcp_nodelay=grpc.tcp_nodelay,
        so_reuseport=grpc.so_reuseport,
        files_reserved=FILES_RESERVED,
        proxy_networks=networks(config.server.limits.proxy_networks),
        max_connection_idle=grpc.max_connection_idle or math.inf,
        max_connection_age=grpc.max_connection_age or math.inf,
    )
    if grpc.keepalive_time is not None:
        options = attrs.evolve(options, keepalive_time=grpc.keepalive_time or math.inf)
    if grpc.keepalive_timeout:
        options = attrs.evolve(options, keepalive_timeout=grpc.keepalive_timeout)
    return options
