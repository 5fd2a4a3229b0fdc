"""Files as a whole: formats, syntax, keys, and every problem at once."""

import os

import pytest
from config_files import DEFAULTS, load_document, load_text, nested, problems_of

from globalstore.config import ConfigError, GlobalStoreConfig, load
from globalstore.config.loader import camel_case

FORMATS = [".yaml", ".yml", ".YAML", ".json", ".conf", ""]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("text", ["", "  \n\n", "\ufeff"])
def test_an_empty_file_means_all_defaults(tmp_path, suffix, text):
    assert load_text(tmp_path, text, suffix) == GlobalStoreConfig()


def test_a_file_of_comments_means_all_defaults(tmp_path):
    assert load_text(tmp_path, "# nothing\n---\n# here\n") == GlobalStoreConfig()


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("text", ["[]", "5", '"text"', "true"])
def test_a_root_that_is_no_mapping_is_an_error(tmp_path, suffix, text):
    [problem] = problems_of(tmp_path, text, suffix)
    assert problem.startswith("expected a mapping of sections at the top")


def test_a_suffix_other_than_yaml_means_json(tmp_path):
    [problem] = problems_of(tmp_path, "meta:\n  description: x\n", ".conf")
    assert "not valid JSON: expected a value (line 1)" in problem


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("meta: {", 2),
        ("meta:\n\tdescription: x\n", 2),
        ("meta:\n  description: 'x\n", 3),
        ("meta:\n  description: x\n meta: 5\n", 3),
    ],
)
def test_a_yaml_syntax_error_names_its_line(tmp_path, text, line):
    [problem] = problems_of(tmp_path, text + ("\n" if text.endswith("{") else ""))
    assert problem.startswith("not valid YAML: ")
    assert problem.endswith(f"(line {line})")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"meta": ', 1),
        ('{\n"meta": {,}}', 2),
        ('{\n\n"meta" 5}', 3),
        ('{"meta": {}} x', 1),
        ('{"meta": {"description": "a\nb"}}', 1),
        ('{"meta": {"description": "\\q"}}', 1),
        ('{"a": 01}', 1),
        ('{"a": NaN}', 1),
        ('{"a": 1,}', 1),
        ("{'a': 1}", 1),
    ],
)
def test_a_json_syntax_error_names_its_line(tmp_path, text, line):
    [problem] = problems_of(tmp_path, text, ".json")
    assert "not valid JSON: " in problem
    assert problem.endswith(f"(line {line})")


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path):
    assert problems_of(tmp_path, b"meta:\n  description: \xff\n") == [
        "the file is not UTF-8 text (line 2)"
    ]


def test_a_control_character_is_an_error_with_its_line(tmp_path):
    [problem] = problems_of(tmp_path, "meta:\n  description: \x07\n")
    assert "U+0007" in problem
    assert problem.endswith("(line 2)")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_text_of_any_language_is_kept(tmp_path, suffix):
    document = '{"database": {"db_file": "данные/存储 💾.db"}}'
    assert load_text(tmp_path, document, suffix).database.db_file == "данные/存储 💾.db"


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml")


def test_a_directory_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)


def test_an_endless_file_is_an_error(tmp_path):
    [problem] = problems_of(tmp_path, "#" * (1 << 20) + "\n")
    assert "larger than 1048576 bytes" in problem


def test_a_tilde_in_the_name_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "store.yaml").write_text("server: {max_workers: 3}\n")
    assert load("~/store.yaml").server.max_workers == 3


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_bottomless_nesting_is_an_error(tmp_path, suffix, opening):
    [problem] = problems_of(tmp_path, '{"meta": ' + opening * 5000, suffix)
    assert "nested more than 32 levels deep" in problem


def test_a_duplicate_key_is_an_error_at_any_depth(tmp_path):
    text = "server:\n  listen:\n    port: 1\n    port: 2\nserver: {}\n"
    assert problems_of(tmp_path, text) == [
        "server.listen.port: duplicate key, first given on line 3 (line 4)",
        "server: duplicate key, first given on line 1 (line 5)",
    ]


