"""An acceptor: what it stores before it answers, what it never forgets and what it does, and bytes on the
wire."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.coordinator.paxos.network import BRANCHES, PREPARED, THREE, txid
from undoubt.coordinator.paxos import (
    ABORTED,
    FIRST,
    Accepted,
    Acceptor,
    AcceptorRecord,
    AcceptorReply,
    AcceptorRequest,
    Ask,
    Ballot,
    BranchInstance,
    Forgotten,
    Known,
    Marks,
    PaxosReady,
    PeerMisbehaved,
    Phase1a,
    Phase1b,
    Phase2a,
    Phase2b,
    Refused,
    RestoredAcceptor,
    Value,
    decode_reply,
    decode_request,
    encode,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import InvariantViolation

LOW, HIGH = Ballot(1, 7), Ballot(2, 3)
TX = txid()
BOTH = (PREPARED, PREPARED)


def votes(ballot: Ballot = FIRST, values: tuple[Value | None, ...] = BOTH, tx: TxId = TX) -> Phase2a:
    return Phase2a(tx, THREE, ballot, BRANCHES, values)


def fresh(*records: AcceptorRecord) -> Acceptor:
    return Acceptor(1, RestoredAcceptor(records=records))


def ask(acceptor: Acceptor, request: AcceptorRequest) -> AcceptorReply:
    """The answer, once it is stored."""
    acceptor.step(5, request)
    ready = acceptor.ready()
    sent = [*ready.replies_now, *acceptor.on_persisted(ready.token)]
    assert [each.to for each in sent] == [5]
    return sent[0].message


def test_an_acceptance_waits_for_the_sync() -> None:
    """Broken if a leader counts what a crash of the acceptor takes back."""
    acceptor = fresh()
    acceptor.step(5, votes())
    ready = acceptor.ready()
    assert ready.replies_now == ()
    assert [record.known.accepted for record in ready.records] == [(Accepted(FIRST, PREPARED),) * 2]
    (sent,) = acceptor.on_persisted(ready.token)
    assert sent.message == Phase2b(TX, 1, ready.records[0].known)


def test_a_promise_waits_for_the_sync() -> None:
    """Broken if an acceptor that crashes could accept below what it promised."""
    acceptor = fresh()
    acceptor.step(5, Phase1a(TX, THREE, LOW))
    ready = acceptor.ready()
    assert (ready.replies_now, ready.records) == ((), (AcceptorRecord(TX, THREE, LOW),))
    assert acceptor.on_persisted(ready.token)[0].message == Phase1b(TX, 1, LOW, Known())


def test_a_repetition_does_not_overtake_what_is_being_stored() -> None:
    """Broken if a repeated 2a, for which nothing is stored, or a question, is answered before the first is
    on disk."""
    acceptor = fresh()
    acceptor.step(5, votes())
    first = acceptor.ready()
    acceptor.step(6, votes())
    acceptor.step(7, Ask(TX, THREE))
    second = acceptor.ready()
    assert not second.writes
    assert second.replies_now == ()
    assert [each.to for each in acceptor.on_persisted(first.token)] == [5]
    assert [each.to for each in acceptor.on_persisted(second.token)] == [6, 7]
    acceptor.step(8, votes())
    assert [each.to for each in acceptor.ready().replies_now] == [8]


def test_many_transactions_share_a_write() -> None:
    """Broken if group commit were not possible, or an answer were released with another's sync."""
    acceptor = fresh()
    for seq in range(1, 10):
        acceptor.step(seq, votes(tx=txid(seq)))
    first = acceptor.ready()
    acceptor.step(10, votes(tx=txid(10)))
    second = acceptor.ready()
    assert (len(first.records), len(second.records)) == (9, 1)
    assert [each.to for each in acceptor.on_persisted(first.token)] == list(range(1, 10))
    assert [each.to for each in acceptor.on_persisted(second.token)] == [10]
    assert acceptor.ready().empty


