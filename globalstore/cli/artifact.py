"""Look at artifacts of a running server: what they are, who holds them, what points at them."""

import argparse
from collections.abc import Callable
from typing import Any

from globalstore.cli import connecting, output
from globalstore.client.blocking import BlockingConnection
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin

_ADMIN = admin.DESCRIPTOR.services_by_name["AdminService"].methods_by_name

Question = Callable[[argparse.Namespace, BlockingConnection], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
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
        "--limit", type=int, default=1000, metavar="N", help="how many; default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""

    def question(server: BlockingConnection) -> None:
        arguments.question(arguments, server)

    return connecting.ask(f"artifact {arguments.action}", arguments, question)


def _show(arguments: argparse.Namespace, server: BlockingConnection) -> None:
    request = admin.ShowArtifactRequest(artifact_id=arguments.artifact)
    shown = server.call(_ADMIN["ShowArtifact"], request)
    if arguments.output == "json":
        print(output.as_json(shown))
        return
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
    print(output.facts(pairs))
    if shown.places:
        rows = [
            (place.relative_path, place.kind, "deleted" if place.is_deleted else "there")
            for place in shown.places
        ]
        print()
        print(output.table(("path", "kind", "on disk"), rows))


def _list(arguments: argparse.Namespace, server: BlockingConnection) -> None:
    found: list[admin.ArtifactRecord] = []
    after = ""
    while len(found) < arguments.limit:
        page = server.call(
            _ADMIN["ListArtifacts"],
            admin.ListArtifactsRequest(
                prefix=arguments.prefix, after=after, page_size=arguments.limit - len(found)
            ),
        )
        found += page.artifacts
        after = page.next_after
        if not after:
            break
    if arguments.output == "json":
        print(output.as_json([output.as_dict(artifact) for artifact in found]))
        return
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
    print(output.table(("artifact", "kind", "index", "size", "replicas"), rows))
    if after:
        print(f"There are more; these are {len(found)} of them.")


def _time(artifact: admin.ArtifactRecord, field: str) -> str:
    return getattr(artifact, field).ToJsonString() if artifact.HasField(field) else ""
