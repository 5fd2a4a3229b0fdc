"""Rules between settings, warnings, and what a launcher may override."""

import pytest
from config_files import load_document, merged, nested, problems_of

from globalstore.config import GlobalStoreConfig, environment_warnings, not_built, without_effect
from globalstore.config import warnings as warnings_of

POLLS = "worker_policy.group_realization"


@pytest.mark.parametrize(
    ("first", "second", "blamed"),
    [
        (
            ("limits.operation_leases.default_ttl", "10s"),
            ("limits.operation_leases.max_ttl", "5s"),
            "limits.operation_leases.default_ttl",
        ),
        (
            ("registration.default_ttl", "10s"),
            ("registration.max_ttl", "5s"),
            "registration.default_ttl",
        ),
        (
            ("registration.min_ttl", "10s"),
            ("registration.default_ttl", "5s"),
            "registration.min_ttl",
        ),
        (
            (f"{POLLS}.min_wait_poll_interval_ms", 10),
            (f"{POLLS}.max_wait_poll_interval_ms", 5),
            f"{POLLS}.min_wait_poll_interval_ms",
        ),
        (
            ("server.limits.max_message_bytes", 10),
            ("server.limits.max_inbound_buffer_bytes", 5),
            "server.limits.max_message_bytes",
        ),
        (
            ("server.limits.max_held_bytes_per_address", 600 << 20),
            ("server.limits.max_held_bytes", 500 << 20),
            "server.limits.max_held_bytes_per_address",
        ),
    ],
)
def test_the_lower_bound_above_the_upper_is_an_error(tmp_path, first, second, blamed):
    document = merged(nested(*first), nested(*second))
    [problem] = problems_of(tmp_path, document)
    assert problem.startswith(f"{blamed}: expected at most {second[0]}")
    equal = merged(nested(*first), nested(second[0], first[1]))
    assert problems_of(tmp_path, equal) == []


def test_a_bound_broken_through_the_other_ones_default_names_a_line(tmp_path):
    [problem] = problems_of(tmp_path, {"limits": {"operation_leases": {"max_ttl": "5s"}}})
    assert problem == (
        "limits.operation_leases.default_ttl: expected at most limits.operation_leases.max_ttl"
        " (5s), found 30s (line 1)"
    )


def test_an_unreadable_bound_causes_no_second_complaint(tmp_path):
    leases = {"default_ttl": "10s", "max_ttl": "soon"}
    [problem] = problems_of(tmp_path, {"limits": {"operation_leases": leases}})
    assert problem.startswith("limits.operation_leases.max_ttl: expected a duration")


@pytest.mark.parametrize("timeout", ["0s", "0.099s", "-5s"])
def test_a_heartbeat_timeout_nobody_could_meet_is_an_error(tmp_path, timeout):
    [problem] = problems_of(tmp_path, {"worker_policy": {"heartbeat_timeout": timeout}})
    assert problem.startswith("worker_policy.heartbeat_timeout: expected at least 0.1s")


def test_the_share_of_an_address_holds_two_messages(tmp_path):
    limits = {"max_message_bytes": 1000, "max_held_bytes_per_address": 1999}
    [problem] = problems_of(tmp_path, {"server": {"limits": limits}})
    assert problem.startswith(
        "server.limits.max_held_bytes_per_address: expected at least twice"
        " server.limits.max_message_bytes (1000), found 1999"
    )


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0.0/33", "proxy.local", ""])
def test_the_networks_of_proxies_are_networks(tmp_path, text):
    [problem] = problems_of(tmp_path, nested("server.limits.proxy_networks", [text]))
    assert problem.startswith("server.limits.proxy_networks: expected networks such as 10.0.3.0/24")


def test_networks_of_proxies_may_be_several_and_single_addresses(tmp_path):
    names = ["10.0.0.7", "fd00::/64"]
    assert problems_of(tmp_path, nested("server.limits.proxy_networks", names)) == []


