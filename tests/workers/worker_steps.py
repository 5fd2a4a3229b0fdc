"""Random programs of calls and mishaps: what a step may be, and how often it comes."""

import random
from typing import Any

import attrs

DAEMONS = 4


@attrs.frozen
class Step:
    """A method of ``Program`` and its arguments."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        text = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({text})"


# What each argument may be; the first, the usual one, as often as all others together.
_PLACE: dict[str, list[Any]] = {
    "artifact": ["a", "a", "b", "c"],
    "view": ["", "v"],
    "node": [None, 0, 0, 1],
    "port": [1, 2],
    "tier": [1, 2, 3],
    "device": [0, 1],
    "size": [100, 200],
    "keys": ["valid", "none"],
}
_ENTRY = _PLACE | {
    "keys": ["valid", "none", "wrong"],
    "port": [1, 2, 0],
    "available": [True, False, None],
}
_CALLS: dict[str, dict[str, list[Any]]] = {
    "register": {
        "endpoint": [None, *range(DAEMONS)],
        "node": [None, 0, 1],
        "port": [50052, 50052, 50052, 0],
        "recovery": [False, True],
        "previous": ["", "own", "other", "ghost"],
        "flags": [0, 1, 5],
    },
    "heartbeat": {
        "version": [0, -1, 1, None],
        "checksum": ["right", "", "wrong", "empty"],
        "accepting": [True, True, False],
        "flags": [None, 0, 4],
        "artifacts": [[], ["a"], ["b", "a"], ["c"]],
        "speaks_for": ["own", "", "other"],
    },
    "reconcile": {
        "entries": ["some", "mirror", "mirror", "empty"],
        "kind": [1, 2, 0],
        "seq": [1, 1, 0, -1, 2],
        "generation": [0, 0, 0, -1, 1],
        "speaks_for": ["own", "", "", "other"],
        "taken_s_ago": [None, 0, 6],
        "malformed": [False, False, False, True],
    },
    "unregister": {"graceful": [False, True], "request_id": ["", "u1", "u2"]},
    "replica": {"lost": [False, False, True]} | _PLACE,
}
_OTHERS: dict[str, dict[str, list[Any]]] = {
    "again": {},
    "claim": {"artifact": ["a", "b", "c"], "view": ["", "v"]},
    "listing": {"flags": [0, 1, 4], "unavailable": [False, True]},
    "everybody_beats": {},
    "leave_a_gap": {"daemon": [*range(DAEMONS)], "beats": [4, 2]},
    "sleep": {"seconds": [0.5, 3.0, 6.0, 10.2, 12.0]},
    "set_wall_clock": {"seconds": [-3, 7, -7200, 3600]},
    "restart": {"graceful": [False, True]},
}
_WEIGHTS = {
    "register": 10,
    "heartbeat": 12,
    "reconcile": 26,
    "unregister": 4,
    "replica": 12,
    "again": 6,
    "cut": 6,
    "claim": 6,
    "listing": 3,
    "everybody_beats": 10,
    "leave_a_gap": 2,
    "sleep": 6,
    "set_wall_clock": 3,
    "restart": 3,
}


def _draw(rng: random.Random, choices: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        name: values[0] if rng.random() < 0.5 else rng.choice(values)
        for name, values in choices.items()
    }


def _step(rng: random.Random, name: str) -> Step:
    if name == "cut":
        call = _step(rng, rng.choice([*_CALLS]))
        return Step(name, {"call": call, "turns": rng.randrange(7)})
    arguments = _draw(rng, _CALLS.get(name) or _OTHERS[name])
    if name in _CALLS:
        arguments["daemon"] = rng.randrange(DAEMONS)
    if arguments.get("entries") == "some":
        arguments["entries"] = [_draw(rng, _ENTRY) for _ in range(rng.randint(1, 4))]
    return Step(name, arguments)


def program(seed: int, length: int) -> list[Step]:
    """Return the steps that follow from a seed."""
    rng = random.Random(seed)
    return [_step(rng, rng.choices([*_WEIGHTS], [*_WEIGHTS.values()])[0]) for _ in range(length)]