def test_a_duplicate_key_in_json_is_an_error_at_any_depth(tmp_path):
    text = '{"server": {"listen": {"port": 1,\n "port": 2}},\n\n"server": {}}'
    assert problems_of(tmp_path, text, ".json") == [
        "server.listen.port: duplicate key, first given on line 1 (line 2)",
        "server: duplicate key, first given on line 1 (line 4)",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("meta: !x {}\n", "meta"),
        ("meta:\n  description: !!str x\n", "meta.description"),
        ("server:\n  max_workers: !!python/object/apply:os.system ['false']\n", "server.max_work"),
    ],
)
def test_a_tag_is_an_error_with_its_path(tmp_path, text, path):
    problem = problems_of(tmp_path, text)[0]
    assert problem.startswith(path)
    assert "tags (" in problem


def test_anchors_and_aliases_are_errors_and_never_expanded(tmp_path):
    lines = ["meta: &a0 {description: x}"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    problems = problems_of(tmp_path, "\n".join(lines))
    assert problems[0] == "meta: anchors (&a0) are not supported (line 1)"
    assert any("k1[0]: aliases (*a0) are not supported" in problem for problem in problems)


def test_a_second_document_is_an_error(tmp_path):
    [problem] = problems_of(tmp_path, "meta: {}\n---\nmeta: {}\n")
    assert problem == "expected one document, found a second ('---') (line 2)"


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}"])
def test_a_key_that_is_no_text_is_an_error(tmp_path, key):
    [problem] = problems_of(tmp_path, f"meta:\n  ? {key}\n  : 5\n")
    assert "a key must be plain text" in problem


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "1:30", "2024-01-02"])
def test_words_that_older_yaml_converts_stay_text(tmp_path, word):
    assert load_text(tmp_path, f"meta: {{description: {word}}}").meta.description == word
    assert problems_of(tmp_path, f"server: {{reflection: {word}}}")


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row["path"])
def test_the_camel_case_spelling_is_read_too(tmp_path, row):
    path = ".".join(camel_case(key) for key in row["path"].split("."))
    [problem] = problems_of(tmp_path, nested(path, [[]]))
    assert problem.startswith(row["path"])
    assert "unknown" not in problem


def test_both_spellings_of_one_key_are_an_error(tmp_path):
    text = "workerPolicy:\n  cleanupInterval: 5s\n  cleanup_interval: 5s\nworker_policy: {}\n"
    assert problems_of(tmp_path, text) == [
        "worker_policy.cleanup_interval: given twice, as cleanupInterval and as cleanup_interval"
        " (line 3)",
        "worker_policy: given twice, as workerPolicy and as worker_policy (line 4)",
    ]


SECTIONS = sorted({"", *(row["path"].rpartition(".")[0] for row in DEFAULTS)})


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_an_error_in_every_section(tmp_path, section):
    path = f"{section}.zzz_unheard_of".lstrip(".")
    [problem] = problems_of(tmp_path, nested(path, {"x": 1}))
    assert problem.startswith(f"{path}: unknown key; ")
    assert "nearest valid key" in problem


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("worker_policy.control_reducer.shards", "shard_count"),
        ("worker_policy.heartbeat_timeouts", "heartbeat_timeout"),
        ("databse", "database"),
        ("server.heartbeat_timeout", "worker_policy.heartbeat_timeout"),
        ("server.grpc.tls.certfile", "cert_file"),
    ],
)
def test_an_unknown_key_is_told_the_nearest_valid_one(tmp_path, path, nearest):
    [problem] = problems_of(tmp_path, nested(path, 1))
    assert problem.startswith(f"{path}: unknown key; ")
    assert nearest in problem.partition(";")[2]


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("server.host", "server.listen.host"),
        ("server.port", "server.listen.port"),
        ("server.grpc.max_message_size_mb", "server.limits.max_message_bytes"),
        ("web_ui", "remove it"),
        ("high_availability", "remove it"),
        ("worker_policy.progressive_replication", "remove it"),
    ],
)
def test_a_retired_name_is_unknown_and_told_its_successor(tmp_path, path, instead):
    [problem] = problems_of(tmp_path, nested(path, {}))
    assert problem.startswith(f"{path}: unknown key; ")
    assert instead in problem


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path):
    text = (
        "server:\n"
        "  listen: {port: 70000}\n"
        "  max_workers: many\n"
        "worker_policy:\n"
        "  heartbeat_timeout: 0.05s\n"
        "  control_reducer:\n"
        "    shards: 2\n"
        "limits:\n"
        "  operation_leases:\n"
        "    default_ttl: 400s\n"
        "meta: [1]\n"
    )
    problems = problems_of(tmp_path, text)
    assert [problem.partition(":")[0] for problem in problems] == [
        "server.listen.port",
        "server.max_workers",
        "worker_policy.heartbeat_timeout",
        "worker_policy.control_reducer.shards",
        "limits.operation_leases.default_ttl",
        "meta",
    ]
    lines = [int(problem.rpartition("(line ")[2].rstrip(")")) for problem in problems]
    assert lines == [2, 3, 5, 7, 10, 11]


