"""The ledger's state machine against a model that keeps everything in plain dictionaries.

The model shares no code with the machine. If a rule fails, a sequence of commands exists after which the
ledger tells two parties different things, or forgets what it told.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
)

from undoubt.coordinator.errors import BranchListMismatch, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger import commands as c
from undoubt.coordinator.ledger.contract import BranchRecord, Heuristic, RecordedDecision, Session, Verdict
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.state import Ranges
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, TxId

RETENTION_MS = 1_000
LISTS = (
    (BranchRecord(1, "a", 5, 6, "00000001"), BranchRecord(2, "b")),
    (BranchRecord(1, "a"), BranchRecord(2, "c")),
    (BranchRecord(1, "a"),),
)
SEQS = st.integers(1, 6)
KEYS = st.sampled_from("ab")


@dataclass
class ModelSession:
    nonce: str
    alive: bool = True
    restored: bool = False
    floor: int = 1
    closed_at: int | None = None


@dataclass
class Decided:
    decision: Decision
    names: list[str]
    finished: bool = False


COMMITTED = Decided(Decision.COMMIT, [])


@dataclass
class Model:
    sessions: dict[int, ModelSession] = field(default_factory=dict)
    decided: dict[TxId, Decided] = field(default_factory=dict)
    hazards: dict[TxId, bool] = field(default_factory=dict)
    now: int = 0
    highest: int = 0

    def known(self, txid: TxId) -> ModelSession | None:
        session = self.sessions.get(txid.session)
        return session if session is not None and session.nonce == txid.nonce else None


class LedgerAgainstModel(RuleBasedStateMachine):
    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine("aaaaaaaaaa")
        self.model = Model()
        self.advanced = 0
        """Ledger time when old records were dropped last."""

    def run(self, command: c.Command) -> object:
        return self.machine.apply(c.decode(c.encode(command)))

    @rule(target=sessions, nonce=st.sampled_from([digit * 16 for digit in "01234"]))
    def open(self, nonce: str) -> Session:
        session = self.run(c.OpenSession(nonce, "s", 1000))
        assert isinstance(session, Session)
        asked_again = [number for number, known in self.model.sessions.items() if known.nonce == nonce]
        if asked_again:
            assert [session.id] == asked_again, "a repeated request opened another session"
            return session
        assert session.id > self.model.highest, "a session number came back"
        self.model.highest = session.id
        self.model.sessions[session.id] = ModelSession(nonce)
        return session

    @rule(target=sessions, session=sessions)
    def impostor(self, session: Session) -> Session:
        """The same number with another nonce: a forked process, a restored ledger."""
        return Session(session.id, "f" * 16, session.name, session.ttl_s)

    @rule(session=sessions, floor=SEQS)
    def keep_alive(self, session: Session, floor: int) -> None:
        known = self.model.known(session.txid(1))
        answer = self.run(c.KeepAlive(session.id, session.nonce, floor))
        if known is None or not known.alive:
            assert isinstance(answer, SessionLost)
        else:
            assert answer is None
            known.floor = max(known.floor, floor)

    @rule(session=sessions, expire=st.booleans())
    def end(self, session: Session, expire: bool) -> None:
        command: c.Command = c.ExpireSession(session.id)
        known = self.model.sessions.get(session.id)
        if not expire:
            command = c.CloseSession(session.id, session.nonce)
            known = self.model.known(session.txid(1))
        self.run(command)
        if known is not None and known.alive:
            known.alive, known.closed_at = False, self.model.now

    @rule(session=sessions, seq=SEQS, commit=st.booleans(), branches=st.sampled_from(LISTS))
    def decide(self, session: Session, seq: int, commit: bool, branches: tuple[BranchRecord, ...]) -> None:
        txid = session.txid(seq)
        asked = Decision.COMMIT if commit else Decision.ABORT
        answer = self.run(c.Decide(txid, Protocol.TWO_PHASE, asked, branches, 0.0))
        known, decided = self.model.known(txid), self.model.decided.get(txid)
        names = [f"{branch.number}:{branch.participant}" for branch in branches]
        if known is None or (decided is None and known.restored):
            assert isinstance(answer, OutcomeUnknown)
        elif decided is not None:
            self.check_repeated(decided, asked, names, answer)
        else:
            may = known.alive and seq >= known.floor
            assert answer is (asked if may else Decision.ABORT)
            assert isinstance(answer, Decision)
            self.model.decided[txid] = Decided(answer, names)
            self.decide_hook(txid, answer)

    def decide_hook(self, txid: TxId, answer: Decision) -> None:
        """Called with each decision that was recorded."""

    def check_repeated(self, decided: Decided, asked: Decision, names: list[str], answer: object) -> None:
        if decided.decision is Decision.ABORT or decided.names == names:
            assert answer is decided.decision
        elif asked is Decision.COMMIT:
            assert isinstance(answer, BranchListMismatch)
        else:
            assert answer is decided.decision or isinstance(answer, BranchListMismatch)

    @rule(session=sessions, seqs=st.lists(SEQS, max_size=4))
    def finish(self, session: Session, seqs: list[int]) -> None:
        self.run(c.Finish(tuple(session.txid(seq) for seq in seqs)))
        for seq in seqs:
            if self.model.known(session.txid(seq)) and session.txid(seq) in self.model.decided:
                self.model.decided[session.txid(seq)].finished = True

    @rule(session=sessions, seq=SEQS)
    def hazard(self, session: Session, seq: int) -> None:
        if self.model.known(session.txid(seq)) is None:
            return
        self.run(c.RecordHeuristic(_hazard(session.txid(seq))))
        self.model.hazards.setdefault(session.txid(seq), True)

    @rule(session=sessions, seq=SEQS)
    def forget(self, session: Session, seq: int) -> None:
        answer = self.run(c.ForgetHeuristic(_gid(session.txid(seq))))
        assert answer == self.model.hazards.get(session.txid(seq), False)
        if session.txid(seq) in self.model.hazards:
            self.model.hazards[session.txid(seq)] = False

    @rule(elapsed=st.integers(0, 700))
    def advance(self, elapsed: int) -> None:
        self.run(c.AdvanceTime(elapsed, RETENTION_MS))
        self.model.now += elapsed
        self.advanced = self.model.now
        for number, known in list(self.model.sessions.items()):
            unfinished = any(
                txid.session == number and not decided.finished
                for txid, decided in self.model.decided.items()
            )
            open_hazard = any(
                txid.session == number and is_open for txid, is_open in self.model.hazards.items()
            )
            old = known.closed_at is not None and known.closed_at + RETENTION_MS <= self.model.now
            if old and not unfinished and not open_hazard:
                del self.model.sessions[number]
                self.drop(number)

    def drop(self, number: int) -> None:
        for txid in [txid for txid in self.model.decided if txid.session == number]:
            del self.model.decided[txid]
        for txid in [txid for txid in self.model.hazards if txid.session == number]:
            del self.model.hazards[txid]

    @rule(skip=st.integers(1, 1000))
    def restore_from_backup(self, skip: int) -> None:
        incarnation = self.machine.state.incarnation
        assert self.run(c.Restore(skip)) == incarnation + 1
        self.model.highest += skip
        for known in self.model.sessions.values():
            if known.alive:
                known.alive, known.restored, known.closed_at = False, True, self.model.now

    @rule()
    def restart(self) -> None:
        """From a snapshot, as another node or a later process would."""
        snapshot = self.machine.snapshot()
        other = Machine("bbbbbbbbbb")
        other.restore(snapshot)
        assert other.snapshot() == snapshot, "a snapshot of a snapshot differs: replicas would diverge"
        self.machine = other

    @rule(target=sessions)
    def nothing_new(self) -> object:
        return multiple()

    @invariant()
    def verdicts_agree(self) -> None:
        for number, known in self.model.sessions.items():
            for seq in range(1, 8):
                txid = TxId(number, known.nonce, seq)
                assert self.machine.verdict(txid, Protocol.TWO_PHASE) is self.expected(txid, known)
                stranger = TxId(number, "e" * 16, seq)
                assert self.machine.verdict(stranger, Protocol.TWO_PHASE) is Verdict.FORGOTTEN
                assert self.machine.record(stranger) is RecordedDecision.NOT_RECORDED

    def expected(self, txid: TxId, known: ModelSession) -> Verdict:
        decided = self.model.decided.get(txid)
        if decided is not None:
            assert self.machine.record(txid) == RecordedDecision(str(decided.decision))
            return Verdict.COMMITTED if decided.decision is Decision.COMMIT else Verdict.ABORTED
        assert self.machine.record(txid) is RecordedDecision.NOT_RECORDED
        if txid.seq < known.floor:
            return Verdict.ABORTED
        if known.restored:
            return Verdict.FORGOTTEN
        return Verdict.ACTIVE if known.alive else Verdict.ABORTED

    @invariant()
    def unfinished_agrees(self) -> None:
        left = {txid for txid, decided in self.model.decided.items() if not decided.finished}
        assert {record.txid for record in self.machine.unfinished()} == left


class MachineAgainstModel(LedgerAgainstModel):
    """And against one that is never restarted; with keys."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = Machine("aaaaaaaaaa")
        self.claimed: dict[str, TxId] = {}
        self.kept: dict[str, tuple[TxId, int]] = {}

    def undecided(self, txid: TxId) -> bool:
        """Whether it may still be decided COMMIT, or may have been before a restore."""
        known = self.model.known(txid)
        if known is None or txid in self.model.decided:
            return False
        return self.expected(txid, known) in {Verdict.ACTIVE, Verdict.FORGOTTEN}

    def holder(self, key: str) -> TxId | None:
        """Computed from the model each time: no key is freed by anything but what became of its
        transaction."""
        if key in self.kept:
            return self.kept[key][0]
        txid = self.claimed.get(key)
        return txid if txid is not None and self.undecided(txid) else None

    def commits(self, txid: TxId) -> None:
        for key, claimed in list(self.claimed.items()):
            if claimed == txid and key not in self.kept:
                self.kept[key] = (txid, self.model.now)

    @rule(session=LedgerAgainstModel.sessions, seq=SEQS, key=KEYS)
    def claim_key(self, session: Session, seq: int, key: str) -> None:
        txid, holder = session.txid(seq), self.holder(key)
        known = self.model.known(txid)
        answer = self.run(c.ClaimKey(txid, key))
        if holder is not None:
            assert isinstance(answer, KeyHolder)
            assert answer.txid == holder
        elif known is None or not known.alive or not self.undecided(txid):
            assert isinstance(answer, SessionLost)
        elif any(self.holder(other) == txid for other in self.claimed if other not in self.kept):
            assert isinstance(answer, UsageError)
        else:
            assert answer == KeyHolder(txid, KeyState.RUNNING)
            self.claimed[key] = txid

    @rule(session=LedgerAgainstModel.sessions, seq=SEQS, key=KEYS, branches=st.sampled_from((*LISTS, ())))
    def commit_key(self, session: Session, seq: int, key: str, branches: tuple[BranchRecord, ...]) -> None:
        txid = session.txid(seq)
        held = self.holder(key) == txid
        names = [f"{branch.number}:{branch.participant}" for branch in branches]
        known, decided = self.model.known(txid), self.model.decided.get(txid)
        may = held and known is not None and known.alive and seq >= known.floor
        answer = self.run(c.CommitKey(txid, key, txid.nonce.encode(), branches, 0.0))
        if known is None or (decided is None and known.restored):
            assert isinstance(answer, OutcomeUnknown)
        elif decided is not None:
            self.check_repeated(decided, Decision.COMMIT, names, answer)
        else:
            assert answer is (Decision.COMMIT if may else Decision.ABORT)
            self.model.decided[txid] = Decided(answer, names, finished=not branches)
            if may:
                self.commits(txid)

    @rule(session=LedgerAgainstModel.sessions, seq=SEQS, key=KEYS)
    def free_key(self, session: Session, seq: int, key: str) -> None:
        txid = session.txid(seq)
        held = self.holder(key) == txid
        known, decided = self.model.known(txid), self.model.decided.get(txid)
        answer = self.run(c.FreeKey(txid, key))
        if known is None or (decided is None and known.restored):
            assert isinstance(answer, OutcomeUnknown)
            return
        assert answer is (Decision.ABORT if decided is None else decided.decision)
        if decided is None and held:
            self.model.decided[txid] = Decided(Decision.ABORT, [], finished=True)

    def decide_hook(self, txid: TxId, answer: Decision) -> None:
        if answer is Decision.COMMIT:
            self.commits(txid)

    @invariant()
    def keys_are_held_by_what_may_commit_or_has(self) -> None:
        self.kept = {
            key: (txid, at) for key, (txid, at) in self.kept.items() if at + RETENTION_MS > self.advanced
        }
        for key in ("a", "b"):
            holder = self.machine.key_holder(key)
            assert (None if holder is None else holder.txid) == self.holder(key)
            if holder is not None and holder.state is KeyState.COMMITTED:
                assert self.model.decided.get(holder.txid, COMMITTED).decision is Decision.COMMIT

    def run(self, command: c.Command) -> object:
        self.twin.apply(c.decode(c.encode(command)))
        return super().run(command)

    @invariant()
    def it_is_as_if_it_had_never_been_restarted(self) -> None:
        """Nodes compare hashes of their states: one that began from a snapshot must not differ."""
        assert self.twin.snapshot() == self.machine.snapshot()


