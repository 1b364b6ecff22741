"""Names of sessions, locks and notes: what everybody may write, and undoubt reads or waits for."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import asyncpg

import undoubt
from tests.prove.bank import NAMES
from tests.prove.impostor.attacks import TWO_PHASE, at_participants, attack
from tests.prove.impostor.honest import DECIDED, TIMEOUT_S, Kind
from tests.prove.impostor.people import Attacker, Connection, admin, forged, numbers_in, parts_of
from tests.prove.impostor.scene import Scene
from undoubt.doctor import examine
from undoubt.participants.contract import Settled
from undoubt.participants.errors import UndoubtError
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

ORDERS, PAYMENTS = NAMES
LOOKS_S = 1.5
"""In which the detector of deadlocks has looked several times."""
MIGRATED_S = 12.0
ADVISORY = 0x756E646F756274
"""The advisory lock that migrations take; "undoubt" in ASCII, and so no secret."""
ROW = 62
"""An account that only these attacks move."""


class Open:
    """An honest transaction in the middle of its work."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._goes_on = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[str] | None = None
        self.txid = ""
        self.pid = 0

    async def begin(self, *statements: tuple[str, str], wait: bool = True) -> Open:
        """With those statements, each at a place; ``wait`` for them."""
        self._task = asyncio.create_task(self._run(statements))
        if wait:
            await asyncio.wait_for(self._ready.wait(), TIMEOUT_S)
        else:
            while not self.txid:
                await asyncio.sleep(0.01)
        return self

    async def _run(self, statements: tuple[tuple[str, str], ...]) -> str:
        try:
            async with self._scene.teller.transaction() as tx:
                self.txid = str(tx.id)
                self._scene.honest.add(self.txid)
                for place, statement in statements:
                    await (await tx.branch(place)).execute(statement)
                self._ready.set()
                await self._goes_on.wait()
        except UndoubtError as error:
            return f"{type(error).__name__}: {error}"
        return "committed"

    def go_on(self) -> None:
        self._goes_on.set()

    async def end(self) -> str:
        """What it is told in the end."""
        self.go_on()
        if self._task is None:
            raise RuntimeError("it was never begun")
        return await self._task

    async def expect_committed(self) -> None:
        if (told := await self.end()) != "committed":
            self._scene.breach(Kind.OUTCOME, f"{self.txid}, which waits for nobody, ended: {told}")


def touch(place: str, account: int = ROW) -> tuple[str, str]:
    return place, f"update public.account set balance = balance where id operator(pg_catalog.=) {account}"


async def session_name(scene: Scene, place: str, txid: str) -> str:
    """As everybody can read it, whole."""
    session, _, seq = parts_of(txid)
    numbers = (session, seq)
    for name in await scene.mallory.names_of_sessions(place):
        if numbers in numbers_in([name]):
            return name
    raise RuntimeError(f"no session at {place} tells of {txid}, and all of them can be read")


async def wait_for(attacker: Attacker, place: str, waiter: str, holder: str, key: int) -> asyncio.Task[Any]:
    """A session of the attacker's called ``waiter`` waits for one called ``holder``."""
    holding = await attacker.new(place, application_name=holder)
    await holding.execute(f"select pg_advisory_lock({key})")
    waiting: Connection = await attacker.new(place, application_name=waiter)
    return asyncio.create_task(_wait(waiting, key))


async def _wait(connection: Connection, key: int) -> None:
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError):
        await connection.execute(f"select pg_advisory_lock({key})")


@attack("a deadlock of sessions with forged names", protocols=TWO_PHASE)
async def forged_deadlock(scene: Scene) -> None:
    """The detector aborts a transaction that waits for nobody."""
    old = await Open(scene).begin(touch(ORDERS))
    young = await Open(scene).begin(touch(ORDERS, ROW + 1), touch(PAYMENTS, ROW + 1))
    one, other = await session_name(scene, ORDERS, young.txid), await session_name(scene, ORDERS, old.txid)
    waits = [
        await wait_for(scene.mallory, ORDERS, one, other, 71),
        await wait_for(scene.mallory, PAYMENTS, other, one, 72),
    ]
    await asyncio.sleep(LOOKS_S)
    await young.expect_committed()
    await old.expect_committed()
    await scene.mallory.close()
    await asyncio.gather(*waits)