def test_one_record_is_stored_once_however_often_it_changed() -> None:
    """Broken if an older state of a record were stored after a newer one."""
    acceptor = fresh()
    acceptor.step(5, votes())
    acceptor.step(6, Phase1a(TX, THREE, HIGH))
    (record,) = acceptor.ready().records
    assert (record.promised, record.known.accepted[0]) == (HIGH, Accepted(FIRST, PREPARED))


def test_a_token_never_handed_out_is_a_drivers_mistake() -> None:
    """Broken if answers could be released by chance."""
    with pytest.raises(InvariantViolation):
        fresh().on_persisted(1)


def test_the_first_ballot_after_a_promise_is_refused() -> None:
    """Broken if a coordinator that is only slow could outvote the recovery that has begun."""
    acceptor = fresh()
    assert ask(acceptor, Phase1a(TX, THREE, LOW)) == Phase1b(TX, 1, LOW, Known())
    assert ask(acceptor, votes()) == Refused(TX, 1, LOW, Known())
    assert acceptor.record(TX) == AcceptorRecord(TX, THREE, LOW)


def test_a_restart_keeps_what_was_stored_and_nothing_else() -> None:
    """Broken if a vote or a promise is lost over a restart, or one that was never stored comes back."""
    acceptor = fresh()
    ask(acceptor, votes())
    ask(acceptor, Phase1a(TX, THREE, HIGH))
    again = Acceptor(1, acceptor.kept())
    assert again.kept() == acceptor.kept()
    assert ask(again, Phase1a(TX, THREE, LOW)) == Refused(
        TX, 1, HIGH, Known(BRANCHES, (Accepted(FIRST, PREPARED),) * 2)
    )
    assert again.ready().empty


def test_one_promise_is_for_all_instances() -> None:
    """Broken if an instance that the recovery could not name were open to the first ballot."""
    acceptor = fresh()
    ask(acceptor, Phase1a(TX, THREE, LOW))
    for values in [(PREPARED, None), (None, PREPARED), BOTH]:
        assert isinstance(ask(acceptor, votes(values=values)), Refused)


def test_votes_may_come_one_by_one() -> None:
    """Broken if an instance were not decided by itself."""
    acceptor = fresh()
    ask(acceptor, votes(values=(PREPARED, None)))
    reply = ask(acceptor, votes(values=(None, ABORTED)))
    assert reply == Phase2b(TX, 1, Known(BRANCHES, (Accepted(FIRST, PREPARED), Accepted(FIRST, ABORTED))))


def test_a_leader_without_a_list_aborts_every_instance() -> None:
    """Broken if a branch that is named later could still be taken for undecided, or for prepared."""
    acceptor = fresh()
    ask(acceptor, Phase1a(TX, THREE, LOW))
    assert ask(acceptor, Phase2a(TX, THREE, LOW)) == Phase2b(TX, 1, Known(unnamed=LOW))
    assert isinstance(ask(acceptor, votes()), Refused)
    reply = ask(acceptor, votes(HIGH, (ABORTED, None)))
    assert reply == Phase2b(
        TX, 1, Known(BRANCHES, (Accepted(HIGH, ABORTED), Accepted(LOW, ABORTED)), unnamed=LOW)
    )


def test_a_leader_without_a_list_aborts_the_named_instances_too() -> None:
    """Broken if the acceptor knew better which branches there are."""
    acceptor = fresh()
    ask(acceptor, votes())
    reply = ask(acceptor, Phase2a(TX, THREE, LOW))
    assert reply == Phase2b(TX, 1, Known(BRANCHES, (Accepted(LOW, ABORTED),) * 2, unnamed=LOW))


