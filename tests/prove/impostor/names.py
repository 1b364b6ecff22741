"""Names that nobody of undoubt's has given: guessed, made of others, or made to be read as a size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.prove.bank import NAMES
from tests.prove.impostor.attacks import SUPERUSER, THREE_PHASE_OR_PAXOS, attack
from tests.prove.impostor.honest import DECIDED, UNDECIDED, Held, Kind
from tests.prove.impostor.people import APP, HUGE, Name, forged, numbers_in
from tests.prove.impostor.scene import Scene
from undoubt.participants.contract import Settled
from undoubt.recovery.steps import RecoveryStep

ORDERS, PAYMENTS = NAMES
LETTERS = ("2", "3", "p")
RACES = 12


async def _prepare_all(scene: Scene, place: str, gids: Iterable[str]) -> list[str]:
    return [gid for gid in gids if await scene.mallory.prepare(place, gid)]


@attack("a huge sequence number")
async def huge_seq(scene: Scene) -> None:
    """One name that was never given out is read as a size: every node dies of it, at each restart again."""
    seen = (await scene.names(held := await scene.hold(UNDECIDED[scene.stand.protocol])))[ORDERS]
    made = await _prepare_all(scene, ORDERS, forged(seen, seq=HUGE, branch=1))
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    await scene.end_session(held)
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    await held.go_on()


@attack("huge numbers of session and branch")
async def huge_session(scene: Scene) -> None:
    seen = await scene.any_name()
    made = await _prepare_all(
        scene, ORDERS, [*forged(seen, session=HUGE), *forged(seen, session=HUGE, seq=HUGE, branch=9999)]
    )
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)


@attack("the numbers that come next, of the session that has just ended")
async def never_begun(scene: Scene) -> None:
    """What an ended session never began is presumed aborted: recovery ends it, or records what it came to."""
    held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    seen = names[ORDERS]
    gids = [gid for seq in range(seen.seq + 1, seen.seq + 5) for gid in forged(seen, seq=seq)]
    made = await _prepare_all(scene, ORDERS, gids)
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    await held.go_on()


@attack("names of an ended session, committed between list and rollback")
async def committed_in_between(scene: Scene) -> None:
    """Each is recorded as a heuristic commit of a transaction that never was, and shown for ever."""
    held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    seen = names[ORDERS]
    later = range(seen.seq + 1, seen.seq + RACES)
    await _race(scene, [gid for seq in later for gid in forged(seen, seq=seq)], "commit")
    await held.go_on()


async def _race(scene: Scene, gids: Iterable[str], verb: str, place: str = ORDERS) -> None:
    """Prepare each, and end it at the moment in which recovery has listed it and is about to act."""
    mine: set[str] = set()

    async def ended(subject: str) -> None:
        if subject in mine:
            mine.discard(subject)
            await scene.mallory.end(place, subject, verb)

    scene.hooks |= {RecoveryStep.BEFORE_ROLLBACK: ended, RecoveryStep.BEFORE_COMMIT: ended}
    for gid in gids:
        if await scene.mallory.prepare(place, gid):
            mine.add(gid)
    await scene.passes(1)
    for gid in list(mine):
        await scene.mallory.end(place, gid, verb)
    await scene.passes(1)


@attack("the next names, prepared in another database of the server")
async def next_names_taken(scene: Scene) -> None:
    """A name is unique in its server: every transaction that is to have one of these aborts (42710)."""
    seen = await scene.any_name()
    for seq in range(seen.seq + 1, seen.seq + 16):
        for gid in forged(seen, seq=seq):
            await scene.mallory.prepare(f"{ORDERS}/", gid)
    await asyncio.sleep(0.5)


@attack("the names of transactions that run, read in pg_stat_activity before they are prepared")
async def running_names_taken(scene: Scene) -> None:
    seen, tried = await scene.any_name(), 0
    for _ in range(40):
        for session, seq in numbers_in(await scene.mallory.names_of_sessions(ORDERS)):
            if session == seen.session:  # whose nonce a prepared branch has told before
                for gid in forged(seen, seq=seq):
                    await scene.mallory.prepare(f"{ORDERS}/", gid)
                    tried += 1
        await asyncio.sleep(0.01)
    if not tried:
        raise RuntimeError("no name of a session tells of a running transaction")


@attack("another protocol's letter in a name of a live transaction")
async def other_letter(scene: Scene) -> None:
    """Another protocol's termination would decide what is not its own."""
    held = await scene.hold(UNDECIDED[scene.stand.protocol])
    seen = (await scene.names(held))[ORDERS]
    made = []
    for letter in LETTERS:
        if letter != seen.protocol:
            made += await _prepare_all(scene, ORDERS, forged(seen, protocol=letter))
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    if (told := await held.go_on()) != "committed":
        scene.breach(Kind.OUTCOME, f"{held.txid} ended as {told}")


