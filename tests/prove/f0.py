"""With one acceptor Paxos Commit is two-phase commit: messages and durable writes of both, counted."""

from __future__ import annotations

import argparse
from typing import Any

from tests.coordinator.costs import cost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--participants", type=int, default=2)


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    two_phase = await cost("2pc", options.participants)
    paxos = await cost("paxos", options.participants, acceptors=1)
    return {"2pc": two_phase._asdict(), "paxos": paxos._asdict()}, two_phase == paxos
