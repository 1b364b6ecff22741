"""Sessions of a PostgreSQL ledger are renewed however busy their process is."""

from __future__ import annotations

import asyncio

from tests.coordinator.ledger.postgres_stage import Held, opened, settings_for
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.postgres import connections

WAITING = """select count(*) from pg_locks as l join pg_database as d on d.oid = l.database
              where not l.granted and d.datname = current_database()"""


async def test_a_renewal_waits_behind_no_other_request(database: str) -> None:
    """A live process would lose its locks, and its transactions, through its own requests."""
    settings = settings_for(database)
    await maintenance.init(settings)
    async with opened(settings) as ledger, Held.connect(database) as admin:
        session = await ledger.open_session("test", 60)
        await admin.run("begin")
        await admin.run("lock table undoubt_ledger.lock in access exclusive mode")
        asking = [asyncio.create_task(ledger.locks()) for _ in range(2 * connections.CONNECTIONS_MAX)]
        async with asyncio.timeout(60):
            while await admin.run(WAITING) != [(connections.CONNECTIONS_MAX,)]:
                await asyncio.sleep(0.01)
        for _ in range(3):
            await ledger.keep_alive(session, 1)
        assert not any(task.done() for task in asking)
        await admin.run("commit")
        assert await asyncio.gather(*asking) == [[]] * len(asking)
