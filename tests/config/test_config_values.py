"""How a single value is read, for every setting of the schema."""

import pytest
from config_files import DEFAULTS, at, load_document, load_text, merged, nested, problems_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from globalstore.config import (
    GlobalStoreConfig,
    GroupPublishAuthorityMode,
    LogLevel,
    OTelProtocol,
    TransportSchedulerMode,
    format_duration,
)

QUIET = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

WRONG = {
    "string": [5, True, 1.5, [], {}],
    "bool": ["true", "yes", 1, 0, [], {}],
    "uint32": [-1, 2**32, "five", "", 1.5, True, [], {}, "-1", "1.0"],
    "uint64": [-1, 2**64, "five", "", 1.5, True, [], {}, "-1", "1.0"],
    "int32": [2**31, -(2**31) - 1, "five", 1.5, True, [], {}],
    "duration": ["10m", "1h", 5, 0.5, "", "s", "30", "1.0000000001s", "1 s", True, [], {}],
    "double": ["much", -0.1, True, [], {}, "nan", "inf", "1e999"],
    "enum": ["no such name", 99, -1, True, 1.5, [], {}],
    "map": ["x", [], {"name": 5}],
    "list": ["tp_version", {}, [5]],
}
SOUND = {
    "string": [("text", "text"), ("", "")],
    "bool": [(True, True), (False, False)],
    "uint32": [(7, 7), ("7", 7), (7.0, 7), (2000, 2000)],
    "uint64": [(7, 7), ("7", 7), (7.0, 7)],
    "int32": [(7, 7), ("7", 7), (7.0, 7)],
    "duration": [("60s", 60.0), ("60.5s", 60.5), ("60.0019999s", 60.001)],
    "double": [(1, 1.0), (0.5, 0.5), ("0.5", 0.5), (0, 0.0)],
    "map": [({"b": "2", "a": "1"}, (("a", "1"), ("b", "2"))), ({}, ())],
    "list": [(["x", "y"], ("x", "y")), ([], ())],
}


REFUSED_BY_A_RULE = [
    ("server.listen.host", ("", "")),
    ("server.limits.proxy_networks", (["x", "y"], ("x", "y"))),
]


def cases(table: dict) -> list:
    return [
        pytest.param(row["path"], value, id=f"{row['path']}={value!r}")
        for row in DEFAULTS
        for value in table.get(row["type"], [])
        if (row["path"], value) not in REFUSED_BY_A_RULE
    ]


# What else a file must say so that a sound value of these settings meets the rules between them.
PAIR = {"cert_file": "c", "key_file": "k"}
COMPANIONS = {
    "server.grpc.tls.enabled": {"server": {"grpc": {"tls": PAIR}}},
    "server.grpc.tls.daemon_id_from_certificate": {
        "server": {"grpc": {"tls": PAIR | {"enabled": True, "client_ca_file": "a"}}}
    },
    "server.limits.max_inbound_buffer_bytes": {"server": {"limits": {"max_message_bytes": 1}}},
    "server.limits.max_held_bytes": {
        "server": {"limits": {"max_message_bytes": 1, "max_held_bytes_per_address": 2}}
    },
    "server.limits.max_held_bytes_per_address": {
        "server": {"limits": {"max_message_bytes": 1, "max_held_bytes": 2**64 - 1}}
    },
    "registration.min_ttl": {"registration": {"default_ttl": "100s"}},
    "worker_policy.group_realization.max_wait_poll_interval_ms": {
        "worker_policy": {"group_realization": {"min_wait_poll_interval_ms": 1}}
    },
}


@pytest.mark.parametrize(("path", "value"), cases(WRONG))
def test_a_value_of_the_wrong_type_is_an_error_with_its_path(tmp_path, path, value):
    problems = problems_of(tmp_path, nested(path, value), ".json")
    assert len(problems) == 1
    assert problems[0].startswith(path)
    assert "expected" in problems[0]
    assert problems[0].endswith("(line 1)")