TestLedgerAgainstModel = MachineAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _gid(txid: TxId) -> Gid:
    return Gid("aaaaaaaaaa", Protocol.TWO_PHASE, txid, 1, "a")


def _hazard(txid: TxId) -> Heuristic:
    return Heuristic(_gid(txid), Settled.HEURISTIC_HAZARD, Decision.COMMIT, 0.0)


@given(st.lists(st.integers(1, 60), max_size=80))
def test_ranges_are_a_set(numbers: list[int]) -> None:
    """A number that is lost or invented turns a committed transaction into an aborted one."""
    ranges, model = Ranges(), set()
    for number in numbers:
        ranges.add(number)
        model.add(number)
        assert len(ranges) == len(model)
    assert {number for number in range(62) if number in ranges} == model
    pairs = ranges.pairs()
    assert all(later[0] > earlier[1] + 1 for earlier, later in itertools.pairwise(pairs))
    assert Ranges(pairs).pairs() == pairs


@given(st.binary(max_size=60))
def test_no_bytes_decode_to_a_command_by_accident(data: bytes) -> None:
    """A damaged entry is an error of one kind, or a command that encodes to an equal one."""
    try:
        command = c.decode(data)
    except ValueError:  # msgspec's errors are
        return
    assert c.decode(c.encode(command)) == command
