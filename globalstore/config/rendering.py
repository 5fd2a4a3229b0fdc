"""A configuration as text: the effective values for the log, and the documented example."""

import enum
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

import attrs

from globalstore.config.kinds import Headers, Real, Seconds, Whole, enum_short_name, format_duration
from globalstore.config.nodes import join_path
from globalstore.config.schema import GlobalStoreConfig, manual
from globalstore.text.printing import MASK

# What the shipped example says differently from the defaults: the ports that probes, services
# and scrape configurations of a deployment name must be written down, not implied.
SHIPPED_CHANGES: Final[Mapping[str, str]] = {"server.metrics_port": "8001"}

_WIDTH: Final = 96

_PREAMBLE: Final = """\
Configuration of the Global Store: every setting, its meaning, unit and default.

A setting left out, or null, has its default. Keys may also be spelled in lowerCamelCase.
Durations are seconds with the suffix s (30s, 0.05s). Enumerations are given by name in any
case (info, LOG_LEVEL_INFO) or by number. Unknown and duplicate keys are errors. Tags, anchors
and aliases are not supported. Flags and environment variables set nothing.
"""


def effective(config: GlobalStoreConfig) -> dict[str, str]:
    """Return every setting's path with its value as a file would spell it, secrets masked."""
    return {path: text for path, text, _, _ in _settings(config, "", mask=True)}


def chosen(config: GlobalStoreConfig) -> dict[str, str]:
    """Return the settings that differ from their defaults, as ``effective`` does."""
    default = effective(GlobalStoreConfig())
    return {path: text for path, text in effective(config).items() if text != default[path]}


def without_effect(config: GlobalStoreConfig) -> list[str]:
    """Return the settings without effect in this version that differ from their default."""
    differing = chosen(config)
    return [
        path
        for path, _, field, has_effect in _settings(config, "", mask=True)
        if not has_effect and path in differing and not manual(field).not_built
    ]


def not_built(config: GlobalStoreConfig) -> list[str]:
    """Return what is asked for and this version does not have, a line each.

    Such a setting must not be ignored: somebody relies on what it promises.
    """
    differing = chosen(config)
    return [
        f"{path}: {manual(field).not_built}"
        for path, _, field, _ in _settings(config, "", mask=True)
        if manual(field).not_built and path in differing
    ]


def example(changes: Mapping[str, str]) -> str:
    """Return a complete file, as YAML, with every setting explained.

    It loads to the defaults except for ``changes``: the text of some settings by their path.
    """
    lines = [f"# {line}".rstrip() for line in _PREAMBLE.splitlines()]
    lines.extend(_section_lines(GlobalStoreConfig(), "", changes))
    return "\n".join(lines) + "\n"


def _settings(
    section: Any, prefix: str, *, mask: bool, has_effect: bool = True
) -> Iterator[tuple[str, str, "attrs.Attribute[Any]", bool]]:
    for field in attrs.fields(attrs.resolve_types(type(section), include_extras=True)):
        path, value = join_path(prefix, field.name), getattr(section, field.name)
        entry = manual(field)
        in_effect = has_effect and entry.has_effect
        if attrs.has(type(value)):
            yield from _settings(value, path, mask=mask, has_effect=in_effect)
        else:
            yield path, _spelled(value, field, mask and entry.secret), field, in_effect


def _spelled(value: Any, field: "attrs.Attribute[Any]", masked: bool) -> str:
    if value is None:
        return "null"
    if field.type is Headers:
        shown = {name: MASK if masked else text for name, text in value}
        return json.dumps(shown, ensure_ascii=False)
    if masked and value:
        return MASK
    if isinstance(_annotation(field.type), Seconds):
        return format_duration(value)
    if isinstance(value, enum.IntEnum):
        return enum_short_name(value)
    return json.dumps(value, ensure_ascii=False)


def _annotation(kind: Any) -> object:
    """Return the marker of an annotated type, else the type itself."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[1]
    if get_origin(kind) is Union:
        return _annotation(get_args(kind)[0])
    return kind


def _kind_name(kind: Any) -> str:
    marker = _annotation(kind)
    optional = (
        " or null" if get_origin(kind) is not Annotated and type(None) in get_args(kind) else ""
    )
    if isinstance(marker, Seconds):
        return "duration" + optional
    if isinstance(marker, Real):
        return "number"
    if isinstance(marker, Whole):
        return marker.name.removeprefix("a ")
    if isinstance(marker, type) and issubclass(marker, enum.IntEnum):
        return "enumeration"
    if marker is Headers:
        return "map of strings"
    if marker == tuple[str, ...]:
        return "list of strings"
    return ("boolean" if marker is bool else "string") + optional


def _section_lines(
    section: Any, prefix: str, changes: Mapping[str, str], *, has_effect: bool = True
) -> Iterator[str]:
    indent = "  " * (prefix.count(".") + 1 if prefix else 0)
    for field in attrs.fields(attrs.resolve_types(type(section), include_extras=True)):
        path, value = join_path(prefix, field.name), getattr(section, field.name)
        entry = manual(field)
        in_effect = has_effect and entry.has_effect
        if attrs.has(type(value)):
            yield ""
            yield from _comment(entry.text, indent)
            yield f"{indent}{field.name}:"
            yield from _section_lines(value, path, changes, has_effect=in_effect)
            continue
        default = _spelled(value, field, masked=False)
        about = f"{entry.text} [{_kind_name(field.type)}, default {default}]"
        if entry.not_built:
            about += " Not in this version, which refuses to start with anything else."
        elif not in_effect:
            about += " Accepted, without effect in this version."
        yield from _comment(about, indent)
        yield f"{indent}{field.name}: {changes.get(path, default)}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=_WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
