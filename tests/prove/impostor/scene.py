"""One scene: an honest system at work, and what is looked at after each attack on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

import undoubt
from tests.prove.bank import NAMES, audit
from tests.prove.impostor.honest import RECOVERED_S, Breach, Honest, Kind
from tests.prove.impostor.people import APP, ATTACKERS, CHIEF, SCHEMER, admin
from tests.prove.impostor.plant import loot
from undoubt.coordinator.ledger.contract import Heuristic, SessionState

_END_SESSIONS = """
    select pg_terminate_backend(pid, 5000) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""


class Scene(Honest):
    """See the module."""

    async def judge(self) -> list[Breach]:
        """What the attack has done, by all that can be seen; then what it has left is taken away."""
        found, self.breaches = self.breaches, []
        found += [Breach(Kind.STALL, trouble) for trouble in self._drain_troubles()]
        if dead := self.servers.dead_nodes():
            found.append(Breach(Kind.NODE, f"nodes {dead} have ended"))
        else:
            try:
                async with asyncio.timeout(20):
                    found += await self._judge_ledger()
            except (undoubt.UndoubtError, TimeoutError) as error:
                found.append(Breach(Kind.NODE, f"the ledger does not answer: {type(error).__name__} {error}"))
        found += await self._judge_rights()
        await self._clean()
        return found

    def _drain_troubles(self) -> list[str]:
        drained, self._troubles = self._troubles, []
        return drained

    async def _judge_ledger(self) -> list[Breach]:
        found = []
        missing = dict(self._expected)
        for heuristic in await self._heuristics(missing):
            wanted = missing.pop(str(heuristic.gid), None)
            if wanted is not heuristic.kind and str(heuristic.gid) not in self._late:
                found.append(Breach(Kind.RECORD, f"{heuristic.kind} of {heuristic.gid}"))
            await self.ledger.forget_heuristic(heuristic.gid)
        found += [Breach(Kind.OUTCOME, f"nobody was told: {kind} of {gid}") for gid, kind in missing.items()]
        self._late |= self._expected.keys()
        self._expected.clear()
        txids = {str(info.txid) for info in await self.ledger.transactions(limit=300)}
        txids |= {str(record.txid) for record in await self.ledger.unfinished()}
        forged = sorted(txids - self.honest)
        found += [Breach(Kind.RECORD, f"a decision about {txid}, which never was") for txid in forged]
        self.honest |= set(forged)
        for session in await self.ledger.sessions():
            if session.name != "honest" and session.state is SessionState.OPEN:
                found.append(Breach(Kind.RECORD, f"session {session.id} of {session.name!r}"))
        return found

    async def _heuristics(self, wanted: Collection[str]) -> list[Heuristic]:
        """All that are open; those that are wanted may take a moment."""
        end = asyncio.get_running_loop().time() + (RECOVERED_S if wanted else 0)
        while True:
            found = list(await self.ledger.heuristics())
            if set(wanted) <= {str(one.gid) for one in found} or asyncio.get_running_loop().time() >= end:
                return found
            await asyncio.sleep(0.02)

    async def _judge_rights(self) -> list[Breach]:
        found = []
        for place, database in self._everywhere():
            async with admin(self.servers.admin_dsn(place, database)) as root:
                for who, what in await loot(root):
                    found.append(Breach(Kind.SUPERUSER, f"{who} ran an attacker's code at {place}: {what}"))
                rows = await root.fetch(
                    "select rolname, rolsuper from pg_roles r"
                    " where rolname in ('mallory', 'landlord', 'schemer') and (rolsuper or exists"
                    " (select from pg_auth_members where member = r.oid))"
                )
                if rows:
                    await root.execute(_END_SESSIONS)  # they may be in the middle of it
                for row in rows:
                    found.append(Breach(Kind.SUPERUSER, f"{row['rolname']} at {place} has new rights"))
                    await root.execute(f"alter role {row['rolname']} nosuperuser")
                    for role in (APP, CHIEF):
                        await root.execute(f"revoke {role} from {row['rolname']}")
        return found

    async def _clean(self) -> None:
        """Take away what the attackers have prepared, and written of what is still to come."""
        for place in NAMES:
            async with admin(self.servers.admin_dsn(place, self.database)) as root:
                with contextlib.suppress(Exception):
                    await root.execute(
                        "delete from undoubt.undoubt_commit where not (txid = any ($1::text[]))", self.honest
                    )
        self.hooks.clear()
        for attacker in self._attackers:
            await attacker.close()
        await self._forget_what_was_left()
        for place in NAMES:
            async with admin(self.servers.admin_dsn(place, "postgres")) as root:
                rows = await root.fetch(
                    "select gid, database, owner from pg_prepared_xacts"
                    " where owner in ('mallory', 'landlord', 'schemer')"
                )
            for row in rows:
                async with admin(self.servers.admin_dsn(place, row["database"])) as root:
                    with contextlib.suppress(Exception):
                        await root.execute(f"rollback prepared '{row['gid']}'")

        if self.stand.quiet:
            await self._clear_ground()

    async def _clear_ground(self) -> None:
        await self.stop_recovery()
        for place, database in self._everywhere():
            async with admin(self.servers.admin_dsn(place, database)) as root:
                await root.execute(_END_SESSIONS)
                for role in ATTACKERS:
                    await root.execute(f"drop owned by {role} cascade")
                await root.execute(f'alter database "{database}" reset all')
        for place, database in self._everywhere():  # DROP OWNED has revoked it in all of a server's databases
            async with admin(self.servers.admin_dsn(place, database)) as root:
                await root.execute(f'grant create on database "{database}" to {SCHEMER}')
        if self._databases:
            self.database = self._databases[0]
            self._databases.clear()
            self.settings = self._at(self._dsns())
        await self.anew()
        await self.start_recovery()

    def _everywhere(self) -> list[tuple[str, str]]:
        """Places and databases in which an attacker may have been."""
        found = [(place, database) for place in NAMES for database in [*self._databases, self.database]]
        if self.stand.ledger == "postgresql":
            name = self._databases[0] if self._databases else self.database
            found.append((NAMES[0], f"{name}_ledger"))
        return found

    async def count_money(self) -> list[Breach]:
        """At the end, when nothing is under way: nothing half applied, nothing told otherwise than it is. In
        every database that transfers were made in."""
        await self.stop_work()
        await self.passes(3)
        return [
            breach for database in sorted(set(self.where.values())) for breach in await self._count(database)
        ]

    async def _count(self, database: str) -> list[Breach]:
        dsns = {place: self.servers.admin_dsn(place, database) for place in NAMES}
        transfers = {
            name: told
            for name, told in self.told.items()
            if not name.startswith("s") and self.where[name] == database
        }
        committed = [name for name, told in transfers.items() if told == "committed"]
        aborted = [name for name, told in transfers.items() if told == "TransactionAborted"]
        found = await audit(dsns, committed, aborted)
        wrong = {
            "half applied": found.half_applied,
            "told committed and lost": found.acknowledged_lost,
            "told aborted and applied": found.aborted_applied,
            "still prepared": found.prepared,
            "money out of nothing": [str(found.money)] if found.money else [],
        }
        return [Breach(Kind.OUTCOME, f"{what}: {names}") for what, names in wrong.items() if names]
