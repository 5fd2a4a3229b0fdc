"""The scheduling policy, made from the configuration."""

from globalstore.config.schema.worker_policy import TransportScheduler
from globalstore.rules.scoring import Mode, Scoring, Spread, Weights
from globalstore.scheduling.queue_order import Fairness
from globalstore.scheduling.waiters import Policy


def queue_policy(chosen: TransportScheduler) -> Policy:
    """Return how sources are chosen and requests ordered, as configured."""
    weights, groups = chosen.source_balance_weights, chosen.group_dispatch
    return Policy(
        max_waiters=chosen.max_waiters,
        scan_limit=groups.queue_scan_limit,
        batch_limit=groups.dispatch_batch_limit,
        scoring=Scoring(
            Mode[chosen.mode.name.removeprefix("TRANSPORT_SCHEDULER_MODE_")],
            Weights(
                weights.replica_load_weight,
                weights.worker_load_weight,
                weights.recent_assignment_penalty_weight,
                weights.diffusion_bonus_weight,
            ),
            Spread(
                groups.group_source_spread_weight,
                groups.group_source_soft_cap_ratio,
                groups.group_source_min_candidates_for_enforce,
            ),
        ),
        fairness=Fairness(
            groups.fairness_floor_ratio,
            groups.completion_bias_weight,
            groups.starvation_aging_threshold,
        ),
        relaxed_group_kinds=frozenset(kind.lower() for kind in groups.relaxed_group_kinds),
    )
