"""``python -m tests.models --model twophase --rms 3``: explore one model and print one line."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tests.models.our_paxos import Bounds, our_paxos
from tests.models.paxos_commit import paxos_commit
from tests.models.search import Found, Model, explore
from tests.models.transaction import tcommit, two_phase
from undoubt.coordinator.quorum import Joint

NAMES = {"tcommit": "TCommit", "twophase": "TwoPhase", "paxoscommit": "PaxosCommit", "our-paxos": "OurPaxos"}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make models", description=__doc__)
    parser.add_argument("--model", required=True, choices=list(NAMES))
    parser.add_argument("--rms", type=int, default=2, help="resource managers; of our-paxos, branches")
    parser.add_argument("--acceptors", type=int, default=3)
    parser.add_argument("--ballots", type=int, default=2, help="ballot 0 and each recovery's")
    parser.add_argument("--no-forget", action="store_true", help="our-paxos: acceptors keep everything")
    parser.add_argument("--slow", action="store_true", help="our-paxos: hearing and storing are two steps")
    return parser


def chosen(given: argparse.Namespace) -> tuple[Model[Any], dict[str, int]]:
    """The model, and the bounds that it goes by."""
    bounds = {"rms": given.rms, "acceptors": given.acceptors, "ballots": given.ballots}
    match given.model:
        case "tcommit":
            return tcommit(given.rms), {"rms": given.rms}
        case "twophase":
            return two_phase(given.rms), {"rms": given.rms}
        case "paxoscommit":
            return paxos_commit(**bounds), bounds
        case _:
            ours = Bounds(
                branches=given.rms,
                acceptors=Joint(frozenset(range(1, given.acceptors + 1))),
                nodes=given.acceptors,
                recoveries=given.ballots - 1,
                slow=given.slow,
                forget=not given.no_forget,
            )
            return our_paxos(ours), bounds


def main() -> int:
    given = parser().parse_args()
    model, bounds = chosen(given)
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