@attack("a forged holder, for one that does wait", protocols=TWO_PHASE)
async def forged_holder(scene: Scene) -> None:
    """A plain wait is closed to a cycle by two sessions of a forger's."""
    first = await Open(scene).begin(touch(ORDERS))
    second = await Open(scene).begin(touch(PAYMENTS, ROW + 1), touch(ORDERS), wait=False)
    await asyncio.sleep(0.3)
    one, other = await session_name(scene, ORDERS, second.txid), await session_name(scene, ORDERS, first.txid)
    waits = [await wait_for(scene.mallory, PAYMENTS, other, one, 73)]
    await asyncio.sleep(LOOKS_S)
    await first.expect_committed()
    await second.expect_committed()
    await scene.mallory.close()
    await asyncio.gather(*waits)


@attack("a forged name of a prepared branch that holds a lock", protocols=TWO_PHASE)
async def forged_prepared_holder(scene: Scene) -> None:
    """The holder is taken for a transaction that holds nothing there."""
    seen = await scene.any_name()
    first = await Open(scene).begin(touch(ORDERS))
    lock = "pg_catalog.pg_advisory_xact_lock(74)"
    second = await Open(scene).begin(touch(PAYMENTS, ROW + 1), touch(ORDERS), wait=False)
    session, nonce, seq = parts_of(second.txid)
    for gid in forged(seen, session=session, nonce=nonce, seq=seq, branch=9, participant=PAYMENTS):
        if await scene.mallory.prepare(PAYMENTS, gid, f"select {lock}"):
            break
    waiter = await scene.mallory.new(PAYMENTS, application_name=await session_name(scene, ORDERS, first.txid))
    waits = asyncio.create_task(_wait(waiter, 74))
    await asyncio.sleep(LOOKS_S)
    await first.expect_committed()
    await second.expect_committed()
    await scene.mallory.close()
    await waits


@attack("doctor, about sessions and branches of a forger's", stands=at_participants)
async def advised(scene: Scene) -> None:
    """It would print the GRANT that makes the forger's branches undoubt's own."""
    seen = await scene.any_name()
    await scene.mallory.new(ORDERS, application_name=f"undoubt:{scene.ledger.ledger_id}")
    for gid in forged(seen, seq=seen.seq + 3000):
        await scene.mallory.prepare(ORDERS, gid)
    await scene.passes()
    told = [f"{one.fix or ''} {one.why}" for one in await examine(scene.settings, older_than_s=0.0)]
    told += [worker.last_error or "" for worker in scene.recovering]
    for text in told:
        if _TRUSTING.search(text):
            scene.breach(Kind.ADVISED, text)


_TRUSTING = re.compile(r"GRANT\s+\"?mallory|owners = .*mallory")


# Notes of commits, which a branch may write in any role.


async def functions(attacker: Attacker, place: str) -> list[tuple[str, int]]:
    """Those of schema undoubt that this role may call, with the number of their arguments."""
    connection = await attacker.at(place)
    rows = await connection.fetch(
        "select p.proname, p.pronargs from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = 'undoubt' and has_schema_privilege(n.oid, 'usage')"
        " and has_function_privilege(p.oid, 'execute')"
    )
    return [(row["proname"], row["pronargs"]) for row in rows]


async def notes(attacker: Attacker, place: str, txid: str, gid: str) -> list[str]:
    """Calls that leave a note of a commit, of all that a forger can write into one."""
    calls = []
    for name, count in await functions(attacker, place):
        if "note" in name:
            values = (
                [[txid, place], [gid, place]] if count == 2 else [[gid], [txid], [gid.rpartition(":")[2]]]
            )
            for arguments in values:
                quoted = ", ".join(f"'{each}'" for each in arguments[:count])
                calls.append(f"select undoubt.{name}({quoted})")
    return calls


async def insist(scene: Scene, place: str, call: str) -> None:
    """On a connection of its own: behind an honest branch's own note it waits for that to end."""
    connection = await scene.mallory.new(place)
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError):
        await connection.execute("set lock_timeout = '5s'")
        await connection.execute(call)


@attack("notes of the one-phase commits that come next", stands=at_participants)
async def notes_ahead(scene: Scene) -> None:
    """Each of them fails then (23505)."""
    seen = await scene.any_name()
    for seq in range(seen.seq + 1, seen.seq + 60):
        [gid, *_] = forged(seen, seq=seq)
        txid = f"{seen.session}-{seen.nonce}.{seq}"
        await scene.mallory.tries(ORDERS, *await notes(scene.mallory, ORDERS, txid, gid))
    await scene.expect_progress()