def test_a_heartbeat_timeout_of_a_tenth_of_a_second_is_accepted(tmp_path):
    config = load_document(tmp_path, {"worker_policy": {"heartbeat_timeout": "0.1s"}})
    assert config.worker_policy.heartbeat_timeout == 0.1


@pytest.mark.parametrize(
    "path", ["database.optimize_interval", "backup.interval", "registration.sweep_interval"]
)
def test_a_pass_that_would_never_rest_is_an_error(tmp_path, path):
    [problem] = problems_of(tmp_path, nested(path, "0s"))
    assert problem.startswith(f"{path}: expected at least 0.1s")


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({}, ["cert_file", "key_file"]),
        ({"cert_file": "c.pem"}, ["key_file"]),
        ({"key_file": "k.pem"}, ["cert_file"]),
        ({"client_ca_file": "ca.pem"}, ["cert_file", "key_file"]),
        ({"cert_file": "c.pem", "key_file": "k.pem"}, []),
    ],
)
def test_tls_needs_a_certificate_and_a_key(tmp_path, files, missing):
    document = {"server": {"grpc": {"tls": files | {"enabled": True}}}}
    problems = problems_of(tmp_path, document)
    assert [problem.partition(":")[0] for problem in problems] == [
        f"server.grpc.tls.{name}" for name in missing
    ]


@pytest.mark.parametrize(
    "path", ["server.listen.port", "server.advertise.port", "server.metrics_port"]
)
def test_a_port_ends_at_65535(tmp_path, path):
    assert problems_of(tmp_path, nested(path, 65535)) == []
    [problem] = problems_of(tmp_path, nested(path, 65536))
    assert problem.startswith(f"{path}: expected a port from 0 to 65535")


@pytest.mark.parametrize("ratio", [-0.01, 1.01, 2])
def test_the_fairness_floor_is_a_share(tmp_path, ratio):
    path = "worker_policy.transport_scheduler.group_dispatch.fairness_floor_ratio"
    [problem] = problems_of(tmp_path, nested(path, ratio))
    assert problem.startswith(f"{path}: expected a number from 0 to 1")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
def test_a_weight_is_finite(tmp_path, value):
    text = (
        "worker_policy: {transport_scheduler: {source_balance_weights: "
        f"{{replica_load_weight: {value}}}}}}}"
    )
    [problem] = problems_of(tmp_path, text)
    assert "replica_load_weight: expected a finite number of at least 0" in problem


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.8.8",
        "localhost",
        "LOCALHOST.",
        "::1",
        "[::1]",
        "0.0.0.0",
        "::",
        "*",
        "127.1",
        "0",
        "::ffff:127.0.0.1",
        " 127.0.0.1 ",
    ],
)
def test_an_advertised_host_others_cannot_reach_is_an_error(tmp_path, host):
    [problem] = problems_of(tmp_path, {"server": {"advertise": {"host": host}}})
    assert problem.startswith("server.advertise.host: expected an address that other machines")


@pytest.mark.parametrize("host", ["10.0.0.7", "store.example", "2001:db8::1", "[2001:db8::1]"])
def test_a_reachable_advertised_host_is_accepted(tmp_path, host):
    config = load_document(tmp_path, {"server": {"advertise": {"host": host}}})
    assert config.server.advertise.host == host


@pytest.mark.parametrize("host", ["", "  "])
def test_a_listen_host_must_be_said(tmp_path, host):
    [problem] = problems_of(tmp_path, {"server": {"listen": {"host": host}}})
    assert problem.startswith("server.listen.host: expected an address such as")


