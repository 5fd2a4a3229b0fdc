"""Look at artifacts of a running server: what they are, who holds them, what points at them."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from globalstore.cli import connecting, exit_codes, output
from globalstore.client.blocking import BlockingConnection
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin

_ADMIN = admin.DESCRIPTOR.services_by_name["AdminService"].methods_by_name

Question = Callable[[argparse.Namespace, BlockingConnection], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    connecting.tell_exit_codes(parser)
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, question: Question, summary: str) -> Any:
        added = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        connecting.add_arguments(added)
        output.add_arguments(added)
        added.set_defaults(question=question, action=name)
        return added

    showing = action("show", _show, "Show an artifact, its seals, keys and places on disk.")
    showing.add_argument("artifact", metavar="ARTIFACT", help="id of the artifact")
    listing = action("list", _list, "List artifacts.")
    listing.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="of their ids")
    listing.add_argument(
        "--limit",
        type=output.count,
        default=1000,
        metavar="N",
        help="how many; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and print; return the exit code."""
    question = partial(arguments.question, arguments)
    return connecting.ask(f"artifact {arguments.action}", arguments, question)


def _show(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    request = admin.ShowArtifactRequest(artifact_id=arguments.artifact)
    shown = server.call(_ADMIN["ShowArtifact"], request)
    output.write(output.as_json(shown) if arguments.output == "json" else _text(shown))
    if shown.is_truncated:
        output.note("artifact show", "there are more of what points at it than these")
    return exit_codes.DONE


def _text(shown: admin.ShowArtifactResponse) -> str:
    artifact = shown.artifact
    pairs = [
        ("artifact", artifact.artifact_id),
        ("kind", artifact.id_kind),
        ("index", artifact.index_multihash),
        ("index size", f"{artifact.index_size} bytes" if artifact.HasField("index_size") else ""),
        ("data", artifact.data_multihash),
        ("size", f"{artifact.total_size} bytes" if artifact.total_size else ""),
        ("replicas", f"{artifact.replica_count}, {artifact.available_count} of them available"),
        ("created", _time(artifact, "created_at")),
        ("updated", _time(artifact, "updated_at")),
        ("sealed to", shown.sealed_to),
        ("sealed from", ", ".join(shown.sealed_from)),
        ("keys", ", ".join(shown.keys)),
    ]
    text = output.facts(pairs)
    if shown.places:
        rows = [
            (place.relative_path, place.kind, "deleted" if place.is_deleted else "there")
            for place in shown.places
        ]
        text += f"\n\n{output.table(('path', 'kind', 'on disk'), rows)}"
    return text


def _list(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    def page(after: str, size: int) -> tuple[Sequence[admin.ArtifactRecord], str]:
        answer = server.call(
            _ADMIN["ListArtifacts"],
            admin.ListArtifactsRequest(prefix=arguments.prefix, after=after, page_size=size),
        )
        return answer.artifacts, answer.next_after

    found, is_cut = output.collect(page, arguments.limit)
    if arguments.output == "json":
        output.write(output.as_json([output.as_dict(artifact) for artifact in found]))
    else:
        rows = [
            (
                artifact.artifact_id,
                artifact.id_kind or "-",
                "stored" if artifact.HasField("index_size") else "-",
                str(artifact.total_size or "-"),
                f"{artifact.available_count}/{artifact.replica_count}",
            )
            for artifact in found
        ]
        output.write(output.table(("artifact", "kind", "index", "size", "replicas"), rows))
    if is_cut:
        output.note("artifact list", output.CUT.format(len(found)))
    return exit_codes.DONE


def _time(artifact: admin.ArtifactRecord, field: str) -> str:
    return getattr(artifact, field).ToJsonString() if artifact.HasField(field) else ""
