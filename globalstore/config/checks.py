"""Rules between settings, and settings that deserve a warning."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from globalstore.config.advertise import is_loopback, is_unspecified
from globalstore.config.hosts import host_fault, networks
from globalstore.config.kinds import format_duration
from globalstore.config.paths import path_faults, shared_paths
from globalstore.config.rendering import without_effect
from globalstore.config.schema import GlobalStoreConfig

# Below this nobody would ever count as alive: one scheduling delay is longer.
HEARTBEAT_TIMEOUT_MIN_SECONDS: Final = 0.1

# A sweep more often than this would never let the database rest.
SWEEP_INTERVAL_MIN_SECONDS: Final = 0.1

# Leases are cut to the longest allowed; of no length, nobody would ever hold one.
LEASE_TTL_MIN_SECONDS: Final = 0.001

RATIO_SAMPLERS: Final = frozenset({"traceidratio", "parentbased_traceidratio"})
SAMPLERS: Final = RATIO_SAMPLERS | {
    "always_on",
    "always_off",
    "parentbased_always_on",
    "parentbased_always_off",
}

_FORMER_VARIABLES: Final[Mapping[str, str]] = {
    "GLOBAL_STORE_DB_PATH": "database.db_file",
    "GLOBAL_STORE_PORT": "server.listen.port",
    "GLOBAL_STORE_METRICS_PORT": "server.metrics_port",
    "GLOBAL_STORE_OPTIMIZE_INTERVAL_MS": "database.optimize_interval",
    "LOG_LEVEL": "observability.logging.level",
}


@attrs.frozen
class Contradiction:
    """Settings that cannot hold together; the first path is the one to complain about."""

    paths: tuple[str, ...]
    message: str


def contradictions(config: GlobalStoreConfig, source: str) -> Iterator[Contradiction]:
    """Yield every rule that the settings of the file ``source`` break."""
    yield from _ordered(config)
    yield from _intervals(config)
    yield from _addresses(config)
    yield from _paths(config, source)
    yield from _otel(config)
    tls = config.server.grpc.tls
    for name, value in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        if tls.enabled and not value:
            yield Contradiction(
                (f"server.grpc.tls.{name}", "server.grpc.tls.enabled"),
                "required when server.grpc.tls.enabled is true",
            )
    if tls.daemon_id_from_certificate and not (tls.enabled and tls.client_ca_file):
        yield Contradiction(
            ("server.grpc.tls.daemon_id_from_certificate", "server.grpc.tls.client_ca_file"),
            "needs server.grpc.tls.enabled and server.grpc.tls.client_ca_file, or clients show no "
            "certificate",
        )


def _ordered(config: GlobalStoreConfig) -> Iterator[Contradiction]:
    leases, registration = config.limits.operation_leases, config.registration
    polls, limits = config.worker_policy.group_realization, config.server.limits
    group = "worker_policy.group_realization"
    durations = [
        ("limits.operation_leases", "default_ttl", leases.default_ttl, "max_ttl", leases.max_ttl),
        (
            "registration",
            "default_ttl",
            registration.default_ttl,
            "max_ttl",
            registration.max_ttl,
        ),
        (
            "registration",
            "min_ttl",
            registration.min_ttl,
            "default_ttl",
            registration.default_ttl,
        ),
    ]
    for section, low_name, low, high_name, high in durations:
        if low > high:
            yield Contradiction(
                (f"{section}.{low_name}", f"{section}.{high_name}"),
                f"expected at most {section}.{high_name} ({format_duration(high)}), "
                f"found {format_duration(low)}",
            )
    numbers = [
        (
            f"{group}.min_wait_poll_interval_ms",
            polls.min_wait_poll_interval_ms,
            f"{group}.max_wait_poll_interval_ms",
            polls.max_wait_poll_interval_ms,
        ),
        (
            "server.limits.max_message_bytes",
            limits.max_message_bytes,
            "server.limits.max_inbound_buffer_bytes",
            limits.max_inbound_buffer_bytes,
        ),
        (
            "server.limits.max_held_bytes_per_address",
            limits.max_held_bytes_per_address,
            "server.limits.max_held_bytes",
            limits.max_held_bytes,
        ),
    ]
    if limits.max_held_bytes_per_address < 2 * limits.max_message_bytes:
        yield Contradiction(
            ("server.limits.max_held_bytes_per_address", "server.limits.max_message_bytes"),
            "expected at least twice server.limits.max_message_bytes "
            f"({limits.max_message_bytes}), found {limits.max_held_bytes_per_address}",
        )
    for low_path, low_number, high_path, high_number in numbers:
        if low_number > high_number:
            yield Contradiction(
                (low_path, high_path),
                f"expected at most {high_path} ({high_number}), found {low_number}",
            )


def _intervals(config: GlobalStoreConfig) -> Iterator[Contradiction]:
    minima = [
        (
            "worker_policy.heartbeat_timeout",
            config.worker_policy.heartbeat_timeout,
            HEARTBEAT_TIMEOUT_MIN_SECONDS,
        ),
        (
            "database.optimize_interval",
            config.database.optimize_interval,
            SWEEP_INTERVAL_MIN_SECONDS,
        ),
        ("worker_policy.max_lease_ttl", config.worker_policy.max_lease_ttl, LEASE_TTL_MIN_SECONDS),
        ("backup.interval", config.backup.interval, SWEEP_INTERVAL_MIN_SECONDS),
        (
            "registration.sweep_interval",
            config.registration.sweep_interval,
            SWEEP_INTERVAL_MIN_SECONDS,
        ),
    ]
    for path, value, minimum in minima:
        if value < minimum:
            yield Contradiction(
                (path,),
                f"expected at least {format_duration(minimum)}, found {format_duration(value)}",
            )


def _addresses(config: GlobalStoreConfig) -> Iterator[Contradiction]:
    server = config.server
    advertised = server.advertise.host.strip("[] ")
    if advertised and (is_loopback(advertised) or is_unspecified(advertised)):
        yield Contradiction(
            ("server.advertise.host",),
            f"expected an address that other machines can reach, found {server.advertise.host!r}",
        )
    elif advertised and (fault := host_fault(advertised)) is not None:
        yield Contradiction(("server.advertise.host",), fault)
    if (fault := host_fault(server.listen.host)) is not None:
        yield Contradiction(("server.listen.host",), fault)
    try:
        networks(server.limits.proxy_networks)
    except ValueError as error:
        yield Contradiction(("server.limits.proxy_networks",), str(error))
    if server.metrics_port and server.metrics_port == server.listen.port:
        yield Contradiction(
            ("server.metrics_port", "server.listen.port"),
            f"expected another port than server.listen.port ({server.listen.port})",
        )


def _paths(config: GlobalStoreConfig, source: str) -> Iterator[Contradiction]:
    faulty = set()
    for key, fault in path_faults(config):
        faulty.add(key)
        yield Contradiction((key,), fault)
    for written, key, place in shared_paths(config, source):
        if faulty.isdisjoint((written, key)):
            meant = f"{key} names" if key else "this configuration is"
            yield Contradiction(
                tuple(filter(None, (written, key))),
                f"expected a file of its own, found {place}, which {meant} too",
            )


def _otel(config: GlobalStoreConfig) -> Iterator[Contradiction]:
    otel = config.observability.otel
    path = "observability.otel"
    if not otel.enabled:
        return
    if otel.sampler and otel.sampler not in SAMPLERS:
        yield Contradiction(
            (f"{path}.sampler", f"{path}.enabled"),
            f"expected one of {', '.join(sorted(SAMPLERS))}, found {otel.sampler!r}",
        )
    if otel.sampler_arg and not _is_ratio(otel.sampler_arg):
        yield Contradiction(
            (f"{path}.sampler_arg", f"{path}.enabled"),
            f"expected a ratio from 0 to 1, found {otel.sampler_arg!r}",
        )


def _is_ratio(text: str) -> bool:
    return re.fullmatch(r"[0-9]{0,20}\.?[0-9]{1,20}", text) is not None and 0 <= float(text) <= 1


def warnings(config: GlobalStoreConfig) -> list[str]:
    """Return what is allowed and yet likely a mistake, one line each.

    The check of a file says the same as the start.
    """
    found = []
    policy, server = config.worker_policy, config.server
    if policy.default_heartbeat_interval >= policy.heartbeat_timeout:
        found.append(
            "worker_policy.default_heartbeat_interval "
            f"({format_duration(policy.default_heartbeat_interval)}) is not below "
            f"worker_policy.heartbeat_timeout ({format_duration(policy.heartbeat_timeout)}): "
            "workers expire between two heartbeats"
        )
    if config.database.path is None:
        found.append("database.db_file is not set: everything is in memory and lost at exit")
    if not server.grpc.tls.enabled and not is_loopback(server.listen.host):
        found.append(
            f"server.listen.host is {server.listen.host} and server.grpc.tls.enabled is false: "
            "calls travel unencrypted beyond this machine"
        )
    tls = server.grpc.tls
    for name, result in (
        ("cert_file", "calls travel unencrypted"),
        ("key_file", "calls travel unencrypted"),
        ("client_ca_file", "client certificates are not asked for"),
    ):
        if not tls.enabled and getattr(tls, name):
            found.append(
                f"server.grpc.tls.{name} is set but server.grpc.tls.enabled is false: {result}"
            )
    if idle := without_effect(config):
        found.append(f"settings without effect in this version: {' '.join(idle)}")
    return found


def environment_warnings(environ: Mapping[str, str]) -> list[str]:
    """Return a warning if variables are set that earlier versions took as settings, else nothing.

    It is one line that names each variable and the key to use instead, never a value.
    """
    present = [name for name in _FORMER_VARIABLES if name in environ]
    if not present:
        return []
    uses = ", ".join(f"{name} (use {_FORMER_VARIABLES[name]})" for name in present)
    return [f"environment variables are not settings and change nothing: {uses}"]
