"""``python tests/simulation``: a run as long as one likes, of any seed."""

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import globalstore.rpc  # noqa: F401  before purerpc, which needs what this mends


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--daemons", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    from simulated_cluster import simulate

    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    outcome = simulate(arguments.seed, daemons=arguments.daemons, minutes=arguments.minutes)
    print(
        f"{arguments.minutes:g} minutes in {time.monotonic() - began:.1f} s, hash {outcome.digest}"
    )
    for event, times in sorted(outcome.counts.items()):
        print(f"{times:7} {event}")


if __name__ == "__main__":
    main()
