"""Look at keys of a running server, and change where they point."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from globalstore.cli import connecting, exit_codes, output
from globalstore.client.blocking import BlockingConnection
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

_ADMIN = admin.DESCRIPTOR.services_by_name["AdminService"].methods_by_name
_CATALOG = wire.DESCRIPTOR.services_by_name["ArtifactCatalogService"].methods_by_name

Question = Callable[[argparse.Namespace, BlockingConnection], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    connecting.tell_exit_codes(parser)
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, question: Question, summary: str, *, named: bool = True) -> Any:
        added = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if named:
            # Not ``key``, which is that of the client's certificate.
            added.add_argument("name", metavar="KEY", help="name of the key")
        connecting.add_arguments(added)
        output.add_arguments(added)
        added.set_defaults(question=question, action=name)
        return added

    action("get", _get, "Show where a key points, and where it pointed before.")
    setting = action("set", _set, "Point a new key at an artifact, or refresh one that does.")
    setting.add_argument("artifact", metavar="ARTIFACT", help="id of the artifact")
    setting.add_argument(
        "--ttl", type=output.seconds, metavar="SECONDS", help="let it expire; 0: uncached"
    )
    setting.add_argument("--replica", default="", metavar="UUID", help="a hint for who resolves it")
    setting.add_argument("--daemon", default="", metavar="ADDRESS", help="another one")
    swapping = action("swap", _swap, "Point a key at another artifact, if the guards hold.")
    swapping.add_argument("artifact", metavar="ARTIFACT", help="id of the new artifact")
    swapping.add_argument(
        "--if-artifact", default="", metavar="ID", help="only if it points there now"
    )
    swapping.add_argument(
        "--if-generation",
        type=output.generation,
        metavar="N",
        help="only if that is its generation now",
    )
    swapping.add_argument(
        "--operation", default="", metavar="ID", help="makes it safe to try again after no answer"
    )
    action("revoke", _revoke, "Let a key point at nothing.")
    listing = action("list", _list, "List keys.", named=False)
    listing.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="of their names")
    listing.add_argument("--all", action="store_true", help="also keys that point at nothing")
    listing.add_argument(
        "--limit",
        type=output.count,
        default=1000,
        metavar="N",
        help="keys at most; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and print; return the exit code."""
    question = partial(arguments.question, arguments)
    return connecting.ask(f"key {arguments.action}", arguments, question)


def _get(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    shown = server.call(_ADMIN["ShowKey"], admin.ShowKeyRequest(key=arguments.name))
    if arguments.output == "json":
        output.write(output.as_json(shown))
    else:
        key = shown.key
        pairs = [
            ("key", key.key),
            ("points at", _target(key)),
            ("generation", str(key.generation)),
            ("kind", key.kind),
            ("expires in", _expires_in(key)),
            ("replica", key.replica_uuid),
            ("daemon", key.daemon_address),
            ("updated", key.updated_at.ToJsonString()),
        ]
        rows = [
            (
                str(each.generation),
                each.artifact_id or each.version_set_id,
                each.began_at.ToJsonString(),
                each.ended_at.ToJsonString() if each.HasField("ended_at") else "-",
            )
            for each in shown.generations
        ]
        titles = ("generation", "artifact", "from", "until")
        output.write(f"{output.facts(pairs)}\n\n{output.table(titles, rows)}")
    if shown.is_truncated:
        output.note("key get", "there are older generations than these")
    return _code(bool(shown.key.artifact_id or shown.key.version_set_id))


def _set(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    request = wire.UpsertKeyMappingRequest(
        key=arguments.name,
        artifact_id=arguments.artifact,
        replica_uuid=arguments.replica,
        daemon_address=arguments.daemon,
    )
    if arguments.ttl is not None:
        request.ttl.FromSeconds(arguments.ttl)
    answer = server.call(_CATALOG["UpsertKeyMapping"], request)
    done = answer.status == wire.STATUS_OK
    sentence = (
        f"{arguments.name} points at {arguments.artifact}" if done else answer.conflict_reason
    )
    return _print(arguments, answer, sentence, done)


def _swap(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    answer = server.call(
        _CATALOG["SwapKeyMapping"],
        wire.SwapKeyMappingRequest(
            key=arguments.name,
            new_artifact_id=arguments.artifact,
            expected_artifact_id=arguments.if_artifact,
            expected_generation=arguments.if_generation,
            operation_id=arguments.operation,
        ),
    )
    done = answer.status == wire.STATUS_OK
    if answer.artifact_id:
        target = f"points at {answer.artifact_id}, generation {answer.generation}"
    else:
        target = "points at no artifact"
    sentence = f"{arguments.name} {target}" + ("" if done else "; nothing was changed")
    return _print(arguments, answer, sentence, done)


def _revoke(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    answer = server.call(
        _CATALOG["RevokeKeyMapping"], wire.RevokeKeyMappingRequest(key=arguments.name)
    )
    done = answer.status == wire.STATUS_OK
    sentence = f"{arguments.name} points at nothing" + (" now" if done else "; nothing was changed")
    return _print(arguments, answer, sentence, done)


def _print(arguments: argparse.Namespace, answer: Any, sentence: str, done: bool) -> int:
    if arguments.output == "json":
        output.write(output.as_json(answer))
    else:
        output.say(sentence)
    return _code(done)


def _code(done: bool) -> int:
    return exit_codes.DONE if done else exit_codes.NOT_SO


def _list(arguments: argparse.Namespace, server: BlockingConnection) -> int:
    def page(after: str, size: int) -> tuple[Sequence[admin.KeyRecord], str]:
        answer = server.call(
            _ADMIN["ListKeys"],
            admin.ListKeysRequest(
                prefix=arguments.prefix,
                include_absent=arguments.all,
                after=after,
                page_size=size,
            ),
        )
        return answer.keys, answer.next_after

    found, is_cut = output.collect(page, arguments.limit)
    if arguments.output == "json":
        output.write(output.as_json([output.as_dict(key) for key in found]))
    else:
        rows = [
            (key.key, _target(key), str(key.generation), key.kind, _expires_in(key) or "-")
            for key in found
        ]
        titles = ("key", "points at", "generation", "kind", "expires in")
        output.write(output.table(titles, rows))
    if is_cut:
        output.note("key list", output.CUT.format(len(found)))
    return exit_codes.DONE


def _target(key: admin.KeyRecord) -> str:
    return key.artifact_id or key.version_set_id or "nothing"


def _expires_in(key: admin.KeyRecord) -> str:
    return f"{key.expires_in_seconds:.1f} s" if key.HasField("expires_in_seconds") else ""
