"""What every ledger must do, on every backend. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest

from undoubt.coordinator.errors import BranchListMismatch, Impostor, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger.acting import system_user
from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    Heuristic,
    RecordedDecision,
    Session,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.rules import Names
from undoubt.coordinator.ledger.state_machine_ledger import TIME_STEP_S_MAX
from undoubt.participants.contract import Claim, Decision, Settled
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

from .conftest import Backend
from .signing import Signing

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (
    BranchRecord(1, "orders", 2**40, 2**62, "00000001"),
    BranchRecord(2, "payments", 77, 2**62 + 1, "0000000A"),
)


async def verdict(ledger: Signing, txid: TxId, protocol: Protocol = Protocol.TWO_PHASE) -> Verdict:
    return (await ledger.outcomes([txid], protocol=protocol))[txid]


async def record(ledger: Signing, txid: TxId) -> RecordedDecision:
    records: Mapping[TxId, RecordedDecision] = await ledger.records([txid])
    return records[txid]


async def opened(ledger: Signing, ttl_s: float = 10.0) -> Session:
    return await ledger.open_session("test", ttl_s)


async def test_sessions_count_up_and_nonces_differ(ledger: Signing) -> None:
    """Otherwise two coordinators could name different transactions alike."""
    sessions = [await opened(ledger) for _ in range(5)]
    numbers = [session.id for session in sessions]
    assert numbers == sorted(set(numbers))
    assert len({session.nonce for session in sessions}) == 5


async def test_session_numbers_are_never_reused_after_a_restart(backend: Backend) -> None:
    """A reused number would answer for the transactions of the session that had it."""
    first = await opened(backend.ledger)
    await backend.ledger.close_session(first)
    if backend.durable:
        await backend.reopen()
    assert (await opened(backend.ledger)).id > first.id


async def test_the_first_decision_wins(ledger: Signing) -> None:
    """Two deciders (coordinator and recovery) could tell two participants different things."""
    session = await opened(ledger)
    first, second = session.txid(1), session.txid(2)
    assert await ledger.decide(first, COMMIT, BRANCHES) is COMMIT
    assert await ledger.decide(first, ABORT, BRANCHES) is COMMIT
    assert await ledger.decide(second, ABORT, BRANCHES) is ABORT
    assert await ledger.decide(second, COMMIT, BRANCHES) is ABORT
    assert await verdict(ledger, first) is Verdict.COMMITTED
    assert await verdict(ledger, second) is Verdict.ABORTED


async def test_concurrent_deciders_agree(ledger: Signing) -> None:
    """All of them are told one thing, whichever came first."""
    session = await opened(ledger)
    for seq in range(1, 21):
        orders = [COMMIT, ABORT, COMMIT, ABORT] if seq % 2 else [ABORT, COMMIT, ABORT, COMMIT]
        answers = await asyncio.gather(
            *(ledger.decide(session.txid(seq), order, BRANCHES) for order in orders)
        )
        assert len(set(answers)) == 1
        assert await record(ledger, session.txid(seq)) == RecordedDecision(str(answers[0]))


async def test_repeating_a_decide_changes_nothing(ledger: Signing) -> None:
    """A coordinator repeats until it is answered; the repetition must not be an error or a second record."""
    session = await opened(ledger)
    for _ in range(3):
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
    assert len(await ledger.unfinished()) == 1


async def test_another_branch_list_is_never_answered_commit(ledger: Signing) -> None:
    """A coordinator that asks with other branches would commit branches nobody decided about."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    for other in (
        BRANCHES[:1],
        (*BRANCHES, BranchRecord(3, "more")),
        (BRANCHES[0], BranchRecord(2, "x")),
    ):
        with pytest.raises(BranchListMismatch):
            await ledger.decide(session.txid(1), COMMIT, other)


async def test_the_branch_list_is_remembered_after_finish(ledger: Signing) -> None:
    """Finishing drops the details; the comparison must not go with them."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.finish([session.txid(1)])
    assert await ledger.decide(session.txid(1), COMMIT, tuple(reversed(BRANCHES))) is COMMIT
    with pytest.raises(BranchListMismatch):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES[:1])


async def test_recovery_may_ask_to_abort_knowing_only_some_branches(ledger: Signing) -> None:
    """Recovery that saw one branch of a committed transaction must learn COMMIT, not get an error."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    assert await ledger.decide(session.txid(1), ABORT, BRANCHES[:1]) is COMMIT