@attack("another protocol's letter in names of an ended session")
async def other_letter_of_dead(scene: Scene) -> None:
    async with scene.no_recovery():
        held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
        seen = names[ORDERS]
        gids = [
            gid
            for letter in LETTERS
            if letter != seen.protocol
            for seq in (seen.seq, seen.seq + 1, seen.seq + 7)
            for gid in forged(seen, protocol=letter, seq=seq)
        ]
        made = await _prepare_all(scene, ORDERS, gids)
    await scene.expect_recovered(held, committed=False)
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    await held.go_on()


@attack("names of sessions that never were")
async def no_such_session(scene: Scene) -> None:
    seen = await scene.any_name()
    gids = [
        *forged(seen, nonce="0123456789abcdef"),
        *forged(seen, session=seen.session + 1),
        *forged(seen, session=seen.session + 1000, nonce="fedcba9876543210"),
    ]
    gids += [gid for letter in LETTERS for gid in forged(seen, protocol=letter, session=seen.session + 5)]
    made = await _prepare_all(scene, ORDERS, gids)
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)


@attack("a tag of another name")
async def transplanted(scene: Scene) -> None:
    """The right tag of a branch vouches for nothing but that branch."""
    held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    one, two = names[ORDERS], names[PAYMENTS]
    gids = [
        *forged(one, branch=3), *forged(one, participant=PAYMENTS), *forged(one, seq=one.seq + 1),
        *forged(two, branch=one.branch, participant=ORDERS), *forged(two, participant="stock"),
    ]  # fmt: skip
    made = await _prepare_all(scene, ORDERS, gids)
    await scene.passes()
    await scene.expect_untouched(ORDERS, made)
    await held.go_on()


@attack("so many forged names that recovery is parked behind them")
async def parked(scene: Scene) -> None:
    """A name that recovery has to ask about for long, or that it is refused, must not hold up another."""
    seen = await scene.any_name()
    gids = [
        gid
        for number in range(8)
        for letter in LETTERS
        for gid in forged(seen, protocol=letter, session=seen.session + 50 + number, seq=1)
    ]
    async with scene.no_recovery():
        for gid in gids:
            await scene.mallory.prepare(ORDERS, gid)
        held, _ = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    await held.go_on()


@attack("the other branch's name, prepared here", logins=SUPERUSER)
async def finished_elsewhere(scene: Scene) -> None:
    """Recovery ends the forger's branch and takes the transaction for finished: that the real one was lost is
    never told."""
    async with scene.no_recovery():
        held, names = await scene.dead(DECIDED)
        await _lost_by_hand(scene, names[PAYMENTS])
        await scene.mallory.prepare(ORDERS, str(names[PAYMENTS]))
    await _expect_told(scene, held)


@attack("the name of a branch that somebody rolled back by hand, while COMMIT is recorded")
async def replay_of_lost(scene: Scene) -> None:
    """Recovery commits the forger's and calls the real branch done."""
    async with scene.no_recovery():
        held, names = await scene.dead(DECIDED)
        await _lost_by_hand(scene, names[PAYMENTS])
        await scene.mallory.prepare(PAYMENTS, str(names[PAYMENTS]))
    await _expect_told(scene, held)


