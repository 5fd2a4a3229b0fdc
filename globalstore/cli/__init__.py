"""The operator's commands, one module per verb.

A verb's module has ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit code.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import globalstore

_VERBS = ("serve", "demo", "explain", "key", "artifact")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without a verb the server is started."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words.insert(0, "serve")
    parser = argparse.ArgumentParser(
        prog="globalstore", description=globalstore.__doc__, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    # The others are not loaded unless somebody asks what there is: that takes as long as all else.
    for name in (words[0],) if words[0] in _VERBS else _VERBS:
        module = import_module(f"globalstore.cli.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    parsed = parser.parse_args(words)
    code: int = parsed.run(parsed)
    return code