async def test_a_closed_session_commits_nothing(ledger: Signing) -> None:
    """Recovery may already have rolled its branches back."""
    session = await opened(ledger)
    await ledger.close_session(session)
    assert await verdict(ledger, session.txid(1)) is Verdict.ABORTED
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT
    assert await record(ledger, session.txid(1)) is RecordedDecision.ABORT
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)


async def test_an_expired_session_commits_nothing(backend: Backend) -> None:
    """A coordinator that slept through its lease would commit what recovery aborted."""
    session = await opened(backend.ledger, ttl_s=10.0)
    await backend.elapse(10.5)
    assert await verdict(backend.ledger, session.txid(1)) is Verdict.ABORTED
    assert await backend.ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT
    with pytest.raises(SessionLost):
        await backend.ledger.keep_alive(session, 1)


async def test_keeping_alive_postpones_the_expiry(backend: Backend) -> None:
    """A live coordinator would lose its transactions every few seconds."""
    session = await opened(backend.ledger, ttl_s=10.0)
    for _ in range(5):
        await backend.elapse(6.0)
        await backend.ledger.keep_alive(session, 1)
    assert await verdict(backend.ledger, session.txid(1)) is Verdict.ACTIVE
    assert await backend.ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT


async def test_what_was_decided_before_the_expiry_stays(backend: Backend) -> None:
    """The expiry ends what is undecided, and nothing else."""
    session = await opened(backend.ledger)
    await backend.ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await backend.elapse(11)
    assert await verdict(backend.ledger, session.txid(1)) is Verdict.COMMITTED
    assert await verdict(backend.ledger, session.txid(2)) is Verdict.ABORTED


async def test_below_the_floor_is_aborted_and_above_it_active(ledger: Signing) -> None:
    """The floor is how aborted transactions of a living session get resolved without a record."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.keep_alive(session, 3)
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED
    assert await verdict(ledger, session.txid(2)) is Verdict.ABORTED
    assert await verdict(ledger, session.txid(3)) is Verdict.ACTIVE
    assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is ABORT
    assert await ledger.decide(session.txid(3), COMMIT, BRANCHES) is COMMIT


async def test_floors_only_rise(ledger: Signing) -> None:
    """A late renewal with an old floor would make an aborted transaction active again."""
    session = await opened(ledger)
    await ledger.keep_alive(session, 5)
    await ledger.keep_alive(session, 2)
    assert await verdict(ledger, session.txid(4)) is Verdict.ABORTED
    (info,) = await ledger.sessions()
    assert info.floor == 5


@pytest.mark.parametrize("protocol", [Protocol.THREE_PHASE, Protocol.PAXOS])
async def test_other_protocols_are_never_presumed_aborted(ledger: Signing, protocol: Protocol) -> None:
    """Their own termination may have committed without the ledger."""
    session = await opened(ledger)
    decided, open_one = session.txid(1), session.txid(2)
    await ledger.decide(decided, COMMIT, BRANCHES, protocol=protocol)
    await ledger.close_session(session)
    assert await verdict(ledger, decided, protocol) is Verdict.COMMITTED
    assert await verdict(ledger, open_one, protocol) is Verdict.ASK_PROTOCOL


async def test_names_that_the_ledger_never_gave_are_impostors(ledger: Signing) -> None:
    """Otherwise whoever may connect to a database makes recovery, and the ledger, believe in transactions."""
    session = await opened(ledger)
    stranger = TxId(session.id, "0" * 16, 1)
    future = TxId(session.id + 1_000, session.nonce, 1)
    for txid in (stranger, future):
        assert await verdict(ledger, txid) is Verdict.IMPOSTOR
        assert await record(ledger, txid) is RecordedDecision.NOT_RECORDED
        with pytest.raises(OutcomeUnknown):
            await ledger.decide(txid, COMMIT, BRANCHES)


async def test_a_changed_name_is_an_impostor(ledger: Signing) -> None:
    """A gid is public from its PREPARE on: one that is like it in all but one part must prove nothing."""
    session = await opened(ledger)
    gid = ledger.gid(session.txid(1))
    changed = [
        replace(gid, tag=""),
        replace(gid, tag=gid.tag[::-1]),
        replace(gid, tag="é" * 20),
        replace(gid, protocol=Protocol.PAXOS),
        replace(gid, protocol=Protocol.THREE_PHASE),
        replace(gid, txid=session.txid(2)),
        replace(gid, txid=session.txid(2**63 - 1)),
        replace(gid, branch=2),
        replace(gid, participant="payments"),
        replace(gid, ledger="zzzzzzzzzz"),
    ]
    verdicts = await ledger.ledger.outcomes([gid, *changed])
    assert verdicts == {gid: Verdict.ACTIVE} | dict.fromkeys(changed, Verdict.IMPOSTOR)


async def test_what_a_forged_name_asks_for_is_not_recorded(ledger: Signing) -> None:
    """Otherwise a name with another protocol's letter turns ABORTED, which was answered, into COMMIT."""
    session = await opened(ledger)
    txid = session.txid(1)
    tagged = ledger.tagged(txid, BRANCHES, Protocol.TWO_PHASE)
    forged = [
        (COMMIT, BRANCHES, Protocol.TWO_PHASE),
        (COMMIT, [tagged[0], BRANCHES[1]], Protocol.TWO_PHASE),
        (COMMIT, tagged, Protocol.THREE_PHASE),
        (COMMIT, tagged, Protocol.PAXOS),
        (COMMIT, [msgspec.structs.replace(each, tag="0" * 20) for each in BRANCHES], Protocol.TWO_PHASE),
        (ABORT, BRANCHES, Protocol.TWO_PHASE),
        (ABORT, [], Protocol.PAXOS),
        (ABORT, tagged[:1], Protocol.PAXOS),
    ]
    for decision, branches, protocol in forged:
        with pytest.raises(Impostor):
            await ledger.ledger.decide(txid, decision, branches, protocol=protocol)
    with pytest.raises(Impostor):
        await ledger.ledger.precommit(txid, BRANCHES)
    assert await record(ledger, txid) is RecordedDecision.NOT_RECORDED
    assert await ledger.unfinished() == []
    assert await ledger.ledger.decide(txid, COMMIT, tagged) is COMMIT


