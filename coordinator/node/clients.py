"""Serves a client's connection to this node: requests come in, answers go out, many in one frame.

Decisions, which are most of the requests, are proposed directly and answered without a separate task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.acting import acting
from undoubt.coordinator.ledger.cluster import messages
from undoubt.coordinator.ledger.cluster.messages import (
    AcceptorCall,
    BackupCall,
    ChangeMembersCall,
    MoveCall,
    OperatorCall,
    StatusCall,
    TransferCall,
)
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.ledger.ledger_call import LedgerCall
from undoubt.coordinator.node.admin import NodeAdmin
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.calls import AnyCall, check_right
from undoubt.coordinator.rpc.envelope import Answer, Elsewhere, LeaderHint, Request
from undoubt.coordinator.rpc.server import Requests, message_count
from undoubt.coordinator.wire import VERSIONS, Connection, RemoteProtocolError, Right
from undoubt.participants.contract import Decision
from undoubt.participants.ids import new_nonce

REQUESTS_PER_CONNECTION_MAX = 100_000
"""The limit for unanswered requests on one connection; only a faulty client exceeds it."""

BEAT_S = 0.3
ANSWERS_BYTES_MAX = 32 * 1024 * 1024
"""The limit for the size of the answers in one frame."""

_DECISIONS = {decision: msgspec.Raw(envelope.encode(decision)) for decision in Decision}


def _verb(call: ChangeMembersCall | TransferCall | BackupCall) -> str:
    if isinstance(call, TransferCall | BackupCall):
        return "cluster transfer" if isinstance(call, TransferCall) else "cluster backup"
    return "cluster " + " ".join(sorted({change.kind for change in call.changes}))


def _subject(call: ChangeMembersCall | TransferCall | BackupCall) -> str:
    if isinstance(call, BackupCall):
        return "the ledger"
    nodes = [call.to] if isinstance(call, TransferCall) else [change.node for change in call.changes]
    return "node " + " ".join(map(str, nodes))


class FromClient(Requests[AnyCall]):
    """One client's connection. ``leader`` returns the leader's address, empty if it is not known."""

    def __init__(
        self,
        connection: Connection,
        ledger: NodeLedger,
        replica: Replica,
        leader: Callable[[], str],
        operator: NodeAdmin,
    ) -> None:
        super().__init__(connection, requests_max=REQUESTS_PER_CONNECTION_MAX, who="the node")
        self._right = connection.right
        self._ledger = ledger
        self._driver, self._proposals, self._acceptors = replica.driver, replica.proposals, replica.acceptors
        self._leader = leader
        self._operator = operator
        self._backup = operator.backups.begin()
        self._answers: list[Answer] = []
        self._beating: asyncio.TimerHandle | None = None
        self.say(LeaderHint(ledger.ledger_id, ledger.leads, leader()))

    def read(self, payload: bytes) -> tuple[Sequence[Request[AnyCall]], Sequence[envelope.Failed]]:
        if message_count(payload) > REQUESTS_PER_CONNECTION_MAX:
            raise RemoteProtocolError(f"a frame of more than {REQUESTS_PER_CONNECTION_MAX} requests")
        refused: Sequence[envelope.Failed] = ()
        try:
            requests = messages.decode_requests(payload)
        except (ValueError, RecursionError):
            # One caller's mistake must not fail the others: all callers of a process share this connection.
            requests, refused = messages.decode_each(payload)
        if self.connection.version < VERSIONS.highest:
            self._check_versions(requests)
        if self._beating is None and requests:
            self._beating = self._loop.call_later(BEAT_S, self._beat)
        return requests, refused

    def begin(self, number: int, call: AnyCall) -> None:
        if self._right is not Right.OPERATE:
            check_right(call, self._right, self.connection.certificate)
        if isinstance(call, calls.DecideCall) and self._driver.leads:
            self._decide(number, call)
        elif isinstance(call, AcceptorCall):
            self._acceptors.ask(call.request, partial(self.answer, number))
        elif isinstance(call, StatusCall):
            self.answer(number, self._operator.status())
        elif isinstance(call, MoveCall):
            self.later(number, call, self._ledger.moving(call.command))
        elif isinstance(call, OperatorCall):
            self.later(number, call, self._operated(call))
        elif isinstance(call, LedgerCall):
            self.later(number, call, self._signed(call).serve(self._ledger, remote=True))

    def _signed(self, call: calls.AnyLedgerCall) -> calls.AnyLedgerCall:
        """Return ``call``; in an act, the certificate is replaced by the certificate of the connection."""
        if not isinstance(call, calls.RecordActCall):
            return call
        return calls.RecordActCall(msgspec.structs.replace(call.act, certificate=self.connection.certificate))

    def _decide(self, number: int, call: calls.DecideCall) -> None:
        command = self._ledger.decide_command(
            call.txid, call.decision, call.branches, call.protocol, call.cause
        )
        self._proposals.propose(command, partial(self.answer, number))

    def _check_versions(self, requests: Sequence[Request[AnyCall]]) -> None:
        spoken = self.connection.version
        for request in requests:
            if request.call.since() > spoken:
                raise RemoteProtocolError(f"{type(request.call).__name__} does not exist in version {spoken}")

    def lost(self, why: str) -> None:
        """End the connection. Requests that are being processed go on, since they may be half recorded; the
        client will repeat them."""
        if self._beating is not None:
            self._beating.cancel()
        self._backup.end()

    def _beat(self) -> None:
        """Send an empty frame to a client that waits; otherwise the client would look for another leader, and
        repeat its requests."""
        self._beating = None
        if self.unanswered:
            self.connection.send(envelope.encode([]))
            self._beating = self._loop.call_later(BEAT_S, self._beat)

    async def _operated(self, call: OperatorCall) -> object:
        """Execute an operator's call. Changes of the members and of the leader are recorded as acts, and so
        are backups, which contain the ledger's secret. An act that is repeated at another leader has the same
        id."""
        if not isinstance(call, ChangeMembersCall | TransferCall | BackupCall):
            return await self._operator.perform(call, self._backup)
        if isinstance(call, BackupCall) and call.offset:
            return await self._operator.perform(call, self._backup)
        act = call.act or Act(new_nonce(), _verb(call), _subject(call), self._ledger.now(), "")
        act = msgspec.structs.replace(act, certificate=self.connection.certificate)
        # A full disk takes no record, and a backup is needed most when the disk is full.
        async with acting(self._ledger, act, needed=not isinstance(call, BackupCall)):
            return await self._operator.perform(call, self._backup)

    def as_message(self, number: int, result: object) -> Answer:
        if isinstance(result, Decision):
            return envelope.Reply(number, _DECISIONS[result])
        if isinstance(result, NotLeading | NodeStopped):
            return Elsewhere(number, self._leader(), str(result))
        return super().as_message(number, result)

    def say(self, answer: Answer) -> None:
        if not self._answers:
            self._loop.call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        payload = envelope.encode(answers)
        if len(payload) < ANSWERS_BYTES_MAX:
            self.connection.send(payload)
            return
        for answer in answers:
            one = envelope.encode([answer])
            if len(one) >= ANSWERS_BYTES_MAX and isinstance(answer, envelope.Reply):
                why = LedgerUnavailable(f"an answer of {len(one)} bytes does not fit into a frame")
                one = envelope.encode([envelope.failed(answer.number, why)])
            self.connection.send(one)
