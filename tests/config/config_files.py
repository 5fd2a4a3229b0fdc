"""Small files for the tests of the loader."""

import csv
import json
from pathlib import Path

from globalstore.config import ConfigError, GlobalStoreConfig, load

HERE = Path(__file__).parent


def golden(name: str) -> list[dict[str, str]]:
    """The rows of a golden table of this directory."""
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


DEFAULTS = golden("golden_defaults.tsv")


def nested(path: str, value: object) -> dict[str, object]:
    """A document in which only ``path`` is given."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def merged(*documents: dict) -> dict:
    """Documents laid over each other."""
    result: dict = {}
    for document in documents:
        for key, value in document.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def at(config: GlobalStoreConfig, path: str) -> object:
    """The value of a setting by its dotted path."""
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def load_text(directory: Path, text: str | bytes, suffix: str = ".yaml") -> GlobalStoreConfig:
    """Load ``text`` as if it were a file."""
    file = directory / f"config{suffix}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file)


def load_document(directory: Path, document: object, suffix: str = ".json") -> GlobalStoreConfig:
    """Load a document; JSON is YAML too, so it can be read as either."""
    return load_text(directory, json.dumps(document), suffix)


def problems_of(directory: Path, text: str | bytes | dict, suffix: str = ".yaml") -> list[str]:
    """The lines of the error that loading ``text`` ends with, none if it loads."""
    if isinstance(text, dict):
        text = json.dumps(text)
    try:
        load_text(directory, text, suffix)
    except ConfigError as error:
        return str(error).splitlines()
    return []