async def test_a_right_tag_of_a_session_that_was_never_issued_begins_an_incarnation(backend: Backend) -> None:
    """The ledger was set back: what it has forgotten may have committed, so it must presume nothing."""
    ledger = backend.ledger
    session = await opened(ledger)
    number, nonce = session.id + 5, "1" * 16
    key = Names(ledger.ledger_id, backend.secret()).key(number, nonce)
    gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, TxId(number, nonce, 1), 1, "orders").tagged(key)
    before = (await ledger.info()).incarnation
    assert await ledger.ledger.outcomes([gid]) == {gid: Verdict.FORGOTTEN}
    assert (await ledger.info()).incarnation == before + 1
    assert await verdict(ledger, session.txid(1)) is Verdict.FORGOTTEN
    assert (await opened(ledger)).id > number


async def test_only_the_opener_gets_the_key(ledger: Signing) -> None:
    """Otherwise whoever reads a session's nonce in a gid asks the ledger for its key."""
    session = await opened(ledger)
    assert len(session.key) == 32
    assert session.key.hex() not in repr(session)
    for info in await ledger.sessions():
        assert not hasattr(info, "key")


async def test_a_database_session_proves_what_it_works_in(ledger: Signing) -> None:
    """Otherwise anybody's application_name makes the deadlock detector abort a transaction."""
    session = await opened(ledger)
    key, txid = SessionKey(session.key), session.txid(7)
    right = Claim(session.id, 7, 4711, key.backend(txid, 4711))
    wrong = [
        right._replace(pid=4712),
        right._replace(seq=8),
        right._replace(session=session.id + 1),
        right._replace(proof=""),
        right._replace(proof="AAAAAAAA"),
    ]
    assert list(await ledger.backends([right, *wrong])) == [txid, None, None, None, None, None]