@pytest.mark.parametrize(
    ("settings", "blamed"),
    [
        ({"sampler": "sometimes"}, "sampler"),
        ({"sampler": "traceidratio", "sampler_arg": "half"}, "sampler_arg"),
        ({"sampler": "traceidratio", "sampler_arg": "1.5"}, "sampler_arg"),
        ({"sampler": "parentbased_traceidratio", "sampler_arg": "nan"}, "sampler_arg"),
        ({"sampler": "parentbased_traceidratio", "sampler_arg": "-0.5"}, "sampler_arg"),
    ],
)
def test_tracing_settings_count_only_when_tracing_is_on(tmp_path, settings, blamed):
    on = {"observability": {"otel": settings | {"enabled": True}}}
    [problem] = problems_of(tmp_path, on)
    assert problem.startswith(f"observability.otel.{blamed}: expected")
    assert problems_of(tmp_path, {"observability": {"otel": settings}}) == []


@pytest.mark.parametrize("argument", ["", "0", "1", "1.0", "0.25", ".5"])
@pytest.mark.parametrize(
    "sampler",
    [
        "",
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ],
)
def test_known_samplers_and_ratios_are_accepted(tmp_path, sampler, argument):
    otel = {"enabled": True, "sampler": sampler, "sampler_arg": argument}
    assert problems_of(tmp_path, {"observability": {"otel": otel}}) == []


def test_heartbeats_as_rare_as_the_timeout_earn_a_warning(tmp_path):
    document = {"worker_policy": {"default_heartbeat_interval": "30s"}}
    warnings = warnings_of(load_document(tmp_path, document))
    assert any(w.startswith("worker_policy.default_heartbeat_interval (30s)") for w in warnings)
    assert not any("heartbeat" in warning for warning in warnings_of(GlobalStoreConfig()))


def test_a_database_in_memory_earns_a_warning(tmp_path):
    [warning] = warnings_of(GlobalStoreConfig())
    assert warning.startswith("database.db_file is not set")
    assert warnings_of(load_document(tmp_path, {"database": {"db_file": "x.db"}})) == []
    assert warnings_of(load_document(tmp_path, {"database": {"db_file": ""}})) == [warning]


def test_plaintext_beyond_this_machine_earns_a_warning(tmp_path):
    document = {"database": {"db_file": "x.db"}, "server": {"listen": {"host": "0.0.0.0"}}}
    [warning] = warnings_of(load_document(tmp_path, document))
    assert warning.startswith("server.listen.host is 0.0.0.0 and server.grpc.tls.enabled is false")
    tls = {"enabled": True, "cert_file": "c", "key_file": "k"}
    document["server"]["grpc"] = {"tls": tls}
    assert warnings_of(load_document(tmp_path, document)) == []


@pytest.mark.parametrize("files", [{}, {"client_ca_file": "a"}, {"enabled": True}])
def test_names_of_certificates_need_certificates(tmp_path, files):
    pair = {"cert_file": "c", "key_file": "k", "daemon_id_from_certificate": True}
    (problem,) = problems_of(tmp_path, {"server": {"grpc": {"tls": pair | files}}})
    assert problem.startswith("server.grpc.tls.daemon_id_from_certificate: needs ")


def test_client_certificates_without_tls_earn_a_warning(tmp_path):
    document = {
        "database": {"db_file": "x.db"},
        "server": {"grpc": {"tls": {"client_ca_file": "ca.pem"}}},
    }
    [warning] = warnings_of(load_document(tmp_path, document))
    assert warning.startswith("server.grpc.tls.client_ca_file is set")


FORMER = {
    "GLOBAL_STORE_DB_PATH": "database.db_file",
    "GLOBAL_STORE_PORT": "server.listen.port",
    "GLOBAL_STORE_METRICS_PORT": "server.metrics_port",
    "GLOBAL_STORE_OPTIMIZE_INTERVAL_MS": "database.optimize_interval",
    "LOG_LEVEL": "observability.logging.level",
}


@pytest.mark.parametrize("name", FORMER)
def test_a_former_variable_is_named_with_its_key_and_without_its_value(name):
    [warning] = environment_warnings({name: "s3cret", "PATH": "/bin"})
    assert f"{name} (use {FORMER[name]})" in warning
    assert "s3cret" not in warning


