"""Runs one proof by name: ``python -m tests.prove NAME``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys

PROOFS = {
    "blocks": "tests.prove.blocks",
    "cluster": "tests.prove.cluster",
    "console": "tests.prove.console",
    "console-live": "tests.prove.console_live",
    "crash": "tests.prove.crash",
    "contention": "tests.prove.contention",
    "damage": "tests.prove.damage",
    "deadlock": "tests.prove.deadlock",
    "deploy": "tests.prove.deploy",
    "dev": "tests.prove.dev",
    "disk": "tests.prove.disk",
    "examples": "tests.prove.examples",
    "failover": "tests.prove.failover",
    "fencing": "tests.prove.fencing",
    "f0": "tests.prove.f0",
    "frameworks": "tests.prove.frameworks",
    "grow": "tests.prove.grow",
    "guard": "tests.prove.guard",
    "hostile": "tests.prove.hostile",
    "house": "tests.prove.house",
    "impostor": "tests.prove.impostor",
    "keys": "tests.prove.keys",
    "last-failover": "tests.prove.last_failover",
    "live-recovery": "tests.prove.live_recovery",
    "move": "tests.prove.move",
    "operators": "tests.prove.operators",
    "partition": "tests.prove.partition",
    "poison": "tests.prove.poison",
    "relay": "tests.prove.relay",
    "runbook": "tests.prove.runbook",
    "setback": "tests.prove.setback",
    "shadowed": "tests.prove.shadowed",
    "types": "tests.prove.sql_types",
    "sqlalchemy": "tests.prove.sqlalchemy_twophase",
    "two-sidecars": "tests.prove.two_sidecars",
    "upgrade": "tests.prove.upgrade",
    "wire": "tests.prove.wire",
    "without-ledger": "tests.prove.without_ledger",
}


def main(argv: list[str]) -> int:
    """Run the proof and return the exit status, 0 if it holds. Stdout gets only the line of JSON; all other
    output goes to stderr."""
    if not argv or argv[0] not in PROOFS:
        print(f"usage: python -m tests.prove {{{','.join(PROOFS)}}} [options]", file=sys.stderr)
        return 2
    proof = importlib.import_module(PROOFS[argv[0]])
    parser = argparse.ArgumentParser(prog=f"prove {argv[0]}", description=proof.__doc__)
    proof.add_arguments(parser)
    result, holds = asyncio.run(proof.main(parser.parse_args(argv[1:])))
    print(json.dumps(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
