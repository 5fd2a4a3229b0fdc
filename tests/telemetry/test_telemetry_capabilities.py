"""The gauge of capabilities against the flags of everybody there, after any changes."""

import random

import pytest

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.telemetry.capabilities import (
    INSTANCE_CAPABILITIES,
    WORKER_CAPABILITIES,
    CapabilityDirectory,
)
from globalstore.telemetry.metrics import Metrics

SCOPES = {"worker": WORKER_CAPABILITIES, "instance": INSTANCE_CAPABILITIES}
ENUMS = {"worker": wire.WorkerCapabilityFlag, "instance": wire.InstanceCapabilityFlag}


@pytest.mark.parametrize("scope", SCOPES)
def test_the_bits_are_those_of_the_wire(scope):
    flags = ENUMS[scope].DESCRIPTOR.values_by_number
    for name, bit in SCOPES[scope].items():
        assert flags[bit.bit_length() - 1].name.lower().endswith(name)
    assert len(SCOPES[scope]) == len(flags) - 1


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gauge_is_what_counting_everybody_would_give(scope):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    metrics = Metrics()
    directory = CapabilityDirectory(metrics.workers.capability_entries, scope, SCOPES[scope])
    there: dict[int, int] = {}
    for _ in range(500):
        entry = rng.randrange(20)
        before, after = there.get(entry, 0), rng.choice([0, rng.getrandbits(64)])
        there[entry] = after
        directory.changed(before, after)
        for name, bit in SCOPES[scope].items():
            labels = {"scope": scope, "capability": name}
            shown = metrics.registry.get_sample_value("tc_capability_directory_entries", labels)
            assert shown == sum(bool(flags & bit) for flags in there.values())
