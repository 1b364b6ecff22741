"""``python -m tests.models --model twophase --rms 3``: explore one model and print one line."""

from __future__ import annotations

import argparse
import sys
import time

from tests.models.paxos_commit import paxos_commit
from tests.models.search import Found, explore
from tests.models.transaction import tcommit, two_phase

NAMES = {"tcommit": "TCommit", "twophase": "TwoPhase", "paxoscommit": "PaxosCommit"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make models", description=__doc__)
    parser.add_argument("--model", required=True, choices=list(NAMES))
    parser.add_argument("--rms", type=int, default=2, help="resource managers")
    parser.add_argument("--acceptors", type=int, default=3)
    parser.add_argument("--ballots", type=int, default=2, help="ballot 0 included")
    given = parser.parse_args()
    bounds = {"rms": given.rms}
    match given.model:
        case "tcommit":
            model = tcommit(given.rms)
        case "twophase":
            model = two_phase(given.rms)
        case _:
            bounds |= {"acceptors": given.acceptors, "ballots": given.ballots}
            model = paxos_commit(**bounds)
    started = time.monotonic()
    try:
        explored = explore(model)
    except Found as error:
        print(error, file=sys.stderr)
        print(f"{NAMES[given.model]} is wrong: {error.what}")
        return 1
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    told = " ".join(f"{name}={value}" for name, value in bounds.items())
    print(f"{NAMES[given.model]} {told} states={explored.count} depth={explored.depth}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
