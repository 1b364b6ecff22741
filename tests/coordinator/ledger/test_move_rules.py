"""A move on the state machine, and images, without servers. Each test's docstring says what breaks if it
fails."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from undoubt.coordinator.errors import LedgerMoved, MoveRefused, OutcomeUnknown
from undoubt.coordinator.ledger import commands as c
from undoubt.coordinator.ledger.acting import new_act
from undoubt.coordinator.ledger.contract import BranchRecord, Verdict
from undoubt.coordinator.ledger.etcd.keyspace import FORMAT, Era, Keyspace, encode
from undoubt.coordinator.ledger.keys import KeyState
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, lives
from undoubt.coordinator.ledger.move_rules import status_of
from undoubt.coordinator.ledger.moving import etcd_keys
from undoubt.coordinator.ledger.moving.image import LedgerImage, canonical, entering
from undoubt.coordinator.ledger.state import LedgerState
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

NONCE, LEDGER = "0123456789abcdef", "abcdefghij"
MARK = MoveMark("m", "etcd://there", 1.0, MovePhase.SEALED)
ARRIVING = MARK.into(MovePhase.ARRIVING)
BRANCHES = (BranchRecord(1, "orders"),)
TWO = Protocol.TWO_PHASE


def used() -> Machine:
    """Three transactions of a closed session: finished, committed, undecided; then one of a session that a
    restore has closed, with a key."""
    machine = Machine(LEDGER)
    machine.apply(c.DrawSecret(bytes(32)))
    machine.apply(c.OpenSession(NONCE, "shop", 1000, tagged=True))
    for seq in (1, 2):
        machine.apply(c.Decide(TxId(1, NONCE, seq), TWO, Decision.COMMIT, BRANCHES, 1.0))
    machine.apply(c.Finish((TxId(1, NONCE, 1),)))
    for number in range(50):
        request = LockRequest("door", 1, NONCE, number + 1, at=1.0)
        machine.apply(c.AskLock(request, wait=False))
        machine.apply(c.EndLock(request))
    machine.apply(c.CloseSession(1, NONCE))
    machine.apply(c.OpenSession(NONCE[::-1], "restored", 1000, tagged=True))
    machine.apply(c.ClaimKey(TxId(2, NONCE[::-1], 1), "lost"))
    machine.apply(c.Restore(100))
    machine.apply(c.RecordAct(new_act("tx resolve", "1.x.1"), 10))
    return machine


def moved(machine: Machine) -> LedgerImage:
    return entering(LedgerImage(machine.state), ARRIVING, new_act("ledger move", "there"))


def received(machine: Machine, image: LedgerImage, *, pieces: int = 1) -> object:
    whole = image.state.encode()
    size = -(-len(whole) // pieces)
    result: object = None
    for number in range(pieces):
        piece = whole[number * size : (number + 1) * size]
        digest = hashlib.sha256(whole).hexdigest() if number == pieces - 1 else ""
        result = machine.apply(c.ReceiveState(ARRIVING, LEDGER, number, piece, digest))
    return result


def test_a_sealed_ledger_records_and_answers_nothing() -> None:
    """A coordinator with the old URL decides, or its session opens, after the image was read."""
    machine = used()
    assert machine.apply(c.SealLedger(MARK)) == MARK
    before = machine.snapshot()
    for command in (
        c.OpenSession("f" * 16, "late", 1000),
        c.Decide(TxId(1, NONCE, 3), TWO, Decision.ABORT, BRANCHES, 1.0),
        c.Finish((TxId(1, NONCE, 2),)),
        c.RecordAct(new_act("x", "y"), 10),
        c.Restore(1),
        c.AdvanceTime(1000, 0),
    ):
        assert isinstance(machine.apply(command), LedgerMoved)
    assert machine.snapshot() == before
    again = Machine("")
    again.restore(before)
    assert isinstance(again.apply(c.OpenSession("f" * 16, "late", 1000)), LedgerMoved)


def test_a_ledger_with_an_open_session_is_not_sealed() -> None:
    """A ledger is sealed under a coordinator that works."""
    machine = used()
    machine.apply(c.OpenSession("f" * 16, "shop@host", 1000))
    refused = machine.apply(c.SealLedger(MARK))
    assert isinstance(refused, MoveRefused)
    assert "shop@host" in str(refused)
    assert machine.state.move is None


@pytest.mark.parametrize(
    ("marks", "answer"),
    [
        ((None,), None),
        ((MovePhase.MOVED,), MovePhase.MOVED),
        ((MovePhase.MOVED, MovePhase.MOVED), MovePhase.MOVED),
        ((MovePhase.MOVED, None), MovePhase.MOVED),
        ((None, MovePhase.MOVED), None),
        ((MovePhase.ARRIVED,), MovePhase.SEALED),
    ],
)
def test_an_undone_move_is_not_completed_nor_a_completed_one_undone(
    marks: tuple[MovePhase | None, ...], answer: MovePhase | None
) -> None:
    """Two places answer after --undo and a repetition at the same time."""
    machine = used()
    machine.apply(c.SealLedger(MARK))
    for phase in marks:
        machine.apply(c.SettleMove(MARK.id, phase))
    assert (None if machine.state.move is None else machine.state.move.phase) == answer


def test_a_state_arrives_in_pieces_and_lives_once_it_is_settled() -> None:
    """A cluster takes a part of a state, or answers from it before the old place is left."""
    source, target = used(), Machine("zzzzzzzzzz")
    target.apply(c.RecordAct(new_act("cluster init", "node 1"), 10))
    image = moved(source)
    assert received(target, image, pieces=3) == ARRIVING
    assert received(target, image, pieces=3) == ARRIVING, "may be repeated"
    assert LedgerImage(target.state).digest == image.digest
    assert isinstance(target.apply(c.OpenSession("f" * 16, "early", 1000)), LedgerMoved)
    assert isinstance(target.apply(c.SettleMove("other", MovePhase.ARRIVED)), MoveRefused)
    target.apply(c.SettleMove(MARK.id, MovePhase.ARRIVED))
    assert lives(target.state.move)
    assert target.apply(c.OpenSession("f" * 16, "now", 1000)) is not None
    assert isinstance(received(target, image), MoveRefused), "a used ledger is not replaced"


def test_pieces_of_two_moves_are_not_mixed() -> None:
    """A state is put together from two attempts."""
    image, target = moved(used()), Machine("zzzzzzzzzz")
    whole = image.state.encode()
    other = msgspec.structs.replace(ARRIVING, id="other")
    target.apply(c.ReceiveState(other, LEDGER, 0, whole[:10]))
    digest = hashlib.sha256(whole).hexdigest()
    assert isinstance(target.apply(c.ReceiveState(ARRIVING, LEDGER, 1, whole[10:], digest)), MoveRefused)
    assert isinstance(target.apply(c.ReceiveState(other, LEDGER, 2, whole[10:], digest)), MoveRefused)
    assert isinstance(target.apply(c.ReceiveState(other, LEDGER, 1, whole[11:], digest)), MoveRefused)
    assert status_of(target.state).unused


def test_what_enters_presumes_what_the_old_place_would_have() -> None:
    """A move forgets what is undecided, or presumes what a restore has made unknown; tokens or numbers of
    sessions come twice."""
    source = used()
    target = Machine("")
    target.restore(moved(source).state.encode())
    target.apply(c.SettleMove(MARK.id, MovePhase.ARRIVED))
    verdicts = [target.verdict(TxId(1, NONCE, seq), TWO) for seq in (1, 2, 3)]
    assert verdicts == [Verdict.COMMITTED, Verdict.COMMITTED, Verdict.ABORTED]
    lost = TxId(2, NONCE[::-1], 1)
    assert target.verdict(lost, TWO) is Verdict.FORGOTTEN
    answer = target.apply(c.Decide(lost, TWO, Decision.COMMIT, BRANCHES, 1.0))
    assert isinstance(answer, OutcomeUnknown)
    holder = target.key_holder("lost")
    assert holder is not None
    assert (holder.txid, holder.state) == (lost, KeyState.LOST)
    assert target.state.incarnation == source.state.incarnation + 1
    assert target.state.next_session > source.state.next_session + 1000
    assert target.state.locks.next_token == source.state.locks.next_token > 50
    assert target.state.secret == source.state.secret


def test_keys_of_etcd_hold_a_whole_image() -> None:
    """A record has no key in etcd, or is read from its key as another one."""
    image = moved(used())
    keys = Keyspace("undoubt")
    found = dict(etcd_keys.keys_of(keys, image))
    state = image.state
    found[keys.era] = encode(Era(FORMAT, LEDGER, state.incarnation, 7, state.move))
    assert etcd_keys.image_of(keys, found).digest == image.digest
    finished = {record.txid: record for record in used().drain_history()}
    with_details = LedgerImage(image.state, finished)
    found = dict(etcd_keys.keys_of(keys, with_details)) | {keys.era: found[keys.era]}
    assert etcd_keys.image_of(keys, found).digest == with_details.digest != image.digest


def test_a_digest_shows_every_difference() -> None:
    """A copy that lacks a record is taken for complete."""
    image = moved(used())
    digests = {image.digest}
    whole = msgspec.msgpack.decode(canonical(image.state).encode())
    for place, value in enumerate(whole):
        changed = list(whole)
        if isinstance(value, list) and value and isinstance(value[0], list):
            changed[place] = value[1:]
        elif isinstance(value, int) and place > 1:
            changed[place] = value + 1
        else:
            continue
        other = LedgerImage(LedgerState.decode(msgspec.msgpack.encode(changed)))
        digests.add(other.digest)
    assert len(digests) >= 8
