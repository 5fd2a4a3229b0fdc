"""What it costs to resolve a key, beside the least call there is.

    uv run bench/keys.py

The real server with a database file, on its default configuration; one connection keeps 64 calls in
flight. HealthCheck and ResolveKeyMapping take turns in short slices; a ratio is that of two
neighbouring slices. Keys are ``few`` (one of 64), ``many`` (one of 4096), of ``limited`` lifetime
(so that what is left of it is told), or ``unknown``. ``swapped`` are the few while one client swaps
them as fast as it can: of its cost everything counts.
"""

import argparse
import itertools
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from calls import IN_FLIGHT, checks
from measuring import global_store, spread, table
from wire_load import LoadClient, Slot, Wanted, call_each, call_once

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"

# Keys of the kinds of load.
_FEW, _MANY = 64, 4096

_INDEX = b'{"a":[0,16,[4],[1],"F32",0]}'
_TARGETS = ("model-a", "model-b")


def register_artifacts(port: int, *artifact_ids: str) -> None:
    """Make artifacts that keys may point at."""
    for artifact_id in artifact_ids:
        request = wire.UpsertArtifactMetadataRequest(
            descriptor=common.ArtifactDescriptor(
                artifact_id=artifact_id, index_multihash=multihash.of(_INDEX)
            ),
            canonical_index_data=_INDEX,
        )
        call_once(port, CATALOG + "UpsertArtifactMetadata", request.SerializeToString())


def upsert(port: int, keys: list[str], artifact_id: str, ttl_s: int = 0) -> None:
    """Point keys at an artifact, for a while or for ever, and resolve each once."""
    requests = []
    for key in keys:
        request = wire.UpsertKeyMappingRequest(key=key, artifact_id=artifact_id)
        if ttl_s:
            request.ttl.FromSeconds(ttl_s)
        requests.append(request.SerializeToString())
    call_each(port, CATALOG + "UpsertKeyMapping", requests)
    call_each(port, CATALOG + "ResolveKeyMapping", [_resolve(key) for key in keys])


def _resolve(key: str) -> bytes:
    return wire.ResolveKeyMappingRequest(key=key).SerializeToString()


def resolves(keys: list[str], share: int) -> Slot:
    """Resolve one key after the other, from a start that each of the slots has for itself."""
    requests = [_resolve(key) for key in keys]
    for number in itertools.count(share * len(keys) // IN_FLIGHT):
        yield Wanted(CATALOG + "ResolveKeyMapping", requests[number % len(requests)])


def swaps(keys: list[str]) -> Slot:
    """Point one key after the other at another artifact."""
    for number in itertools.count():
        request = wire.SwapKeyMappingRequest(
            key=keys[number % len(keys)], new_artifact_id=_TARGETS[number // len(keys) % 2]
        )
        yield Wanted(CATALOG + "SwapKeyMapping", request.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each slice")
    parser.add_argument("--many", type=int, default=_MANY, help="keys where there are many")
    arguments = parser.parse_args()
    kinds = {
        "few": [f"few-{number}" for number in range(_FEW)],
        "many": [f"many-{number}" for number in range(arguments.many)],
        "limited": [f"limited-{number}" for number in range(_FEW)],
        "unknown": [f"unknown-{number}" for number in range(_FEW)],
    }
    figures: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        server = stack.enter_context(global_store(folder / "store.db"))
        register_artifacts(server.port, *_TARGETS)
        for kind in ("few", "many", "limited"):
            upsert(server.port, kinds[kind], _TARGETS[0], 3600 if kind == "limited" else 0)
        slots = {
            kind: [resolves(keys, share) for share in range(IN_FLIGHT)]
            for kind, keys in kinds.items()
        }
        slots["swapped"] = [
            *(resolves(kinds["few"], share) for share in range(IN_FLIGHT - 1)),
            swaps(kinds["few"]),
        ]
        loads = {
            kind: stack.enter_context(LoadClient(server.port, [of])) for kind, of in slots.items()
        }
        check = stack.enter_context(LoadClient(server.port, [[checks() for _ in range(IN_FLIGHT)]]))
        for round_number in range(arguments.rounds + 1):
            for kind, client in loads.items():
                spent = []
                for each in (check, client):
                    before = server.cpu_s()
                    load = each.run(arguments.seconds)
                    spent.append((server.cpu_s() - before) * 1e6 / load.calls)
                if round_number:  # the first round warms up
                    figures.setdefault(kind, []).append((spent[0], spent[1]))
    rows = [
        [
            kind,
            spread([health for health, _ in measured]),
            spread([resolve for _, resolve in measured]),
            f"{median(resolve / health for health, resolve in measured):.2f}",
        ]
        for kind, measured in figures.items()
    ]
    table(["keys", "HealthCheck, CPU µs", "ResolveKeyMapping, CPU µs", "ratio"], rows)


if __name__ == "__main__":
    main()