@attack("a lost branch's name, prepared by another application of the same role", logins=frozenset({APP}))
async def replay_of_same_role(scene: Scene) -> None:
    """Its owner and its tag are right. Its transaction id is not the one that was recorded with COMMIT."""
    neighbour = scene.attacker(APP)
    async with scene.no_recovery():
        held, names = await scene.dead(DECIDED)
        await _lost_by_hand(scene, names[PAYMENTS])
        await neighbour.prepare(PAYMENTS, str(names[PAYMENTS]))
    await _expect_told(scene, held)


async def _lost_by_hand(scene: Scene, name: Name) -> None:
    await scene.end_by_hand(name, "rollback")
    scene.expect_heuristic(name, Settled.HEURISTIC_ROLLBACK)


async def _expect_told(scene: Scene, held: Held) -> None:
    """By recovery alone: its coordinator is dead, and goes on only when all is judged."""
    await scene.passes(3)
    scene.leave(held)


@attack("a committed name, prepared again after its end")
async def replay_of_committed(scene: Scene) -> None:
    seen = await scene.any_name()
    await scene.ended(seen)
    if await scene.mallory.prepare(ORDERS, str(seen)):
        await scene.passes()
        await scene.expect_untouched(ORDERS, [str(seen)])


@attack("a committed name, prepared again and rolled back between list and commit")
async def replay_rolled_back(scene: Scene) -> None:
    """A heuristic rollback of a transaction that has long committed everywhere."""
    for _ in range(2):
        seen = await scene.any_name()
        await scene.ended(seen)
        await _race(scene, [str(seen)], "rollback")


@attack("an aborted name, prepared again after its end")
async def replay_of_aborted(scene: Scene) -> None:
    held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    for place, name in names.items():
        await scene.mallory.prepare(place, str(name))
    await scene.passes()
    for place, name in names.items():
        await scene.expect_untouched(place, [str(name)])
    told = await held.go_on()
    if not told.startswith("TransactionAborted"):
        scene.breach(Kind.OUTCOME, f"{held.txid} was rolled back, and its application was told {told}")


@attack("an aborted name, prepared again and committed between list and rollback")
async def replay_committed(scene: Scene) -> None:
    """A heuristic commit of a transaction that is aborted everywhere."""
    held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await scene.expect_recovered(held, committed=False)
    await _race(scene, [str(names[ORDERS])], "commit")
    told = await held.go_on()
    if not told.startswith("TransactionAborted"):
        scene.breach(Kind.OUTCOME, f"{held.txid} was rolled back, and its application was told {told}")


@attack("a live transaction's name, prepared in the other database")
async def wrong_database(scene: Scene) -> None:
    """It has the right tag. Ended there, it must prove nothing about the branch whose name it is."""
    held = await scene.hold(UNDECIDED[scene.stand.protocol])
    names = await scene.names(held)
    await scene.mallory.prepare(PAYMENTS, str(names[ORDERS]))
    await scene.passes()
    await scene.expect_untouched(PAYMENTS, [str(names[ORDERS])])
    await scene.end_session(held)
    await scene.expect_recovered(held, committed=False)
    await scene.expect_untouched(PAYMENTS, [str(names[ORDERS])])
    await scene.mallory.end(PAYMENTS, str(names[ORDERS]), "commit")
    await scene.passes()
    await held.go_on()


@attack("a dead transaction's name, committed in the other database between list and rollback")
async def wrong_database_race(scene: Scene) -> None:
    async with scene.no_recovery():
        held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
    await _race(scene, [str(names[ORDERS])], "commit", PAYMENTS)
    await scene.expect_recovered(held, committed=False)
    await held.go_on()


@attack(
    "a name that is undecided, held back by a forged one of its transaction", protocols=THREE_PHASE_OR_PAXOS
)
async def extra_branch(scene: Scene) -> None:
    """A branch that was never voted on, of the same transaction, must not keep the others in doubt."""
    async with scene.no_recovery():
        held, names = await scene.dead(UNDECIDED[scene.stand.protocol])
        for gid in [
            *forged(names[ORDERS], branch=3),
            *forged(names[PAYMENTS], branch=7, participant="stock"),
        ]:
            await scene.mallory.prepare(ORDERS, gid)
    await scene.expect_recovered(held, committed=False)
    await held.go_on()
