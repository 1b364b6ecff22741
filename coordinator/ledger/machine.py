"""The ledger's state machine: it applies commands and returns results. Equal commands give equal states on
all machines.

It has no clock, no randomness and no IO. ``apply`` changes the state and returns the result for the caller;
an error is returned as an exception object. Queries only read. ``snapshot`` and ``restore`` encode and decode
the whole state.

Of a finished decision the state keeps a sequence number in a range, and four bytes, so that a million of them
take a few megabytes; their details leave through ``drain_history``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec

from undoubt.coordinator.errors import BranchListMismatch, MoveRefused, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger import move_rules
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.commands import (
    AdvanceTime,
    AskLock,
    ClaimKey,
    CloseSession,
    Command,
    CommandRefused,
    CommitKey,
    Decide,
    Doom,
    DrawSecret,
    EndLock,
    ExpireSession,
    Finish,
    ForgetHeuristic,
    FreeKey,
    Judge,
    KeepAlive,
    MovingCommand,
    OpenSession,
    Precommit,
    ReceiveState,
    RecordAct,
    RecordHeuristic,
    Restore,
    RevokeLock,
    SealLedger,
    SettleMove,
    refusal,
)
from undoubt.coordinator.ledger.contract import (
    ABORTS_BY_ABSENCE,
    TERMINATES_BY_ITSELF,
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    RecordedDecision,
    Session,
    SessionInfo,
    SessionState,
    Verdict,
)
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState
from undoubt.coordinator.ledger.lock_queue import same
from undoubt.coordinator.ledger.locks import LockEntry
from undoubt.coordinator.ledger.move_mark import MoveMark, gone, lives
from undoubt.coordinator.ledger.rules import agrees, labels, sorted_branches, verdict_of
from undoubt.coordinator.ledger.state import LedgerState, PrecommitRecord, SessionBook
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Protocol, TxId
from undoubt.participants.invariant import invariant


def fingerprint(branches: Iterable[BranchRecord]) -> int:
    """A 32-bit hash of a list of branches, of their numbers and participants; never 0."""
    text = "\n".join(f"{branch.number}:{branch.participant}" for branch in sorted_branches(branches))
    return zlib.crc32(text.encode()) or 1


class Machine:
    """The state of one ledger, with the commands that change it and the queries that read it."""

    def __init__(self, ledger_id: str) -> None:
        self.state = LedgerState(ledger_id=ledger_id)
        self._history: list[DecisionRecord] = []

    # Commands.

    def apply(self, command: Command) -> object:  # noqa: PLR0911, PLR0912 - one line per kind of command
        """Carry out one command. Returns its result; an exception is returned, not raised.

        The whole command is checked first, by the rules that the log has agreed on: a refused command has
        changed nothing. An exception that is raised is a bug; afterwards nothing may be answered from this
        state."""
        if self.state.rules and (refused := refusal(command, self.state)) is not None:
            return refused
        mark = self.state.move
        if mark is not None and not lives(mark) and not isinstance(command, MovingCommand):
            return gone(mark)
        match command:
            case OpenSession():
                return self._open(command)
            case KeepAlive():
                return self._keep_alive(command)
            case CloseSession():
                return self._close(command.session, command.nonce, SessionState.CLOSED)
            case ExpireSession():
                return self._close(command.session, None, SessionState.EXPIRED)
            case Decide():
                return self._decide(command)
            case Precommit():
                return self._precommit(command)
            case Finish():
                self._finish(command.txids)
            case RecordHeuristic():
                self._record_heuristic(command.heuristic, final=command.final)
            case ForgetHeuristic():
                return self._forget_heuristic(command)
            case AdvanceTime():
                return self._advance(command)
            case Restore():
                return self._restore(command)
            case DrawSecret():
                self.state.secret = self.state.secret or command.secret
            case Doom():
                self._doom(command)
            case RecordAct():
                self._record_act(command.act, command.keep)
            case Judge():
                self.state.rules = max(self.state.rules, command.rules)
            case ClaimKey():
                return self._claim_key(command)
            case CommitKey():
                return self._commit_key(command)
            case FreeKey():
                return self._free_key(command)
            case AskLock():
                return self._ask_lock(command)
            case EndLock(request=request):
                return self.state.locks.end(request.name, lambda entry: same(entry.request, request))
            case RevokeLock(name=name, token=token):
                return self.state.locks.end(name, lambda entry: entry.token == token)
            case SealLedger():
                return move_rules.seal(self.state, command)
            case SettleMove():
                return move_rules.settle(self.state, command)
            case ReceiveState():
                return self._receive(command)
            case _:
                assert_never(command)
        return None

    def _receive(self, command: ReceiveState) -> MoveMark | MoveRefused:
        received = move_rules.receive(self.state, command)
        if isinstance(received, LedgerState):
            received.locks.changed = self.state.locks.changed
            self.state = received
            self._history = []
            return command.move
        return received

    def _open(self, command: OpenSession) -> Session:
        """Open a session. The nonce also identifies the request: if it is repeated because an answer was
        lost, no second session is opened."""
        for book in reversed(self.state.sessions.values()):
            if book.nonce == command.nonce:
                return book.session()
        number = self.state.next_session
        self.state.next_session += 1
        book = SessionBook(
            id=number,
            nonce=command.nonce,
            name=command.name,
            ttl_ms=command.ttl_ms,
            owner=command.owner,
            acceptors=command.acceptors,
            tagged=command.tagged and bool(self.state.secret),
            agent=command.agent,
        )
        self.state.sessions[number] = book
        return book.session()

    def _keep_alive(self, command: KeepAlive) -> SessionLost | None:
        book = self._book(command.session, command.nonce)
        if book is None or book.state is not SessionState.OPEN:
            return SessionLost(f"session {command.session} was closed or has expired")
        book.floor = max(book.floor, command.floor)
        self._drop_ended(book)
        return None

    def _close(self, session: int, nonce: str | None, state: SessionState) -> bool:
        book = self.state.sessions.get(session)
        if book is None or (nonce is not None and book.nonce != nonce) or book.state is not SessionState.OPEN:
            return False
        book.state = state
        book.closed_ms = self.state.time_ms
        self._drop_ended(book)
        self.state.locks.end_session(book.id)
        return True

    def _ask_lock(self, command: AskLock) -> LockEntry | SessionLost | CommandRefused | None:
        request, locks = command.request, self.state.locks
        book = self._book(request.session, request.nonce)
        if book is None or book.state is not SessionState.OPEN:
            return SessionLost(f"session {request.session} was closed or has expired")
        known = locks.find(request)
        if known is None and (why := locks.refusal(request)):
            return CommandRefused(why)
        return known or locks.ask(request, wait=command.wait, incarnation=self.state.incarnation)

    def _doom(self, command: Doom) -> None:
        txid = command.txid
        book = self._book(txid.session, txid.nonce)
        undecided = book is not None and book.state is SessionState.OPEN and txid.seq >= book.floor
        if book is not None and undecided and self._recorded(book, txid) is None:
            self.state.doomed.setdefault(txid, command.cause)

    def _drop_ended(self, book: SessionBook) -> None:
        """Drop the causes of transactions that can no longer be undecided, and free the keys of those that
        are aborted now."""
        if book.state is not SessionState.RESTORED:
            self.state.keys.free_below(book.id, book.floor if book.state is SessionState.OPEN else None)
        if self.state.doomed:
            over = book.state is not SessionState.OPEN
            self.state.doomed = {
                txid: cause
                for txid, cause in self.state.doomed.items()
                if txid.session != book.id or (not over and txid.seq >= book.floor)
            }

    def _decide(
        self, command: Decide, result: bytes = b"", *, may_commit: bool = True
    ) -> Decision | BranchListMismatch | OutcomeUnknown:
        """Record a decision. ``result`` is kept with the transaction's key. If nothing is recorded yet,
        ABORT is recorded unless ``may_commit``."""
        txid = command.txid
        book = self._book(txid.session, txid.nonce)
        if book is None:
            return OutcomeUnknown(txid, "the ledger does not know its session, or has dropped it")
        recorded = self._recorded(book, txid)
        if recorded is not None:
            return self._compare(book, command, recorded)
        decision = command.decision if may_commit else Decision.ABORT
        by_itself = command.protocol in TERMINATES_BY_ITSELF
        by_absence = command.protocol in ABORTS_BY_ABSENCE and decision is Decision.ABORT
        if book.state is SessionState.RESTORED and (by_absence or not by_itself):
            return OutcomeUnknown(txid, "its session is from before the ledger was restored from a backup")
        if not by_itself and (book.state is not SessionState.OPEN or txid.seq < book.floor):
            decision = Decision.ABORT
        if self.state.keys.claimed:
            if decision is Decision.COMMIT:
                self.state.keys.committed(txid, result, self.state.time_ms)
            else:
                self.state.keys.free(txid)
        if self.state.precommitted:
            self.state.precommitted.pop(txid, None)
        if self.state.doomed:
            self.state.doomed.pop(txid, None)
        self.state.unfinished[txid] = DecisionRecord(
            txid,
            command.protocol,
            decision,
            tuple(sorted_branches(command.branches)),
            command.at,
            book.name,
            command.cause if command.decision is Decision.ABORT else "",
        )
        return decision

    def _claim_key(self, command: ClaimKey) -> KeyHolder | SessionLost | UsageError:
        """Claim a key. A repeated command has the same result."""
        txid, keys = command.txid, self.state.keys
        if (holder := self.key_holder(command.key)) is not None:
            return holder
        book = self._book(txid.session, txid.nonce)
        ended = book is None or book.state is not SessionState.OPEN or txid.seq < book.floor
        if book is None or ended or self._recorded(book, txid) is not None:
            return SessionLost(f"transaction {txid} has ended, or its session {txid.session} has")
        if (other := keys.key_of(txid)) is not None:
            return CommandRefused(f"transaction {txid} has another key, {other!r}")
        keys.claim(command.key, txid)
        return KeyHolder(txid, KeyState.RUNNING)

    def _commit_key(self, command: CommitKey) -> Decision | BranchListMismatch | OutcomeUnknown:
        held = self.state.keys.claimed.get(command.key) == command.txid
        decide = Decide(command.txid, Protocol.TWO_PHASE, Decision.COMMIT, command.branches, command.at)
        undecided = command.txid not in self.state.unfinished
        answer = self._decide(decide, command.result, may_commit=held)
        if undecided and not command.branches:
            self._finish((command.txid,))  # no participant has anything to apply
        return answer

    def _free_key(self, command: FreeKey) -> Decision | OutcomeUnknown:
        """Abort a transaction, of which no branch is prepared: nothing is left to finish."""
        txid, keys = command.txid, self.state.keys
        book = self._book(txid.session, txid.nonce)
        if book is None:
            return OutcomeUnknown(txid, "the ledger does not know its session, or has dropped it")
        recorded = self._recorded(book, txid)
        if recorded is None and book.state is SessionState.RESTORED:
            return OutcomeUnknown(txid, "its session is from before the ledger was restored from a backup")
        if recorded is None and keys.key_of(txid) == command.key:
            book.finish(txid.seq, Decision.ABORT, fingerprint(()))
            keys.free(txid)
        return recorded or Decision.ABORT

    def _precommit(self, command: Precommit) -> SessionLost | None:
        txid = command.txid
        book = self._book(txid.session, txid.nonce)
        if book is None or book.state is not SessionState.OPEN or txid.seq < book.floor:
            return SessionLost(f"session {txid.session} was closed or has expired")
        if self._recorded(book, txid) is None:
            self.state.precommitted[txid] = PrecommitRecord(
                txid, command.protocol, tuple(sorted_branches(command.branches)), command.at, book.name
            )
        return None

    def _compare(
        self, book: SessionBook, command: Decide, recorded: Decision
    ) -> Decision | BranchListMismatch:
        record = self.state.unfinished.get(command.txid)
        given = labels(command.branches)
        known = ["finished"] if record is None else labels(record.branches)
        if record is None and book.fingerprint(command.txid.seq) == fingerprint(command.branches):
            known = given  # the fingerprint is all that is kept of a finished transaction's list
        same = agrees(command.decision, given, recorded, known)
        return recorded if same else BranchListMismatch(command.txid, known, given)

    def _finish(self, txids: Iterable[TxId]) -> None:
        for txid in txids:
            record = self.state.unfinished.pop(txid, None)
            if record is None:
                continue
            book = self.state.sessions.get(txid.session)
            invariant(book is not None, f"{txid} is unfinished, and its session is missing")
            if book is not None:
                book.finish(txid.seq, record.decision, fingerprint(record.branches))
            self._history.append(record)

    def _record_heuristic(self, heuristic: Heuristic, *, final: bool) -> None:
        key = str(heuristic.gid)
        known = self.state.heuristics.get(key)
        if known is None or (
            known.kind is Settled.HEURISTIC_HAZARD and heuristic.kind is not Settled.HEURISTIC_HAZARD
        ):
            if final and known is not None and known.forgotten:
                heuristic = msgspec.structs.replace(
                    heuristic, forgotten=True, forgotten_by=known.forgotten_by
                )
            self.state.heuristics[key] = heuristic

    def _record_act(self, act: Act, keep: int) -> None:
        acts = self.state.acts
        known = acts.get(act.id)
        if known is not None:
            acts[act.id] = msgspec.structs.replace(known, result=act.result or known.result)
            return
        acts[act.id] = act
        while len(acts) > max(keep, 1):
            del acts[next(iter(acts))]

    def cut_off_acts(self, result: str) -> None:
        """Set ``result`` for all acts that have none. Only for a state that is being made from a backup and
        is not in use yet: the change is not a command."""
        for act in self.state.acts.values():
            if not act.result:
                self.state.acts[act.id] = msgspec.structs.replace(act, result=result)

    def _forget_heuristic(self, command: ForgetHeuristic) -> bool:
        key = str(command.gid)
        known = self.state.heuristics.get(key)
        if known is None or known.forgotten:
            return known is not None and command.request != "" and known.forgotten_by == command.request
        self.state.heuristics[key] = msgspec.structs.replace(
            known, forgotten=True, forgotten_by=command.request
        )
        return True

    def _advance(self, command: AdvanceTime) -> list[int]:
        """Advance ledger time, and drop old sessions; returns the numbers of the dropped sessions."""
        self.state.time_ms += max(command.elapsed_ms, 0)
        held = {txid.session for txid in (*self.state.unfinished, *self.state.precommitted)}
        held |= {
            heuristic.gid.txid.session
            for heuristic in self.state.heuristics.values()
            if not heuristic.forgotten
        }
        dropped = [
            number
            for number, book in self.state.sessions.items()
            if book.closed_ms is not None
            and book.closed_ms + command.retention_ms <= self.state.time_ms
            and number not in held
        ]
        for number in dropped:
            del self.state.sessions[number]
        gone = set(dropped)
        for number in dropped:
            self.state.keys.free_below(number, None)  # of a session that a restore had closed
        self.state.keys.drop(self.state.time_ms - command.retention_ms)
        for key, heuristic in list(self.state.heuristics.items()):
            if heuristic.gid.txid.session in gone:
                del self.state.heuristics[key]
        return dropped

    def _restore(self, command: Restore) -> int:
        self.state.incarnation += 1
        self.state.next_session = max(self.state.next_session, command.issued + 1) + command.session_skip
        for book in self.state.sessions.values():
            book.acceptors = ()  # a backup does not contain what the acceptors had accepted
            if book.state is SessionState.OPEN:
                book.state = SessionState.RESTORED
                book.closed_ms = self.state.time_ms
                self._drop_ended(book)
                self.state.locks.end_session(book.id)
        return self.state.incarnation

    # Queries.

    def verdict(self, txid: TxId, protocol: Protocol | None) -> Verdict:
        """The verdict for recovery on a transaction with a prepared branch."""
        book = self._book(txid.session, txid.nonce)
        if book is None:
            return verdict_of(None, None, 0, txid.seq, protocol)
        return verdict_of(self._recorded(book, txid), book.state, book.floor, txid.seq, protocol)

    def agent(self, txid: TxId) -> AgentBinding | None:
        """The agent to which the session of ``txid`` is bound; None if it is not."""
        book = self._book(txid.session, txid.nonce)
        return book.agent if book is not None and book.tagged else None

    def record(self, txid: TxId) -> RecordedDecision:
        """The answer for callers: only a recorded decision."""
        book = self._book(txid.session, txid.nonce)
        recorded = None if book is None else self._recorded(book, txid)
        return RecordedDecision.NOT_RECORDED if recorded is None else RecordedDecision(str(recorded))

    def unfinished(self) -> list[DecisionRecord]:
        return list(self.state.unfinished.values())

    def precommitted(self, txid: TxId) -> PrecommitRecord | None:
        """The record of an undecided transaction all of whose branches have voted PREPARED; None if there is
        none."""
        return self.state.precommitted.get(txid)

    def heuristics(self, *, include_forgotten: bool) -> list[Heuristic]:
        known = self.state.heuristics.values()
        return [heuristic for heuristic in known if include_forgotten or not heuristic.forgotten]

    def key_holder(self, key: str) -> KeyHolder | None:
        """The transaction that has ``key``; None if the key is free."""
        if (kept := self.state.keys.kept.get(key)) is not None:
            return KeyHolder(kept.txid, KeyState.COMMITTED, kept.result)
        txid = self.state.keys.claimed.get(key)
        if txid is None:
            return None
        book = self._book(txid.session, txid.nonce)
        open_ = book is not None and book.state is SessionState.OPEN
        return KeyHolder(txid, KeyState.RUNNING if open_ else KeyState.LOST)

    def acts(self, limit: int) -> list[Act]:
        """At most ``limit`` acts, newest first."""
        return list(reversed(self.state.acts.values()))[:limit]

    def session_infos(self) -> list[SessionInfo]:
        return [book.info() for book in self.state.sessions.values()]

    @property
    def history_waiting(self) -> int:
        """The number of records that :meth:`drain_history` would return."""
        return len(self._history)

    def drain_history(self) -> Sequence[DecisionRecord]:
        """The records that were finished since the last call, for a store outside the snapshot."""
        drained, self._history = self._history, []
        return drained

    # The whole state.

    def snapshot(self) -> bytes:
        return self.state.encode()

    def restore(self, data: bytes) -> None:
        changed = self.state.locks.changed
        self.state = LedgerState.decode(data)
        self.state.locks.changed = changed
        self._history = []

    def _book(self, session: int, nonce: str) -> SessionBook | None:
        book = self.state.sessions.get(session)
        return book if book is not None and book.nonce == nonce else None

    def _recorded(self, book: SessionBook, txid: TxId) -> Decision | None:
        record = self.state.unfinished.get(txid)
        return record.decision if record is not None else book.finished(txid.seq)
