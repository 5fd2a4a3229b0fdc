"""From a file to a configuration, or to the list of everything that is wrong with it."""

import difflib
import enum
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

import attrs
import cattrs

from globalstore.config.checks import contradictions
from globalstore.config.documents import read_document
from globalstore.config.kinds import (
    ENUM_PREFIXES,
    SCALAR_READERS,
    Fault,
    Headers,
    Reader,
    read_enum,
    read_string,
)
from globalstore.config.nodes import ConfigError, DocumentError, Node, Problem, join_path
from globalstore.config.schema import GlobalStoreConfig, manual

# Names of earlier versions and of other servers of this contract, and what to do with them.
RETIRED: Final[Mapping[str, str]] = {
    "server.host": "use server.listen.host",
    "server.port": "use server.listen.port",
    "server.grpc.max_message_size_mb": "use server.limits.max_message_bytes",
    "web_ui": "remove it: this server has no pages; /health and /metrics are on"
    " server.metrics_port",
    "high_availability": "remove it: one process serves one database, and its supervisor starts it"
    " again; a cluster of servers is not configured here",
    "worker_policy.progressive_replication": "remove it: this server does not order copies; who"
    " serves whom is chosen by worker_policy.transport_scheduler",
}


def load(path: str | Path, *, may_be_empty: bool = True) -> GlobalStoreConfig:
    """Read and check a configuration file; what it leaves out has its default.

    ``~`` is expanded. ``.yaml`` and ``.yml`` are YAML, any other name is JSON. An empty file means
    all defaults, unless it must not be empty. Raises ConfigError with every problem found, each
    with path and line.
    """
    source = str(path)
    try:
        root, problems = read_document(Path(path).expanduser(), may_be_empty=may_be_empty)
    except DocumentError as error:
        raise ConfigError(source, [error.problem], may_pass=error.may_pass) from None
    except RuntimeError as error:  # no home directory to put in for ~
        raise ConfigError(source, [Problem("", f"cannot expand {source}: {error}")]) from None
    place = _Place(root, "", problems, {})
    config = _CONVERTER.structure(place, GlobalStoreConfig)
    assert isinstance(config, GlobalStoreConfig)
    faulty = {problem.path for problem in problems}
    for contradiction in contradictions(config, source):
        # A key that could not be read stands at its default here: no second complaint about it.
        if faulty.isdisjoint(contradiction.paths):
            line = next((place.lines[p] for p in contradiction.paths if p in place.lines), None)
            problems.append(Problem(contradiction.paths[0], contradiction.message, line))
    if problems:
        problems.sort(key=lambda problem: problem.line or 0)
        raise ConfigError(source, problems)
    return config


@attrs.frozen
class _Place:
    """A node on its way to a value; ``problems`` and ``lines`` are shared by the whole load."""

    node: Node
    path: str
    problems: list[Problem]
    lines: dict[str, int]
    secret: bool = False

    def inside(self, name: str, node: Node, secret: bool) -> "_Place":
        path = join_path(self.path, name)
        self.lines[path] = node.line
        return _Place(node, path, self.problems, self.lines, secret)

    def refuse(self, message: str) -> None:
        self.problems.append(Problem(self.path, message, self.node.line))


def camel_case(name: str) -> str:
    """Return the lowerCamelCase spelling of a snake_case key."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _structure_section(place: _Place, kind: Any) -> Any:
    entries = place.node.value
    if not isinstance(entries, dict):
        place.refuse(f"expected a mapping of settings, found {place.node.shown(place.secret)}")
        return kind()
    fields = attrs.fields_dict(attrs.resolve_types(kind, include_extras=True))
    spellings = {camel_case(name): name for name in fields} | {name: name for name in fields}
    spelled: dict[str, str] = {}
    values: dict[str, Any] = {}
    for key, node in entries.items():
        if key not in spellings:
            place.inside(key, node, True).refuse(_unknown_key(key, place.path, list(fields)))
            continue
        name = spellings[key]
        inner = place.inside(name, node, manual(fields[name]).secret)
        if name in spelled:
            inner.refuse(f"given twice, as {spelled[name]} and as {key}")
            continue
        spelled[name] = key
        if node.value is None:
            continue
        try:
            value = _CONVERTER.structure(inner, cast(Any, fields[name].type))
        except Fault as fault:
            inner.refuse(str(fault))
        else:
            values[name] = _in_effect(fields[name], value)
    return kind(**values)


def _in_effect(field: "attrs.Attribute[Any]", value: Any) -> Any:
    """Return ``value`` after the field's floor and its meaning of 0."""
    entry = manual(field)
    stands_for_default = entry.zero_is_default or isinstance(value, enum.IntEnum)
    if stands_for_default and value == 0:
        return field.default
    return value if entry.floor is None else max(value, type(value)(entry.floor))


def _unknown_key(key: str, section: str, valid: list[str]) -> str:
    name = join_path(section, re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", key))
    retired = RETIRED.get(name)
    if retired is not None:
        return f"unknown key; {retired}"
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    elsewhere = [path for path in schema_paths() if path.rsplit(".", 1)[-1] == key]
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]}?"
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
    return f"unknown key; nearest valid key: {nearest}"


def schema_paths(kind: type = GlobalStoreConfig, prefix: str = "") -> list[str]:
    """Return the dotted path of every section and setting, parents before children."""
    paths = []
    for field in attrs.fields(attrs.resolve_types(kind, include_extras=True)):
        path = join_path(prefix, field.name)
        paths.append(path)
        if isinstance(field.type, type) and attrs.has(field.type):
            paths.extend(schema_paths(field.type, path))
    return paths


def _structure_annotated(place: _Place, kind: Any) -> Any:
    return get_args(kind)[1].read(place.node, place.secret)


def _structure_optional(place: _Place, kind: Any) -> Any:
    (present,) = (option for option in get_args(kind) if option is not type(None))
    return _CONVERTER.structure(place, present)


def _structure_strings(place: _Place, kind: Any) -> tuple[str, ...]:
    items = place.node.value
    if not isinstance(items, list):
        raise Fault(f"expected a list of strings, found {place.node.shown(place.secret)}")
    strings = []
    for position, item in enumerate(items):
        try:
            strings.append(read_string(item, place.secret))
        except Fault as fault:
            path = f"{place.path}[{position}]"
            place.problems.append(Problem(path, str(fault), item.line))
    return tuple(strings)


def _structure_headers(place: _Place, kind: Any) -> Headers:
    entries = place.node.value
    if not isinstance(entries, dict):
        raise Fault(f"expected a mapping of strings, found {place.node.shown(place.secret)}")
    headers = []
    for name, node in sorted(entries.items()):
        try:
            headers.append((name, read_string(node, secret=True)))
        except Fault as fault:
            place.inside(name, node, True).refuse(str(fault))
    return Headers(tuple(headers))


def _structure_scalar(read: Reader) -> Callable[[_Place, Any], Any]:
    return lambda place, _: read(place.node, place.secret)


def _origin(kind: Any) -> object:
    return get_origin(kind)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    converter.register_structure_hook_func(attrs.has, _structure_section)
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) is Annotated, _structure_annotated
    )
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) in {Union, types.UnionType}, _structure_optional
    )
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _structure_strings)
    converter.register_structure_hook_func(lambda kind: kind is Headers, _structure_headers)
    for kind in ENUM_PREFIXES:
        converter.register_structure_hook(kind, lambda place, kind: read_enum(place.node, kind))
    for scalar, read in SCALAR_READERS.items():
        converter.register_structure_hook(scalar, _structure_scalar(read))
    return converter


_CONVERTER: Final = _converter()
