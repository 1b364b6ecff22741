"""Three-phase commit's rows and notes, which decide where no ledger does."""

from __future__ import annotations

import asyncio

from tests.prove.bank import NAMES
from tests.prove.impostor.attacks import THREE_PHASE, attack
from tests.prove.impostor.honest import TIMEOUT_S, UNDECIDED, Kind
from tests.prove.impostor.people import forged
from tests.prove.impostor.scene import Scene
from tests.prove.impostor.waits import insist, notes
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.participants.registry import Registry
from undoubt.recovery.without_ledger import WithoutLedger

ORDERS, PAYMENTS = NAMES


@attack("rows of three-phase commit", protocols=THREE_PHASE)
async def rows(scene: Scene) -> None:
    """Who may write them decides; who may lock or read them can hold up, or learn, what decides."""
    async with scene.no_recovery():
        held, names = await scene.dead(UNDECIDED["3pc"])
        gid = names[ORDERS]
        allowed = await scene.mallory.tries(
            ORDERS,
            "select * from undoubt.undoubt_branch",
            f"update undoubt.undoubt_branch set state = 'p' where gid = '{gid}'",
            f"delete from undoubt.undoubt_branch where gid = '{gid}'",
            "insert into undoubt.undoubt_branch select * from undoubt.undoubt_branch",
            "truncate undoubt.undoubt_branch",
            "do $$ begin lock table undoubt.undoubt_branch in access share mode; end $$",
            "do $$ begin lock table undoubt.undoubt_commit in access share mode; end $$",
            "select * from undoubt.undoubt_commit",
            "insert into undoubt.undoubt_commit default values",
            "delete from undoubt.undoubt_commit",
            "create trigger t before insert on undoubt.undoubt_branch"
            " execute function suppress_redundant_updates_trigger()",
            "create table undoubt.mine ()",
        )
    if allowed:
        scene.breach(Kind.OUTCOME, f"{allowed} of these statements are allowed to everybody")
    await scene.expect_recovered(held, committed=False)
    await held.go_on()


@attack("a forged note that an undecided branch has committed", protocols=THREE_PHASE)
async def forged_note(scene: Scene) -> None:
    """The other branch was never prepared: its termination would commit half, or find a contradiction and
    leave it to a person."""
    async with scene.no_recovery():
        held = await scene.hold(TwoPhaseStep.BEFORE_PREPARE, only=PAYMENTS)
        async with asyncio.timeout(TIMEOUT_S):
            while ORDERS not in (names := await scene.names(held)):
                await asyncio.sleep(0.01)
        seen = names[ORDERS]
        await scene.end_session(held)
        for gid in forged(seen, branch=2, participant=PAYMENTS):
            await scene.mallory.tries(PAYMENTS, *await notes(scene.mallory, PAYMENTS, seen.txid, gid))
    await scene.expect_recovered(held, committed=False)
    await held.go_on()


@attack("a note that waits for a branch to be rolled back, and appears then", protocols=THREE_PHASE)
async def note_behind_a_rollback(scene: Scene) -> None:
    """The ledger is destroyed. One branch is rolled back; the forger's note makes its row say *committed*,
    and the other branch is committed: the transaction is split."""
    await scene.stop_work()  # recovery without a ledger ends what is under way as well
    async with scene.no_recovery():
        held, names = await scene.dead(UNDECIDED["3pc"])
        waiting = [
            asyncio.create_task(insist(scene, ORDERS, call))
            for call in await notes(scene.mallory, ORDERS, names[ORDERS].txid, str(names[ORDERS]))
        ]
        await asyncio.sleep(0.3)
        alone = Registry()
        alone.add(scene.registry.get(ORDERS))
        await WithoutLedger(alone, scene.ledger.ledger_id).run()
        await scene.mallory.close()
        await asyncio.gather(*waiting)
        await WithoutLedger(scene.registry, scene.ledger.ledger_id).run()
    await scene.start_work()
    found = [await scene.applied(place, held.id) for place in NAMES]
    if len(set(found)) > 1:
        scene.breach(Kind.OUTCOME, f"{held.txid} is split: applied {dict(zip(NAMES, found, strict=True))}")
        scene.leave(held)
        return
    await scene.expect_recovered(held, committed=False)
    await held.go_on()