def test_all_former_variables_share_one_warning():
    [warning] = environment_warnings(dict.fromkeys(FORMER, ""))
    assert all(name in warning for name in FORMER)
    assert environment_warnings({"PATH": "/bin", "GLOBAL_STORE": "x"}) == []


def test_a_launcher_may_choose_the_addresses():
    config = GlobalStoreConfig().with_listen(host="0.0.0.0", port=-1, metrics_port=9000)
    assert config.server.listen.host == "0.0.0.0"
    assert config.server.listen.port == 0
    assert config.server.metrics_port == 9000
    assert GlobalStoreConfig().with_listen() == GlobalStoreConfig()
    with pytest.raises(ValueError, match="65536"):
        GlobalStoreConfig().with_listen(port=65536)


@pytest.mark.parametrize("longest", ["0s", "0.0009s"])
def test_a_longest_lease_of_no_length_is_an_error(tmp_path, longest):
    [problem] = problems_of(tmp_path, nested("worker_policy.max_lease_ttl", longest))
    assert problem.startswith("worker_policy.max_lease_ttl: expected at least 0.001s")


def test_settings_without_effect_are_listed_when_they_are_changed(tmp_path):
    paths = ("limits.retention.operations_ttl", "worker_policy.control_reducer.coalesce_window")
    document = merged(*(nested(path, "1s") for path in paths), nested("backup.keep_last", 3))
    in_use = nested("worker_policy.control_reducer.shard_count", 4)
    listed = without_effect(load_document(tmp_path, merged(document, in_use)))
    assert sorted(listed) == ["backup.keep_last", *paths]
    assert without_effect(GlobalStoreConfig()) == []


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("[::1]", "write ::1, without brackets"),
        ("[::1]:50051", "write ::1 here"),
        ("127.0.0.1:50051", "the port has a key of its own; write 127.0.0.1 here"),
        ("http://127.0.0.1", "not a URL"),
        (" 127.0.0.1", "without white space"),
        ("999.1.1.1", "no IPv4 address"),
        ("10.0.0.256", "no IPv4 address"),
        ("1:2:3", "no IPv6 address"),
        ("::1/64", "no IPv6 address"),
        ("10.0.0.0/8", "expected an address or a name"),
        ("one two", "expected an address or a name"),
        ("a\0b", "expected an address or a name"),
        ("a..b", "labels of 1 to 63 characters"),
        ("x" * 64 + ".example", "labels of 1 to 63 characters"),
        (".".join(["x" * 60] * 5), "labels of 1 to 63 characters"),
        ("224.0.0.1", "which is of many"),
        ("255.255.255.255", "which is of many"),
        ("ff02::1", "which is of many"),
    ],
)
def test_an_address_that_no_machine_can_have_is_an_error(tmp_path, host, said):
    for section in ("listen", "advertise"):
        if section == "advertise" and host in {"[::1]", " 127.0.0.1"}:
            continue  # there they are taken for what they mean
        [problem] = problems_of(tmp_path, {"server": {section: {"host": host}}}, ".json")
        assert problem.startswith(f"server.{section}.host: ")
        assert said in problem
        assert "\0" not in problem


@pytest.mark.parametrize(
    "host",
    [
        "::",
        "::1",
        "fe80::1%eth0",
        "127.1",
        "0",
        "localhost",
        "node_1",
        "store.example.",
        "größe.de",
    ],
)
def test_an_address_that_a_machine_may_have_is_taken(tmp_path, host):
    assert load_document(tmp_path, {"server": {"listen": {"host": host}}})


def test_two_ports_are_two_ports(tmp_path):
    server = {"listen": {"port": 8001}, "metrics_port": 8001}
    [problem] = problems_of(tmp_path, {"server": server})
    assert problem.startswith("server.metrics_port: expected another port than server.listen.port")
    assert problems_of(tmp_path, {"server": {"listen": {"port": 0}, "metrics_port": 0}}) == []


