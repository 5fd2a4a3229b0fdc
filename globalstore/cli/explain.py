"""Show how each replica of an artifact would fare in the choice of a source, and why.

The server is asked what a request would be told at this moment. Nothing is granted or changed.
"""

import argparse

from globalstore.cli import connecting, exit_codes, output
from globalstore.client.blocking import BlockingConnection
from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.text.printing import printable

_ADMIN = admin.DESCRIPTOR.services_by_name["AdminService"].methods_by_name

_HEAD = (
    "#", "replica", "worker", "address", "memory", "load", "worker load", "idle s", "load +",
    "worker +", "recent +", "diffusion -", "score", "ruled out by",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="id of the artifact")
    parser.add_argument("--view", default="", metavar="ID", help="a view instead of the canon")
    parser.add_argument(
        "--for", dest="requester", default="", metavar="WORKER", help="mark what this worker holds"
    )
    connecting.add_arguments(parser)
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print; return the exit code: an artifact that nobody holds is not there."""

    def question(server: BlockingConnection) -> int:
        answer = server.call(
            _ADMIN["ExplainSources"],
            admin.ExplainSourcesRequest(
                artifact_id=arguments.artifact,
                view_id=arguments.view,
                requester_worker_id=arguments.requester,
            ),
        )
        is_json = arguments.output == "json"
        output.write(output.as_json(answer) if is_json else _table(arguments, answer))
        if answer.is_truncated:
            output.note("explain", output.CUT.format(len(answer.sources)))
        return exit_codes.DONE if answer.sources else exit_codes.NOT_SO

    return connecting.ask("explain", arguments, question)


def _table(arguments: argparse.Namespace, answer: admin.ExplainSourcesResponse) -> str:
    verdict = (
        f"{arguments.artifact}{f', view {arguments.view}' if arguments.view else ''}: a request"
        f" would be told {answer.verdict!r} ({answer.mode}); {answer.waiting} waiting"
        + (f", {answer.waiting_of_requester} of them its own" if arguments.requester else "")
    )
    lines = [printable(verdict)]
    if answer.sources:
        rows = [_row(source) for source in answer.sources]
        lines += ["", output.table(_HEAD, rows)]
    return "\n".join(lines)


def _row(source: admin.ExplainedSource) -> list[str]:
    idle = f"{source.idle_seconds:.1f}" if source.HasField("idle_seconds") else "never"
    terms = (source.replica_load, source.worker_load, source.recent, source.diffusion, source.score)
    return [
        str(source.rank or "-"),
        source.replica_id,
        source.worker_id + (" (own)" if source.is_own else ""),
        f"{source.node_address}:{source.node_port}",
        f"{source.memory_type} {source.device_id}",
        f"{source.current_requests}/{source.max_concurrency}",
        f"{source.worker_requests}/{source.worker_capacity}",
        idle,
        *(f"{term:.3f}" for term in terms),
        ", ".join(source.reasons),
    ]