@attack("notes of the next one-phase commits, held uncommitted", stands=at_participants)
async def notes_held(scene: Scene) -> None:
    """Each of them waits for the forger's transaction."""
    seen = await scene.any_name()
    holding = await scene.mallory.new(ORDERS)
    await holding.execute("begin")
    for seq in range(seen.seq + 3, seen.seq + 40):
        [gid, *_] = forged(seen, seq=seq)
        txid = f"{seen.session}-{seen.nonce}.{seq}"
        for call in await notes(scene.mallory, ORDERS, txid, gid):
            await holding.execute("savepoint s")
            try:
                await holding.execute(call)
            except asyncpg.PostgresError:
                await holding.execute("rollback to s")
    await scene.expect_progress()


@attack("a note of a one-phase commit that was rolled back while its answer was lost", stands=at_participants)
async def lying_note(scene: Scene) -> None:
    """Its application is told that it committed."""
    async with admin(scene.servers.admin_dsn(ORDERS, scene.database)) as root:
        await root.execute(_SLOW)
        await root.execute("select pg_catalog.pg_advisory_lock(99)")
        one = await Open(scene).begin((ORDERS, "insert into public.slow values (1)"))
        seen = await scene.any_name()
        session, nonce, seq = parts_of(one.txid)
        one.go_on()
        pid = await _waiter(root, 99)
        [gid, *_] = forged(seen, session=session, nonce=nonce, seq=seq, branch=1, participant=ORDERS)
        writing = [
            asyncio.create_task(insist(scene, ORDERS, call))
            for call in await notes(scene.mallory, ORDERS, one.txid, gid)
        ]
        await asyncio.sleep(0.2)
        await root.execute(f"select pg_catalog.pg_terminate_backend({pid})")
        told = await one.end()
        await asyncio.gather(*writing)
        applied = await root.fetchval("select exists (select from public.slow)")
        if told == "committed" and not applied:
            scene.breach(
                Kind.OUTCOME, f"{one.txid} was rolled back, and its application told that it committed"
            )
        await root.execute("select pg_catalog.pg_advisory_unlock_all(); drop table public.slow")


_SLOW = """
    create table public.slow (id int);
    grant insert on public.slow to teller;
    create or replace function public.slowly() returns trigger language plpgsql as
        $$ begin perform pg_catalog.pg_advisory_xact_lock(99); return null; end $$;
    create constraint trigger slowly after insert on public.slow deferrable initially deferred
        for each row execute function public.slowly();
"""


async def _waiter(root: Connection, key: int) -> int:
    """The backend that waits for that advisory lock."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            pid = await root.fetchval(
                "select pid from pg_catalog.pg_locks"
                " where locktype = 'advisory' and not granted and objid = $1",
                key,
            )
            if pid is not None:
                return int(pid)
            await asyncio.sleep(0.02)


@attack("the history id, drawn again and again and held", stands=at_participants)
async def history_drawn(scene: Scene) -> None:
    """What was recorded before a draw would count no more, and new sessions wait for a draw that is held."""
    async with scene.no_recovery():
        held, names = await scene.dead(DECIDED)
        calls = [
            f"select undoubt.{name}()"
            for name, count in await functions(scene.mallory, PAYMENTS)
            if not count
        ]
        for _ in range(5):
            await scene.mallory.tries(PAYMENTS, *calls)
        await scene.end_by_hand(names[PAYMENTS], "rollback")
        scene.expect_heuristic(names[PAYMENTS], Settled.HEURISTIC_ROLLBACK)
        for _ in range(5):
            await scene.mallory.tries(PAYMENTS, *calls)
        holding = await scene.mallory.new(PAYMENTS)
        await holding.execute("begin isolation level serializable")
        for call in calls:
            await holding.execute(call)
    async with asyncio.timeout(TIMEOUT_S), undoubt.connect(scene.beside(), recover=False) as other:
        await scene.move(other, "another process")
    await scene.passes(3)
    scene.leave(held)


@attack("the advisory lock of migrations, held", stands=at_participants)
async def migration_held(scene: Scene) -> None:
    """Every role may take it: whoever migrates would wait for ever."""
    connection = await scene.mallory.new(ORDERS)
    await connection.execute(f"select pg_advisory_lock({ADVISORY})")
    dsn = scene.servers.dsn(ORDERS, scene.database, scene.stand.login)
    migrating = asyncio.create_task(migrate(ORDERS, ParticipantSettings(dsn=dsn, statement_timeout_s=3.0)))
    done, _ = await asyncio.wait({migrating}, timeout=MIGRATED_S)
    if not done:
        scene.breach(Kind.STALL, f"a migration waits for an attacker's lock for more than {MIGRATED_S:g} s")
    await scene.mallory.close()
    with contextlib.suppress(UndoubtError):
        await migrating