async def test_a_coordinator_learns_why_its_transaction_was_doomed(backend: Backend) -> None:
    """Otherwise the victim of a deadlock in another process is told of a cancelled statement."""
    ledger = backend.ledger
    session = await opened(ledger)
    await ledger.keep_alive(session, 2)
    await ledger.decide(session.txid(3), COMMIT, BRANCHES)
    for txid in (session.txid(1), session.txid(2), session.txid(3), TxId(session.id, "0" * 16, 4)):
        await ledger.doom(txid, "a deadlock")
    await ledger.doom(session.txid(2), "another reason")
    assert [await ledger.doomed(session.txid(seq)) for seq in (1, 2, 3)] == [None, "a deadlock", None]
    assert await ledger.decide(session.txid(2), ABORT, BRANCHES, cause="because") is ABORT
    assert await ledger.doomed(session.txid(2)) is None
    told = await ledger.transaction(session.txid(2))
    assert told is not None
    assert told.cause == "because"


async def test_a_doom_ends_with_its_session(ledger: Signing) -> None:
    """Otherwise the ledger keeps a cause for every deadlock that ever was."""
    session = await opened(ledger)
    await ledger.doom(session.txid(1), "a deadlock")
    await ledger.close_session(session)
    assert await ledger.doomed(session.txid(1)) is None


async def test_to_callers_no_decision_is_not_recorded(ledger: Signing) -> None:
    """A one-phase commit leaves no record: telling its caller "aborted" would be a lie."""
    session = await opened(ledger)
    await ledger.close_session(session)
    assert await record(ledger, session.txid(1)) is RecordedDecision.NOT_RECORDED


async def test_finish_keeps_the_decision_answerable(ledger: Signing) -> None:
    """A caller that lost its connection asks later, long after the branches were committed."""
    session = await opened(ledger)
    for seq in (1, 2, 3):
        await ledger.decide(session.txid(seq), COMMIT if seq != 2 else ABORT, BRANCHES)
    await ledger.finish([session.txid(1), session.txid(2), TxId(99, "f" * 16, 1)])
    await ledger.finish([session.txid(1)])
    assert [left.txid for left in await ledger.unfinished()] == [session.txid(3)]
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED
    assert await verdict(ledger, session.txid(2)) is Verdict.ABORTED
    assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is ABORT