WRONG = {
    "another value in the first ballot": votes(values=(PREPARED, ABORTED)),
    "another list": Phase2a(TX, THREE, HIGH, BRANCHES[:1], (PREPARED,)),
    "no list in the first ballot": Phase2a(TX, THREE, FIRST),
    "no value": votes(values=(None, None)),
    "more values than branches": votes(values=(PREPARED,) * 3),
    "branches out of order": Phase2a(TX, THREE, HIGH, BRANCHES[::-1], BOTH),
    "a branch twice": Phase2a(TX, THREE, HIGH, BRANCHES[:1] * 2, BOTH),
    "acceptors that moved": Phase1a(TX, Joint(frozenset({1, 4, 5})), HIGH),
    "acceptors of which this is none": Phase1a(txid(2), Joint(frozenset({4, 5})), HIGH),
}


@pytest.mark.parametrize("request_", WRONG.values(), ids=WRONG)
def test_what_no_correct_peer_sends_changes_nothing(request_: AcceptorRequest) -> None:
    """Broken if an acceptor acts on the word of a peer that breaks the protocol, or answers it."""
    acceptor = fresh()
    ask(acceptor, votes())
    before = acceptor.kept()
    with pytest.raises(PeerMisbehaved):
        acceptor.step(5, request_)
    assert acceptor.kept() == before
    assert acceptor.ready().empty


# The forgotten mark.


def test_below_the_mark_it_answers_nothing_else() -> None:
    """Broken if a coordinator's late votes could be accepted anew after the outcome was forgotten."""
    acceptor = fresh()
    for seq in (1, 2, 3):
        ask(acceptor, votes(tx=txid(seq)))
    acceptor.forget(Marks(2, ((1, 3),)))
    ready = acceptor.ready()
    assert (set(ready.dropped), ready.marks) == ({txid(1), txid(2)}, Marks(2, ((1, 3),)))
    acceptor.on_persisted(ready.token)
    for request in (votes(), Phase1a(TX, THREE, HIGH), Ask(TX, THREE)):
        assert ask(acceptor, request) == Forgotten(TX, 1)
    assert (acceptor.count, acceptor.record(TX)) == (1, None)
    assert isinstance(ask(acceptor, votes(tx=txid(3))), Phase2b)
    assert isinstance(ask(acceptor, votes(tx=txid(1, session=2))), Phase2b), "a later session"


def test_the_mark_survives_with_what_it_stands_for() -> None:
    """Broken if after a restart an acceptor knew neither the record nor that it was forgotten."""
    acceptor = fresh()
    ask(acceptor, votes())
    acceptor.forget(Marks(2))
    ready = acceptor.ready()
    assert ready.dropped
    assert ready.marks is not None
    assert ask(Acceptor(1, RestoredAcceptor(ready.marks)), votes()) == Forgotten(TX, 1)


def test_forgotten_is_not_said_before_it_is_stored() -> None:
    """Broken if it were said, and after a crash the record were there again, to be voted on."""
    acceptor = fresh()
    ask(acceptor, votes())
    acceptor.forget(Marks(2))
    acceptor.step(5, Ask(TX, THREE))
    ready = acceptor.ready()
    assert ready.replies_now == ()
    assert [each.message for each in acceptor.on_persisted(ready.token)] == [Forgotten(TX, 1)]


def test_without_a_record_there_is_no_mark_to_store() -> None:
    """Broken if every rise of every session's floor cost each node a write."""
    acceptor = fresh()
    acceptor.forget(Marks(7, ((3, 9),)))
    assert acceptor.ready().empty
    ask(acceptor, votes(tx=txid(9, 3)))
    acceptor.forget(Marks(7, ((3, 9),)))
    assert acceptor.ready().empty


def test_a_record_that_is_forgotten_before_it_is_stored_is_not_stored() -> None:
    """Broken if a deletion were overtaken by the record's own write."""
    acceptor = fresh()
    acceptor.step(5, votes())
    acceptor.forget(Marks(2))
    ready = acceptor.ready()
    assert (ready.records, ready.dropped) == ((), (TX,))


MARKS = st.builds(
    lambda following, floors: Marks(
        following, tuple(sorted((s, f) for s, f in floors.items() if s < following))
    ),
    st.integers(1, 6),
    st.dictionaries(st.integers(1, 5), st.integers(1, 4)),
)


