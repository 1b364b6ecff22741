"""Who prepares transactions under names that are none of theirs.

A *stranger* may connect to every database under a role of its own and sees every name that was ever prepared
there, but knows no key. It makes names up, and prepares again what was prepared before: after its end, or in
another database, there sometimes in the application's own role. An *insider*, who has that role too, comes
when all is over and prepares again what was committed: then only its transaction id tells it from the branch
that had the name.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.simulation.database import APPLICATION, SqlError
from tests.simulation.judge import Violation
from tests.simulation.participant import Link, NoAnswer
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import BRANCH_NUMBER_MAX, NUMBER_MAX, Gid, Protocol, TxId

if TYPE_CHECKING:
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World

REPLAYS_MAX = 5


async def prepare(
    link: Link, gid: str, role: str, *, claim: object = None, account: int | None = None
) -> None:
    """``account``: whose row it locks, else none that others use. Raises ``SqlError``, ``NoAnswer``."""
    await link.ask("login", role, True)
    await link.ask("begin", gid, claim)
    if account is None:
        await link.ask("write_elsewhere")
    else:
        await link.ask("update", account, 0, 1.0)
    await link.ask("prepare", gid)


class Stranger:
    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.random = world, process, world.random

    async def main(self) -> None:
        while not self.world.peace:
            await asyncio.sleep(self.random.expovariate(2.0))
            with contextlib.suppress(UndoubtError, SqlError, NoAnswer):
                await self.strike()

    async def strike(self) -> None:
        world, random = self.world, self.random
        database = random.choice(sorted(world.databases))
        gid, what = self.name(database)
        lasts = random.random() < 0.5
        account = None if lasts else random.randrange(world.accounts)
        # By the name, not drawn: the same seeds go on telling the same stories.
        role = APPLICATION if what == "in another database" and gid[-1] in "13579bdf" else "stranger"
        link = await Link.open(database, world.databases[database])
        try:
            await prepare(link, gid, role, claim=self.claim(database), account=account)
            world.counts[f"stranger: {what}"] += 1
            world.trace(self.process.name, f"prepares {gid} in {database} as {role}: {what}")
            if not lasts:
                await asyncio.sleep(random.uniform(0.1, 2.0))
                await link.ask(random.choice(["commit_prepared", "rollback_prepared"]), gid)
        finally:
            link.discard()

    def claim(self, database: str) -> object:
        """What somebody else's session says of itself there: everybody sees it."""
        sessions = self.world.servers[database][1].sessions
        claims = [session.work.claim for session in sessions.values() if session.work is not None]
        return self.random.choice([None, *claims])

    def name(self, database: str) -> tuple[str, str]:
        """And what is wrong with it."""
        world, random = self.world, self.random
        given = sorted(world.judge.given)
        if not given or random.random() < 0.05:
            return f"somebody:{random.getrandbits(32):08x}", "not ours"
        gid = Gid.parse(random.choice(given))
        assert isinstance(gid, Gid)
        if random.random() < 0.4:
            return str(gid), "again" if gid.participant == database else "in another database"
        what, made_up = random.choice(self.made_up(gid, database))
        world.judge.forged.add(str(made_up))
        if made_up.txid != gid.txid:
            world.judge.forged.add(str(made_up.txid))
        return str(made_up), what

    def made_up(self, gid: Gid, database: str) -> list[tuple[str, Gid]]:
        """From one that was given; each for ``database``."""
        txid = gid.txid
        here = replace(gid, participant=database)
        other = Protocol.THREE_PHASE if gid.protocol is Protocol.TWO_PHASE else Protocol.TWO_PHASE
        found = [
            ("wrong tag", replace(here, tag=f"{self.random.getrandbits(80):020x}")),
            ("no tag", replace(here, tag="")),
            ("another branch", replace(here, branch=BRANCH_NUMBER_MAX)),
            ("another protocol", replace(here, protocol=other)),
            ("another nonce", replace(here, txid=TxId(txid.session, f"{1:016x}", txid.seq))),
            ("huge transaction", replace(here, txid=TxId(txid.session, txid.nonce, NUMBER_MAX - 1))),
            ("huge session", replace(here, txid=TxId(NUMBER_MAX - 1, txid.nonce, 1))),
        ]
        return [(what, name) for what, name in found if str(name) not in self.world.judge.given]


class Insider:
    """Prepares committed branches again, where they were and in the role that they had."""

    def __init__(self, world: World, process: Process) -> None:
        self.world, self.process, self.done = world, process, False

    async def main(self) -> None:
        world = self.world
        ledger: Any = await world.open_ledger(self.process)
        for gid in await self.proved(ledger):
            link = await Link.open(gid.participant, world.databases[gid.participant])
            await prepare(link, str(gid), APPLICATION)
            world.counts["insider: again"] += 1
            world.trace(self.process.name, f"prepares {gid} again")
            link.discard()
        self.done = True

    async def proved(self, ledger: Any) -> list[Gid]:
        """Committed branches, of which the ledger has recorded the transaction id, and that nobody holds."""
        world, found = self.world, []
        for text, database in sorted(world.judge.given.items()):
            gid = Gid.parse(text)
            assert isinstance(gid, Gid)
            if gid.participant != database or text in world.disks[database].prepared:
                continue
            info = await ledger.transaction(gid.txid)
            recorded = {} if info is None else {branch.number: branch for branch in info.branches}
            if info is None or info.record is not RecordedDecision.COMMIT or gid.branch not in recorded:
                continue
            if recorded[gid.branch].tag != gid.tag:
                raise Violation(f"{gid} is recorded as {recorded[gid.branch]}")
            if recorded[gid.branch].xid is not None:
                found.append(gid)
        return found[-REPLAYS_MAX:]