async def test_unfinished_tells_branches_with_their_evidence(ledger: Signing) -> None:
    """Recovery judges vanished branches by it."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    (left,) = await ledger.unfinished()
    assert (left.txid, left.decision) == (session.txid(1), COMMIT)
    assert left.branches == tuple(ledger.tagged(session.txid(1), BRANCHES, Protocol.TWO_PHASE))
    assert (left.protocol, left.coordinator) == (Protocol.TWO_PHASE, "test")


async def test_retention_drops_old_sessions_and_their_answers_become_forgotten(backend: Backend) -> None:
    """Presuming abort for a dropped session would roll back what had committed."""
    ledger = backend.ledger
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.finish([session.txid(1)])
    await ledger.close_session(session)
    await backend.elapse(backend.retention_s - 60)
    assert await verdict(ledger, session.txid(1)) is Verdict.COMMITTED
    await backend.elapse(60 + TIME_STEP_S_MAX)
    assert await verdict(ledger, session.txid(1)) is Verdict.FORGOTTEN
    assert await verdict(ledger, session.txid(2)) is Verdict.FORGOTTEN
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(2), COMMIT, BRANCHES)


async def test_an_ended_session_is_kept_for_the_whole_retention(backend: Backend) -> None:
    """Broken if a session that has ended is dropped before the retention has passed: opened, closed, upkeep,
    and what is undecided is forgotten. ABORTED is right: no COMMIT can be recorded any more. FORGOTTEN lets
    recovery end nothing wrongly, but leaves to a person, who may guess, what the ledger knew."""
    ledger = backend.ledger
    closed, expired = await opened(ledger), await opened(ledger)
    txids = [closed.txid(1), expired.txid(1)]
    await ledger.close_session(closed)
    await backend.elapse(0)
    assert await verdict(ledger, closed.txid(1)) is Verdict.ABORTED
    await backend.elapse(expired.ttl_s + 1)
    await backend.elapse(backend.retention_s - expired.ttl_s - 2)
    assert set((await ledger.outcomes(txids)).values()) == {Verdict.ABORTED}
    await backend.elapse(expired.ttl_s + 1 + TIME_STEP_S_MAX)
    assert set((await ledger.outcomes(txids)).values()) == {Verdict.FORGOTTEN}


async def test_retention_keeps_what_is_unfinished_or_has_an_open_heuristic(backend: Backend) -> None:
    """A participant that is down for longer than retention must still learn its decision."""
    ledger = backend.ledger
    unfinished, heuristic = await opened(ledger), await opened(ledger)
    await ledger.decide(unfinished.txid(1), COMMIT, BRANCHES)
    await ledger.record_heuristic(_heuristic(ledger, heuristic.txid(1)))
    for session in (unfinished, heuristic):
        await ledger.close_session(session)
    await backend.elapse(backend.retention_s * 3)
    assert await verdict(ledger, unfinished.txid(1)) is Verdict.COMMITTED
    assert {info.id for info in await ledger.sessions()} == {unfinished.id, heuristic.id}
    await ledger.finish([unfinished.txid(1)])
    assert await ledger.forget_heuristic(_gid(ledger, heuristic.txid(1)))
    await backend.elapse(1)
    assert await ledger.sessions() == []


async def test_a_session_that_lives_is_never_dropped(backend: Backend) -> None:
    """A coordinator that runs for a month keeps its answers."""
    session = await opened(backend.ledger, ttl_s=backend.retention_s * 10)
    await backend.elapse(backend.retention_s * 5)
    assert await verdict(backend.ledger, session.txid(1)) is Verdict.ACTIVE


async def test_what_was_forgotten_stays_forgotten(backend: Backend) -> None:
    """A hazard that a person has dealt with came back as soon as its database could be asked again."""
    ledger = backend.ledger
    gid = _gid(ledger, (await opened(ledger)).txid(1))
    await ledger.record_heuristic(Heuristic(gid, Settled.HEURISTIC_HAZARD, COMMIT, 12.5))
    assert await ledger.forget_heuristic(gid)
    await ledger.record_heuristic(Heuristic(gid, Settled.HEURISTIC_ROLLBACK, COMMIT, 13.5, "seen since"))
    assert await ledger.heuristics() == []
    if backend.durable:
        await backend.reopen()
    (kept,) = await backend.ledger.heuristics(include_forgotten=True)
    assert (kept.forgotten, kept.kind, kept.note) == (True, Settled.HEURISTIC_ROLLBACK, "seen since")


async def test_acts_of_operators_are_kept_with_what_came_of_them(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if it is not known afterwards who did what and why, or if the record grows without bound."""
    for module in ("state_machine_ledger", "postgres.ledger", "etcd.operators"):
        monkeypatch.setattr(f"undoubt.coordinator.ledger.{module}.ACTS_MAX", 3)
    me = system_user()
    acts = [Act(f"{n}", "indoubt rollback", f"gid {n}", 10.0 - n, me, f"why {n}") for n in range(4)]
    for act in acts:
        await backend.ledger.record_act(act)
    assert await backend.ledger.acts(limit=2) == [acts[3], acts[2]]
    done = replace_act(acts[2], result="done")
    await backend.ledger.record_act(replace_act(done, who="another", note="another"))
    await backend.ledger.record_act(acts[2])  # asked again, because an answer was lost
    if backend.durable:
        await backend.reopen()
    assert await backend.ledger.acts(limit=10) == [acts[3], done, acts[1]]
    await backend.ledger.record_act(Act("long", "x", "y" * 100_000, 1.0, "z" * 100_000))
    (longest, *_) = await backend.ledger.acts(limit=10)
    assert len(longest.subject) == 1_000
    assert len(longest.who) <= 1_000


def replace_act(act: Act, **changes: str) -> Act:
    return msgspec.structs.replace(act, **changes)


async def test_heuristics_are_kept_until_forgotten(ledger: Signing) -> None:
    """A database that disagrees must not drop out of sight by itself."""
    session = await opened(ledger)
    one = _heuristic(ledger, session.txid(1))
    await ledger.record_heuristic(one)
    await ledger.record_heuristic(_heuristic(ledger, session.txid(1), note="again"))
    assert await ledger.heuristics() == [one]
    assert await ledger.forget_heuristic(one.gid)
    assert not await ledger.forget_heuristic(one.gid)
    assert await ledger.heuristics() == []
    (kept,) = await ledger.heuristics(include_forgotten=True)
    assert kept.forgotten


async def test_a_hazard_gives_way_to_knowledge(ledger: Signing) -> None:
    """Whoever finds out later what happened must be able to say so; never the other way round."""
    session = await opened(ledger)
    hazard = _heuristic(ledger, session.txid(1), kind=Settled.HEURISTIC_HAZARD)
    known = _heuristic(ledger, session.txid(1), kind=Settled.HEURISTIC_ROLLBACK)
    for heuristic in (hazard, known, hazard):
        await ledger.record_heuristic(heuristic)
    assert await ledger.heuristics() == [known]