PATHS = [
    "database.db_file",
    "server.grpc.tls.cert_file",
    "server.auth.token_file",
    "observability.logging.file",
    "observability.logging.sink_file",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("/data/a\0b", "NUL"),
        ("/data/\ud800", "characters that no name"),
        ("   ", "white space"),
        ("/data/" + "x" * 256, "at most"),
        ("/x" * 2100, "at most"),
        ("/data/", "that of a directory"),
        ("~nobody-of-that-name/x", "home directory"),
    ],
)
def test_a_path_that_no_file_can_have_is_an_error(tmp_path, path, value, said):
    [problem] = problems_of(tmp_path, nested(path, value), ".json")
    assert problem.startswith(f"{path}: ")
    assert said in problem


@pytest.mark.parametrize("name", [":memory:", "file::memory:?cache=shared"])
def test_a_name_that_means_memory_elsewhere_makes_no_file_of_that_name(tmp_path, name):
    [problem] = problems_of(tmp_path, nested("database.db_file", name))
    assert "in memory leave the key out" in problem


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("database.db_file", "observability.logging.file", "/d/x"),
        ("database.db_file", "observability.logging.sink_file", "/d/../d/x"),
        ("observability.logging.file", "observability.logging.sink_file", "/d/x"),
        ("observability.logging.file", "server.auth.token_file", "/d/x"),
        ("observability.logging.sink_file", "server.grpc.tls.key_file", "/d/x"),
        ("database.db_file", "observability.logging.file", "/d/x-wal"),
        ("database.db_file", "observability.logging.file", "/d/x.lock"),
    ],
)
def test_a_file_that_is_written_has_one_purpose(tmp_path, first, second, value):
    document = merged(nested(first, "/d/x"), nested(second, value))
    [problem] = problems_of(tmp_path, document)
    assert problem.startswith(f"{first}: expected a file of its own, found ")
    assert second in problem


def test_the_configuration_itself_is_no_log_file(tmp_path):
    document = nested("observability.logging.file", str(tmp_path / "config.yaml"))
    [problem] = problems_of(tmp_path, document)
    assert "which this configuration is too" in problem


def test_files_that_are_only_read_may_be_one(tmp_path):
    tls = {"cert_file": "/d/pair.pem", "key_file": "/d/pair.pem", "client_ca_file": "/d/pair.pem"}
    assert problems_of(tmp_path, {"server": {"grpc": {"tls": tls | {"enabled": True}}}}) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("database.read_only", True),
        ("backup.directory", "/backups"),
        ("observability.otel.enabled", True),
        ("observability.tracing.chrome_trace_dir", "/traces"),
    ],
)
def test_what_is_promised_and_not_built_is_named(tmp_path, path, value):
    [line] = not_built(load_document(tmp_path, nested(path, value)))
    assert line.startswith(f"{path}: this version ")
    assert not_built(GlobalStoreConfig()) == []


def test_no_setting_is_ignored_in_silence(tmp_path):
    """What has no effect is warned of or refused, each by its own name."""
    idle = load_document(tmp_path, nested("backup.keep_last", 3))
    assert any("backup.keep_last" in line for line in warnings_of(idle))
    refused = load_document(tmp_path, nested("backup.directory", "/backups"))
    assert not any("backup.directory" in line for line in warnings_of(refused))


def test_tls_files_without_tls_are_warned_of(tmp_path):
    tls = {"cert_file": "c.pem", "key_file": "k.pem", "client_ca_file": "ca.pem"}
    found = warnings_of(load_document(tmp_path, {"server": {"grpc": {"tls": tls}}}))
    for name in tls:
        assert any(f"server.grpc.tls.{name} is set but" in line for line in found)
