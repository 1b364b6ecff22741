"""Settings from code, and a database that joins and leaves while the system runs."""

from __future__ import annotations

import asyncio
import tempfile

import undoubt
from undoubt.config import load
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.settings import ParticipantSettings


async def main() -> None:
    found = load()  # here only to learn where the databases are
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "ledger": {"url": f"sqlite:///{folder}/own.db"},
            "participants": {"orders": {"dsn": found.participants["orders"].dsn}},
        }
        async with undoubt.connect(settings) as coordinator:
            joining = ParticipantSettings(found.participants["payments"].dsn, connections_max=4)
            coordinator.add_participant(
                PostgresParticipant("payments", joining, ledger_id=coordinator.ledger_id)
            )
            async with coordinator.transaction() as tx:
                for name in ("orders", "payments"):
                    branch = await tx.branch(name)
                    print(name, await branch.fetchval("select current_database()"))
            await coordinator.remove_participant("payments")
            print("left:", ", ".join(participant.name for participant in coordinator.participants))


if __name__ == "__main__":
    asyncio.run(main())
