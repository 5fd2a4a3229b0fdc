"""A short run of the fuzzer over the engine; fuzz/rpc_engine.py runs for as long as asked."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

FUZZER = Path(__file__).parents[2] / "fuzz" / "rpc_engine.py"
FIRST_SEED = 5_000_000
ROUNDS = 3000


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rpc_engine_fuzz", FUZZER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_conversations_end_in_events_and_never_in_errors():
    fuzzer = load()
    seen: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + ROUNDS):
        print("seed", seed)
        seen += fuzzer.play(seed)
    # The damage must reach every part: a fuzzer that only meets one refusal proves nothing.
    for name in (
        "RequestReceived",
        "MessageReceived",
        "RequestEnded",
        "RequestMalformed",
        "RequestFaulted",
        "StreamReset",
        "ConnectionFailed",
    ):
        assert seen[name] > 0, name