@pytest.mark.parametrize(("path", "pair"), cases(SOUND))
def test_a_value_of_the_right_type_takes_effect(tmp_path, path, pair):
    value, expected = pair
    document = merged(COMPANIONS.get(path, {}), nested(path, value))
    assert at(load_document(tmp_path, document), path) == expected


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row["path"])
def test_null_is_the_same_as_absent(tmp_path, row):
    assert load_document(tmp_path, nested(row["path"], None)) == GlobalStoreConfig()


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row["path"])
def test_a_file_that_says_the_default_changes_nothing(tmp_path, row):
    *sections, key = row["path"].split(".")
    text = ""
    for depth, section in enumerate(sections):
        text += f"{'  ' * depth}{section}:\n"
    text += f"{'  ' * len(sections)}{key}: {row['default']}\n"
    assert load_text(tmp_path, text) == GlobalStoreConfig()


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("10m", "write 600s"),
        ("1h", "write 3600s"),
        ("1d", "write 86400s"),
        ("500ms", "write 0.5s"),
        (5, "write 5s"),
        ("30", "write 30s"),
        (0.5, "write 0.5s"),
    ],
)
def test_a_duration_in_other_units_is_told_its_spelling_in_seconds(tmp_path, value, advice):
    [problem] = problems_of(tmp_path, {"shutdown": {"grace_period": value}})
    assert advice in problem


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("0.01s", 0.01),
        ("86400s", 86400.0),
        ("0.0009s", 0.0),
        ("0.123456789s", 0.123),
        ("-5s", 0.0),
        ("-0.0001s", 0.0),
    ],
)
def test_a_duration_keeps_milliseconds_and_is_never_negative(tmp_path, text, seconds):
    config = load_document(tmp_path, {"shutdown": {"drain_delay": text}})
    assert config.shutdown.drain_delay == seconds


@QUIET
@given(milliseconds=st.integers(0, 10**14))
def test_a_duration_survives_being_written_and_read(tmp_path, milliseconds):
    written = format_duration(milliseconds / 1000)
    config = load_document(tmp_path, {"shutdown": {"drain_delay": written}})
    assert config.shutdown.drain_delay == milliseconds / 1000
    assert format_duration(config.shutdown.drain_delay) == written


@QUIET
@given(number=st.integers(0, 2**64 - 1), spelled=st.sampled_from([int, str]))
def test_an_integer_survives_as_number_and_as_text(tmp_path, number, spelled):
    config = load_document(tmp_path, {"backup": {"keep_last": spelled(number)}})
    assert config.backup.keep_last == number


ENUMS = {
    LogLevel: ("observability.logging.level", "LOG_LEVEL_"),
    OTelProtocol: ("observability.otel.exporter_protocol", "O_TEL_PROTOCOL_"),
    TransportSchedulerMode: (
        "worker_policy.transport_scheduler.mode",
        "TRANSPORT_SCHEDULER_MODE_",
    ),
    GroupPublishAuthorityMode: (
        "worker_policy.group_realization.publish_authority_mode",
        "GROUP_PUBLISH_AUTHORITY_MODE_",
    ),
}
MEMBERS = [member for kind in ENUMS for member in kind if member.value]


@QUIET
@given(member=st.sampled_from(MEMBERS), data=st.data())
def test_an_enum_is_read_from_every_spelling_of_its_name(tmp_path, member, data):
    path, prefix = ENUMS[type(member)]
    name = data.draw(st.sampled_from([member.name, member.name.removeprefix(prefix)]))
    separator = data.draw(st.sampled_from(["_", "-", "/", " ", "."]))
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    spelled = "".join(c.upper() if u else c.lower() for c, u in zip(name, upper, strict=True))
    value = data.draw(
        st.sampled_from([spelled.replace("_", separator), member.value, str(member.value)])
    )
    assert at(load_document(tmp_path, nested(path, value)), path) is member


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (LogLevel, LogLevel.LOG_LEVEL_INFO),
        (OTelProtocol, OTelProtocol.O_TEL_PROTOCOL_GRPC),
        (TransportSchedulerMode, TransportSchedulerMode.TRANSPORT_SCHEDULER_MODE_GROUP_DISPATCH),
        (
            GroupPublishAuthorityMode,
            GroupPublishAuthorityMode.GROUP_PUBLISH_AUTHORITY_MODE_AUTO_WHEN_READY,
        ),
    ],
)
@pytest.mark.parametrize("spelled", ["UNSPECIFIED", 0, "full"])
def test_an_unspecified_enum_means_the_default(tmp_path, kind, default, spelled):
    path, prefix = ENUMS[kind]
    value = f"{prefix}UNSPECIFIED" if spelled == "full" else spelled
    assert at(load_document(tmp_path, nested(path, value)), path) is default


@pytest.mark.parametrize("spelled", ["WARNING", "warning", "LOG_LEVEL_WARNING", "WARN", 3])
def test_warning_is_an_alias_of_warn(tmp_path, spelled):
    config = load_document(tmp_path, {"observability": {"logging": {"level": spelled}}})
    assert config.observability.logging.level is LogLevel.LOG_LEVEL_WARN


