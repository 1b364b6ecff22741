"""An acceptor that answers nonsense, beside two that are sound.

Broken if what one of them says could end a leader otherwise than by its outcome or an error of the ledger, or
keep it from the outcome that two know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from tests.prove.poison.frames import poisoned
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster.acceptors import ClusterAcceptors, record_of
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Session, SessionInfo
from undoubt.coordinator.paxos import (
    FIRST,
    Accepted,
    Acceptor,
    AcceptorReply,
    AcceptorRequest,
    Ballot,
    BranchInstance,
    Forgotten,
    Known,
    PeerMisbehaved,
    Phase1b,
    Phase2b,
    Refused,
    RestoredAcceptor,
    Value,
    decode_reply,
)
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

SESSION = Session(1, "a" * 16, "test", 60.0, acceptors=(1, 2, 3))
CONTRADICTED = re.compile("was used for|two lists|is chosen")
TXID = SESSION.txid(1)
BRANCHES = (BranchRecord(1, "orders", 7, 8, "00000001"), BranchRecord(2, "payments"))
NAMED = (BranchInstance(1, "orders"), BranchInstance(2, "payments"))
KNOWN = Known(NAMED, tuple(Accepted(FIRST, Value(True, b"")) for _ in NAMED), Ballot(0, 0))


class Nodes:
    """Three acceptors, the first of which says ``says`` instead."""

    def __init__(self, says: AcceptorReply) -> None:
        self._says = says
        self._acceptors = {number: Acceptor(number, RestoredAcceptor()) for number in (2, 3)}
        self._number = 0

    def ask(
        self, to: int, request: AcceptorRequest, answer: Callable[[AcceptorReply | Exception], None]
    ) -> None:
        if to == 1:
            answer(self._says)
            return
        acceptor = self._acceptors[to]
        self._number += 1
        try:
            acceptor.step(self._number, request)
        except PeerMisbehaved as error:
            answer(LedgerError(str(error)))
            return
        ready = acceptor.ready()
        for each in (*ready.replies_now, *acceptor.on_persisted(ready.token)):
            answer(each.message)

    def leader(self) -> ClusterAcceptors:
        async def session_of(txid: TxId) -> SessionInfo | None:
            return None

        async def open_session(name: str, ttl_s: float) -> Session:
            return SESSION

        async def record(txid: TxId) -> RecordedDecision:
            return RecordedDecision.COMMIT

        async def voters() -> Sequence[int]:
            return SESSION.acceptors

        return ClusterAcceptors(
            self.ask, open_session, session_of, record, Random(1), voters=voters, timeout_s=5.0
        )


def sound() -> Iterator[AcceptorReply]:
    yield Phase1b(TXID, 1, Ballot(1, 7), KNOWN)
    yield Phase2b(TXID, 1, KNOWN)
    yield Refused(TXID, 1, Ballot(2, 7), KNOWN)
    yield Forgotten(TXID, 1)


def odd() -> Iterator[AcceptorReply]:
    for reply in sound():
        for raw in poisoned(reply, long=1_001):
            try:
                yield decode_reply(raw)
            except ValueError:
                continue


@pytest.mark.parametrize("verb", ["vote", "settle"])
async def test_two_sound_acceptors_are_enough(verb: str) -> None:
    counts = Counter[str]()
    for says in odd():
        leader = Nodes(says).leader()
        await leader.open_session("test", 60.0)
        try:
            if verb == "vote":
                found = await leader.vote(TXID, BRANCHES)
                assert found is Decision.COMMIT, says
            else:
                await leader.settle(TXID)
        except LedgerError as error:
            counts["contradicted" if CONTRADICTED.search(str(error)) else str(error)] += 1
        else:
            counts["decided"] += 1
    assert counts["decided"] > 200
    assert counts.keys() <= {"decided", "contradicted"}


def test_evidence_that_cannot_be_read_is_none() -> None:
    """Broken if one vote that a client made badly keeps whoever settles what is left from all the rest."""
    for evidence in (b"\0", b"\xc1", b"\x93\x01", b"\x91" * 5_000):
        assert record_of(NAMED[0], Value(True, evidence)) == BranchRecord(1, "orders")
