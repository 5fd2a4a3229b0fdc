"""The schema against the published one, the shipped example, and the log of effective values."""

import attrs
import pytest
from config_files import DEFAULTS, HERE, golden, load_document

from globalstore.config import (
    GlobalStoreConfig,
    GroupPublishAuthorityMode,
    LogLevel,
    OTelProtocol,
    TransportSchedulerMode,
    load,
)
from globalstore.config.loader import schema_paths
from globalstore.config.rendering import SHIPPED_CHANGES, example
from globalstore.config.rendering import effective as effective_values
from globalstore.config.schema import Manual, manual

EXAMPLE = HERE.parents[1] / "configs" / "global_store.yaml"


def sections(kind: type):
    yield kind
    for field in attrs.fields(attrs.resolve_types(kind)):
        if attrs.has(field.type):
            yield from sections(field.type)


def test_the_schema_is_the_published_one_and_nothing_else():
    effective = effective_values(GlobalStoreConfig())
    assert effective == {row["path"]: row["default"] for row in DEFAULTS}


def published_paths(message: str, prefix: str = ""):
    rows = golden("golden_fields.tsv")
    messages = {row["message"] for row in rows}
    for row in rows:
        if row["message"] == message:
            path = f"{prefix}{row['name']}"
            if row["type"] in messages:
                yield from published_paths(row["type"], f"{path}.")
            else:
                yield path, row["type"]


KINDS = {"google.protobuf.Duration": "duration", "map<string,string>": "map"}


def test_every_field_of_the_wire_schema_is_a_setting_of_its_type():
    known = {row["path"]: row["type"] for row in DEFAULTS}
    published = dict(published_paths("tensorcast.config.v1.GlobalStoreConfig"))
    assert len(published) > 80
    for path, kind in published.items():
        is_enum = kind.startswith("tensorcast.config.v1.")
        assert known[path] == ("enum" if is_enum else KINDS.get(kind, kind)), path


def test_enums_have_the_names_and_numbers_of_the_wire_schema():
    kinds = [LogLevel, OTelProtocol, TransportSchedulerMode, GroupPublishAuthorityMode]
    members = {(k.__name__, m.name, m.value) for k in kinds for m in k}
    assert members == {
        (row["enum"].rpartition(".")[2], row["name"], int(row["number"]))
        for row in golden("golden_enums.tsv")
    }


def test_every_setting_has_an_entry_in_the_manual():
    for section in sections(GlobalStoreConfig):
        assert section.__doc__
        for field in attrs.fields(section):
            assert Manual in field.metadata
            assert len(manual(field).text) >= 10, field.name


def test_the_shipped_example_equals_the_defaults_except_for_the_metrics_port():
    config = load(EXAMPLE)
    assert config == GlobalStoreConfig().with_listen(metrics_port=8001)
    assert config.database.db_file is None
    assert config.server.listen.host == "127.0.0.1"
    assert config.server.metrics_port == 8001


@pytest.mark.parametrize("path", schema_paths())
def test_the_shipped_example_gives_and_explains_every_key(path):
    lines = EXAMPLE.read_text().splitlines()
    indent = "  " * path.count(".")
    start = 0
    for depth, key in enumerate(path.split(".")):
        start = next(
            n
            for n, line in enumerate(lines)
            if n >= start and line.startswith(f"{'  ' * depth}{key}:")
        )
    assert lines[start - 1].startswith(f"{indent}#")
    row = next((row for row in DEFAULTS if row["path"] == path), None)
    if row is not None:
        comment = []
        while lines[start - 1].lstrip().startswith("#"):
            start -= 1
            comment.insert(0, lines[start].strip("# "))
        assert f"default {row['default']}]" in " ".join(comment)


def test_the_shipped_example_is_the_manual_of_the_schema():
    assert EXAMPLE.read_text() == example(SHIPPED_CHANGES)


def test_an_example_with_other_values_loads_to_them(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text(example({"server.listen.host": "0.0.0.0", "database.db_file": "/data/a.db"}))
    config = load(file)
    assert config.server.listen.host == "0.0.0.0"
    assert config.database.db_file == "/data/a.db"


def test_effective_values_mask_secrets_and_keep_paths(tmp_path):
    document = {
        "meta": {"cluster_token": "hush"},
        "server": {"auth": {"token_file": "/etc/tokens"}},
        "observability": {"otel_cxx": {"exporter_headers": {"authorization": "hush"}}},
        "worker_policy": {"heartbeat_timeout": "0.25s"},
    }
    effective = effective_values(load_document(tmp_path, document))
    assert effective["meta.cluster_token"] == "***"
    assert effective["observability.otel_cxx.exporter_headers"] == '{"authorization": "***"}'
    assert effective["server.auth.token_file"] == '"/etc/tokens"'
    assert effective["worker_policy.heartbeat_timeout"] == "0.25s"
    assert "hush" not in str(effective)