def test_an_unknown_enum_name_lists_the_names(tmp_path):
    [problem] = problems_of(tmp_path, {"observability": {"logging": {"level": "LOUD"}}})
    assert "DEBUG, INFO, WARN, ERROR" in problem


FLOORED = {
    "worker_policy.cleanup_interval": ("0.2s", 1.0),
    **{
        f"worker_policy.transport_scheduler.group_dispatch.{key}": (0, 1)
        for key in (
            "queue_scan_limit",
            "dispatch_batch_limit",
            "group_source_min_candidates_for_enforce",
        )
    },
    **{
        f"worker_policy.group_realization.{key}": (0, 1)
        for key in (
            "max_total_parts",
            "max_parts_per_version_set",
            "max_active_transactions",
            "max_waiters_per_transaction",
            "max_member_reports_per_rpc",
            "cleanup_batch_limit",
        )
    },
    **{
        f"limits.digest_writes.{key}": (0, default)
        for key, default in (
            ("max_leaf_writes_per_request", 16384),
            ("max_proof_digests_per_request", 16384),
            ("max_total_digests_per_request", 32768),
            ("max_digest_bytes_per_request", 2097152),
        )
    },
    "worker_policy.memory_tiers.snapshot_max_rows": (0, 200),
    "worker_policy.control_reducer.shard_count": (0, 1),
    "worker_policy.control_reducer.queue_capacity": (0, 2048),
}


@pytest.mark.parametrize("path", FLOORED)
def test_a_value_below_its_floor_is_raised(tmp_path, path):
    written, effective = FLOORED[path]
    assert at(load_document(tmp_path, nested(path, written)), path) == effective


def test_the_greatest_poll_interval_is_at_least_one_millisecond(tmp_path):
    polls = {"min_wait_poll_interval_ms": 0, "max_wait_poll_interval_ms": 0}
    config = load_document(tmp_path, {"worker_policy": {"group_realization": polls}})
    assert config.worker_policy.group_realization.max_wait_poll_interval_ms == 1


ZERO_REFUSED = {
    "worker_policy.group_realization.max_wait_poll_interval_ms",
    "server.limits.max_message_bytes",
    "server.limits.max_answer_bytes",
    "server.limits.max_connections",
    "server.limits.max_connections_per_address",
    "server.limits.max_calls",
    "server.limits.max_calls_per_address",
    "server.limits.max_held_bytes",
    "server.limits.max_held_bytes_per_address",
    "server.limits.max_inbound_buffer_bytes",
}
ZEROS = [
    row["path"]
    for row in DEFAULTS
    if row["type"] in {"uint32", "uint64", "int32", "double"}
    and row["path"] not in FLOORED
    and row["path"] not in ZERO_REFUSED
]


@pytest.mark.parametrize("path", ZEROS)
def test_an_explicit_zero_counts_where_no_floor_is_given(tmp_path, path):
    assert at(load_document(tmp_path, nested(path, 0)), path) == 0


@pytest.mark.parametrize("host", [{}, {"host": "127.0.0.1"}, {"port": None}])
def test_a_listen_section_without_a_port_keeps_the_default_port(tmp_path, host):
    config = load_document(tmp_path, {"server": {"listen": host}})
    assert config.server.listen.port == 50051


@pytest.mark.parametrize(
    ("ttl", "whole"), [("0s", 0), ("0.001s", 1), ("1s", 1), ("1.2s", 2), ("2s", 2)]
)
def test_the_alias_cache_time_is_answered_in_whole_seconds_rounded_up(tmp_path, ttl, whole):
    config = load_document(tmp_path, {"worker_policy": {"key_mapping": {"alias_cache_ttl": ttl}}})
    assert config.worker_policy.key_mapping.alias_cache_ttl_seconds == whole


def test_the_transport_ttl_follows_its_formula_until_it_is_given(tmp_path):
    policy = {"heartbeat_timeout": "400s", "cleanup_interval": "1s"}
    config = load_document(tmp_path, {"worker_policy": policy})
    assert config.worker_policy.effective_transport_ttl == 800.0
    assert GlobalStoreConfig().worker_policy.effective_transport_ttl == 600.0
    config = load_document(tmp_path, {"worker_policy": policy | {"transport_ttl": "5s"}})
    assert config.worker_policy.effective_transport_ttl == 5.0