async def test_transaction_tells_what_is_recorded(ledger: Signing) -> None:
    """``tx show`` is built on it."""
    session = await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.record_heuristic(_heuristic(ledger, session.txid(1)))
    open_one = await ledger.transaction(session.txid(1))
    await ledger.finish([session.txid(1)])
    finished = await ledger.transaction(session.txid(1))
    assert open_one is not None
    assert finished is not None
    assert (open_one.finished, finished.finished) == (False, True)
    assert open_one.branches == finished.branches
    assert open_one.branches == tuple(ledger.tagged(session.txid(1), BRANCHES, Protocol.TWO_PHASE))
    assert finished.record is RecordedDecision.COMMIT
    assert finished.coordinator == "test"
    assert len(finished.heuristics) == 1
    assert await ledger.transaction(session.txid(2)) is None


async def test_transactions_come_newest_first_in_pages(ledger: Signing) -> None:
    """Pages that overlap or leave gaps would hide a transaction from an operator."""
    session = await opened(ledger)
    txids = [session.txid(seq) for seq in range(1, 26)]
    for txid in txids:
        await ledger.decide(txid, COMMIT, BRANCHES)
    await ledger.finish(txids[::2])
    seen: list[TxId] = []
    while page := await ledger.transactions(limit=7, before=seen[-1] if seen else None):
        seen += [info.txid for info in page]
    assert seen == list(reversed(txids))


async def test_info_counts(ledger: Signing) -> None:
    """An operator reads the health of the ledger from it."""
    session = await opened(ledger)
    await ledger.close_session(await opened(ledger))
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.decide(session.txid(2), COMMIT, BRANCHES)
    await ledger.finish([session.txid(1)])
    info = await ledger.info()
    assert info.ledger_id == ledger.ledger_id
    assert (info.sessions_open, info.sessions_kept) == (1, 2)
    assert (info.unfinished, info.decisions_kept) == (1, 2)


async def test_everything_survives_a_restart(backend: Backend) -> None:
    """The whole point of a ledger."""
    if not backend.durable:
        pytest.skip("this backend keeps nothing, and is for tests only")
    ledger = backend.ledger
    session, closed = await opened(ledger), await opened(ledger)
    await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    await ledger.decide(session.txid(2), COMMIT, BRANCHES)
    await ledger.decide(session.txid(3), ABORT, BRANCHES)
    await ledger.finish([session.txid(2)])
    await ledger.keep_alive(session, 5)
    await ledger.record_heuristic(_heuristic(ledger, session.txid(1)))
    await ledger.close_session(closed)
    before = await _everything(ledger, session)
    ledger_id = ledger.ledger_id
    await backend.reopen()
    assert backend.ledger.ledger_id == ledger_id
    assert await _everything(backend.ledger, session) == before


async def _everything(ledger: Signing, session: Session) -> list[object]:
    txids = [session.txid(seq) for seq in range(1, 8)]
    states = [(info.id, info.floor) for info in await ledger.sessions()]
    return [
        await ledger.records(txids),
        [await verdict(ledger, txid) for txid in txids[:4]],
        await ledger.unfinished(),
        await ledger.heuristics(),
        await ledger.transactions(limit=100),
        states,
    ]


async def test_sessions_tell_their_state(backend: Backend) -> None:
    """Operators see who is alive."""
    ledger = backend.ledger
    closed, expired, alive = await opened(ledger), await opened(ledger, 5.0), await opened(ledger, 500.0)
    await ledger.close_session(closed)
    await ledger.close_session(closed)
    await backend.elapse(6)
    states = {info.id: info.state for info in await ledger.sessions()}
    assert states == {
        closed.id: SessionState.CLOSED,
        expired.id: SessionState.EXPIRED,
        alive.id: SessionState.OPEN,
    }


def _gid(ledger: Signing, txid: TxId) -> Gid:
    return Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 2, "payments")


def _heuristic(
    ledger: Signing, txid: TxId, kind: Settled = Settled.HEURISTIC_ROLLBACK, note: str = ""
) -> Heuristic:
    return Heuristic(_gid(ledger, txid), kind, COMMIT, 1.5, note)
