"""Every key of ``worker_policy.transport_scheduler`` reaches those who choose and rank."""

from typing import Any

import pytest
from servers import configuration, serving

from globalstore.config import without_effect
from globalstore.rules.scoring import Mode, Scoring, Spread, Weights
from globalstore.scheduling.queue_order import Fairness
from globalstore.scheduling.waiters import Policy
from globalstore.server.components import queue_policy


def policy(**scheduler: Any) -> Policy:
    config = configuration(worker_policy={"transport_scheduler": scheduler})
    return queue_policy(config.worker_policy.transport_scheduler)


def test_the_defaults_are_those_of_the_contract() -> None:
    assert policy() == Policy(
        max_waiters=65_536,
        scan_limit=128,
        batch_limit=16,
        scoring=Scoring(Mode.GROUP_DISPATCH, Weights(1, 1, 1, 1), Spread(2.0, 1.3, 3)),
        fairness=Fairness(0.25, 1.0, 5.0),
        relaxed_group_kinds=frozenset({"tp_version"}),
    )


def test_every_key_has_its_place_and_a_zero_is_kept() -> None:
    chosen = policy(
        mode="SOURCE_BALANCE",
        max_waiters=7,
        source_balance_weights={
            "replica_load_weight": 0,
            "worker_load_weight": 0.25,
            "recent_assignment_penalty_weight": 3,
            "diffusion_bonus_weight": 0.0,
        },
        group_dispatch={
            "fairness_floor_ratio": 0,
            "completion_bias_weight": 0,
            "starvation_aging_threshold": "2.5s",
            "queue_scan_limit": 9,
            "dispatch_batch_limit": 4,
            "group_source_spread_weight": 0,
            "group_source_soft_cap_ratio": 0,
            "group_source_min_candidates_for_enforce": 5,
            "relaxed_group_kinds": ["A", "b"],
        },
    )
    assert chosen == Policy(
        max_waiters=7,
        scan_limit=9,
        batch_limit=4,
        scoring=Scoring(Mode.SOURCE_BALANCE, Weights(0, 0.25, 3, 0), Spread(0, 0, 5)),
        fairness=Fairness(0, 0, 2.5),
        relaxed_group_kinds=frozenset({"a", "b"}),
    )


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("LEGACY", Mode.LEGACY),
        ("TRANSPORT_SCHEDULER_MODE_LEGACY", Mode.LEGACY),
        (2, Mode.SOURCE_BALANCE),
        (0, Mode.GROUP_DISPATCH),
        ("UNSPECIFIED", Mode.GROUP_DISPATCH),
    ],
)
def test_the_mode_is_the_one_that_is_set_and_unspecified_is_the_default(
    given: object, mode: Mode
) -> None:
    assert policy(mode=given).scoring.mode is mode


def test_floors_hold() -> None:
    dispatch = {
        "queue_scan_limit": 0,
        "dispatch_batch_limit": 0,
        "group_source_min_candidates_for_enforce": 0,
    }
    chosen = policy(group_dispatch=dispatch)
    assert (chosen.scan_limit, chosen.batch_limit) == (1, 1)
    assert chosen.scoring.spread.candidates_min == 1


def test_no_key_of_the_scheduler_is_said_to_bewithout_effect() -> None:
    scheduler = {
        "mode": "SOURCE_BALANCE",
        "source_balance_weights": {"diffusion_bonus_weight": 0},
        "group_dispatch": {"completion_bias_weight": 7},
    }
    config = configuration(worker_policy={"transport_scheduler": scheduler})
    assert not [line for line in without_effect(config) if "transport_scheduler" in line]


async def test_the_queues_of_a_server_follow_its_configuration() -> None:
    config = configuration(worker_policy={"transport_scheduler": {"mode": "LEGACY"}})
    async with serving(config) as store:
        assert store.components.queues.scoring == Scoring(Mode.LEGACY)