def below(marks: Marks) -> set[tuple[int, int]]:
    """Every forgotten (session, seq) of a small world."""
    floors = dict(marks.floors)
    return {
        (session, seq)
        for session in range(1, 7)
        for seq in range(1, 6)
        if (seq < floors[session] if session in floors else session < marks.next_session)
    }


@given(MARKS, MARKS)
def test_joined_marks_forget_what_either_forgets(one: Marks, other: Marks) -> None:
    """Broken if a late report lowered the mark, or joining forgot what nobody did."""
    assert below(one.joined(other)) == below(one) | below(other)
    assert one.joined(other) == other.joined(one)


@given(MARKS, st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), max_size=12))
def test_forgetting_drops_exactly_what_is_below(marks: Marks, of: list[tuple[int, int]]) -> None:
    """Broken if a record above the mark is lost, or one below it stays."""
    acceptor = fresh(*(AcceptorRecord(txid(seq, session), THREE, LOW) for session, seq in of))
    acceptor.forget(marks)
    kept = {(record.txid.session, record.txid.seq) for record in acceptor.kept().records}
    assert kept == set(of) - below(marks)
    ready: PaxosReady = acceptor.ready()
    assert {(each.session, each.seq) for each in ready.dropped} == set(of) & below(marks)


# Bytes.


def some_messages() -> list[AcceptorRequest | AcceptorReply]:
    known = Known(BRANCHES, (Accepted(LOW, Value(True, b"\x00\xff")), None), unnamed=HIGH)
    joint = Joint(frozenset({1, 2, 3}), frozenset({3, 4, 2**62}))
    return [
        Phase1a(TX, joint, HIGH), Phase2a(TX, joint, LOW, BRANCHES, (ABORTED, None)), Ask(TX, THREE),
        Phase1b(TX, 3, HIGH, known), Phase2b(TX, 3, known), Refused(TX, 2, HIGH, Known()), Forgotten(TX, 9),
    ]  # fmt: skip


def test_messages_come_back_as_they_were() -> None:
    """Broken if what is sent is not what arrives."""
    for message in some_messages():
        decode = decode_request if isinstance(message, AcceptorRequest) else decode_reply
        assert decode(encode(message)) == message


def test_what_is_kept_comes_back_as_it_was() -> None:
    """Broken if a store that keeps encoded records gives others back."""
    kept = RestoredAcceptor(
        Marks(7, ((3, 4), (5, 1))), (AcceptorRecord(TX, THREE, HIGH, Known(BRANCHES, (None, None), LOW)),)
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=RestoredAcceptor) == kept


def test_requests_and_replies_are_not_mistaken_for_each_other() -> None:
    """Broken if a client's frame could pass for an acceptor's answer."""
    for message in some_messages():
        decode = decode_reply if isinstance(message, AcceptorRequest) else decode_request
        with pytest.raises(msgspec.ValidationError):
            decode(encode(message))


def test_damaged_bytes_are_refused_or_are_a_message() -> None:
    """Broken if something other than ValueError comes out of a bad frame, or out of the acceptor that gets
    it: the connection could not be closed for it."""
    random = Random(1)
    frames = [encode(message) for message in some_messages()]
    for _ in range(2000):
        frame = bytearray(random.choice(frames))
        for _ in range(random.randrange(1, 4)):
            frame[random.randrange(len(frame))] = random.randrange(256)
        try:
            request = decode_request(bytes(frame[: random.randrange(len(frame) + 1)]))
            fresh().step(1, request)
        except (ValueError, PeerMisbehaved):
            pass


def test_a_branch_has_a_number() -> None:
    """Broken if 0, which stands for nobody, could be voted for."""
    with pytest.raises(msgspec.ValidationError):
        decode_request(encode(Phase2a(TX, THREE, FIRST, (BranchInstance(0, "orders"),), (PREPARED,))))
