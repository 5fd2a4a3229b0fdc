"""A cluster in simulated time: whatever goes wrong, the well live on and the dead do not."""

import logging
import os

import pytest
from simulated_cluster import simulate

SEED = int(os.environ.get("SIMULATION_SEED", "1"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing run prints its own last events."""
    monkeypatch.setattr(logging.root, "disabled", True)


def test_a_hundred_daemons_live_through_ten_minutes_of_faults() -> None:
    outcome = simulate(SEED, daemons=100, minutes=10)
    happened = outcome.counts
    assert happened["crashes"] > 20
    assert happened["WorkerHeartbeat STATUS_NOT_FOUND"] > 10
    assert happened.get("is killed", 0) + happened.get("stops", 0) > 1


def test_one_seed_is_one_history() -> None:
    first, again = (simulate(SEED + 1, daemons=30, minutes=3) for _ in range(2))
    assert first == again
    assert simulate(SEED + 2, daemons=30, minutes=3).digest != first.digest
