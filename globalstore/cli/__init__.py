"""The operator's commands, one module per verb.

A verb's module has ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module

import globalstore
from globalstore.cli.importing import importing

_USAGE = 2

# What each verb does: the first line of its module's text, which stands here so that to tell what
# there is takes no import.
VERBS = {
    "serve": "Start the server, or check its configuration.",
    "demo": "Spread a safetensors file over three daemons that run in this process.",
    "explain": (
        "Show how each replica of an artifact would fare in the choice of a source, and why."
    ),
    "key": "Look at keys of a running server, and change where they point.",
    "artifact": (
        "Look at artifacts of a running server: what they are, who holds them, what points at them."
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; flags without a verb start the server."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding lacks is shown as an escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    if words and words[0].startswith("-") and words[0] not in {"-h", "--help"}:
        words.insert(0, "serve")
    parser = argparse.ArgumentParser(
        prog="globalstore", description=globalstore.__doc__, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        # Only the module of the verb that is meant is loaded; the others are just listed.
        if [name] == words[:1]:
            with importing():
                module = import_module(f"globalstore.cli.{name}")
            module.add_arguments(verb)
            verb.set_defaults(run=module.run)
    if not words:
        parser.print_help(sys.stderr)
        print("config: name a verb, or start the server with --config=FILE", file=sys.stderr)
        return _USAGE
    for word in words:
        if not _is_text(word):
            parser.error(f"{word!a} is not UTF-8")
    parsed = parser.parse_args(words)
    code: int = parsed.run(parsed)
    return code


def _is_text(word: str) -> bool:
    """Tell whether an argument was UTF-8: only then can a message carry it."""
    return not any("\ud800" <= character <= "\udfff" for character in word)