def test_a_flood_of_problems_is_cut_with_a_count(tmp_path):
    problems = problems_of(tmp_path, {f"key{number}": 1 for number in range(500)})
    assert len(problems) == 101
    assert problems[-1] == "… and 400 more problems"


def test_a_problem_stays_on_one_line_and_short(tmp_path):
    key = "forged\nserver.listen.port: fine " + "x" * 500
    [problem] = problems_of(tmp_path, {key: 1, "meta": {"description": "x"}})
    assert "\\n" in problem
    assert len(problem) < 200


@pytest.mark.parametrize("value", [12345, ["12345"], {"a": 12345}])
def test_a_secret_never_appears_in_a_problem(tmp_path, value):
    document = {
        "meta": {"cluster_token": value},
        "observability": {"otel_cxx": {"exporter_headers": {"name": 12345}}},
    }
    problems = problems_of(tmp_path, document)
    assert [problem.partition(":")[0] for problem in problems] == [
        "meta.cluster_token",
        "observability.otel_cxx.exporter_headers.name",
    ]
    assert "12345" not in "".join(problems)


def test_two_loads_of_one_file_are_equal_and_immutable(tmp_path):
    document = {
        "meta": {"cluster_token": "t"},
        "observability": {"otel_cxx": {"exporter_headers": {"a": "b"}}},
    }
    first, second = load_document(tmp_path, document), load_document(tmp_path, document)
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(AttributeError):
        first.server.max_workers = 5


@pytest.mark.parametrize("name", ["webUi", "highAvailability"])
def test_the_other_spelling_of_a_retired_name_is_told_the_same(tmp_path, name):
    [problem] = problems_of(tmp_path, {name: {"enabled": True}})
    assert problem.startswith(f"{name}: unknown key; remove it: ")


def test_a_section_of_another_server_does_not_hide_the_other_problems(tmp_path):
    problems = problems_of(
        tmp_path,
        {
            "high_availability": {"enabled": True, "peers": ["a", "b"]},
            "worker_policy": {"progressiveReplication": {"enabled": True}, "max_leas_ttl": "1s"},
            "server": {"listen": {"host": "[::1]"}},
        },
    )
    assert len(problems) == 4


@pytest.mark.parametrize("text", ["", "  \n", "# only a remark\n", "---\n", "null\n"])
def test_an_empty_file_is_refused_where_it_must_not_be(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert load(file) == GlobalStoreConfig()
    with pytest.raises(ConfigError, match="the file is empty; write"):
        load(file, may_be_empty=False)
    file.write_text("{}\n")
    assert load(file, may_be_empty=False) == GlobalStoreConfig()


def test_a_pipe_is_refused_without_waiting_for_who_writes_into_it(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="pipe or socket"):
        load(tmp_path / "config.json")


def test_a_null_device_is_an_empty_file():
    assert load("/dev/null") == GlobalStoreConfig()
