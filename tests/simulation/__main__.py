"""``python -m tests.simulation --seed 7``: that run's trace. ``--seeds 200``: which of that many fail."""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation.runner import replay, run_many


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets and dictionaries of strings would else iterate in another order each time.
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
                  {**os.environ, "PYTHONHASHSEED": "0"})  # fmt: skip
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int)
    which.add_argument("--seeds", type=int)
    parser.add_argument("--first", type=int, default=None, help="the first of --seeds; else drawn")
    parser.add_argument("--nodes", type=int, default=None, help="that keep the ledger, 0: a file; else drawn")
    parser.add_argument("--protocol", default=None, help="of every transaction; else drawn")
    parser.add_argument("--keyed", action="store_true", help="transactions have keys, and one protocol")
    parser.add_argument("--locks", action="store_true", help="applications hold locks of the ledger too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--verbose", action="store_true", help="every statement of every database")
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(asked)
    return run_many(asked)


if __name__ == "__main__":
    sys.exit(main())
