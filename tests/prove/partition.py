"""A partition splits Skeen's termination, and not that of a quorum: the scenario files, on real databases."""

from __future__ import annotations

import argparse
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from tests.scenarios.story import played, read, written
from tests.scenarios.three_phase import LEDGER, ThreePhase
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
NAMES = ("orders", "payments", "stock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:  # noqa: ARG001 - as all proofs
    async with AsyncExitStack() as stack:
        participants: dict[str, PostgresParticipant] = {}
        dsns: dict[str, str] = {}
        for name in NAMES:
            server = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await server.create_database(name)
            await _run(dsns[name], "create table note (text text primary key)")
            settings = ParticipantSettings(dsn=dsns[name])
            await migrate(name, settings)
            participants[name] = PostgresParticipant(name, settings, ledger_id=LEDGER)
            stack.push_async_callback(participants[name].close)
        told: dict[str, Any] = {}
        as_reviewed = True
        for number, rule in enumerate(("skeen", "quorum"), 1):
            path = SCENARIOS / f"three_phase_partition_{rule}.txt"
            story = ThreePhase(participants, number)
            trace = written(await played(read(path), story.play))
            print(trace, file=sys.stderr)
            notes = [await _run(dsn, "select count(*) from note") for dsn in dsns.values()]
            told[f"{rule}_split"] = len(set(notes)) > 1  # the data itself, not what undoubt says of it
            told[f"{rule}_committed_in"] = sum(notes)
            left = [branch for one in participants.values() for branch in await one.in_doubt()]
            told[f"{rule}_prepared_after"] = len(left)
            as_reviewed = as_reviewed and trace == path.read_text("utf-8")
            for dsn in dsns.values():
                await _run(dsn, "truncate note")
        told["as_reviewed"] = as_reviewed
    return told, as_reviewed and told["skeen_split"] and not told["quorum_split"]


async def _run(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


__all__ = ["add_arguments", "main"]
