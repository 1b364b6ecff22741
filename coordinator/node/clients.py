"""A client's connection to this node: requests in, answers out, many in a frame each way.

Decisions, which are most of what is asked, go straight into the log and come back as answers, without a task
of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable, NotPermitted
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.acting import acting
from undoubt.coordinator.ledger.cluster import messages, rights
from undoubt.coordinator.ledger.cluster.messages import (
    AcceptorCall,
    BackupCall,
    ChangeMembersCall,
    OperatorCall,
    StatusCall,
    TransferCall,
)
from undoubt.coordinator.ledger.contract import Act
from undoubt.coordinator.node.acceptors import NodeAcceptors
from undoubt.coordinator.node.admin import NodeAdmin
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.ledger import NodeLedger
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.envelope import Answer, Elsewhere, LeaderHint, Request
from undoubt.coordinator.wire import VERSIONS, Connection, RemoteProtocolError, Right
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import new_nonce

log = logging.getLogger(__name__)

REQUESTS_PER_CONNECTION_MAX = 100_000
"""More than that unanswered on one connection is a client gone wrong."""

BEAT_S = 0.3
ANSWERS_BYTES_MAX = 32 * 1024 * 1024
"""What is more than that does not leave in one frame."""

_raw = msgspec.msgpack.Encoder().encode
_DECISIONS = {decision: msgspec.Raw(_raw(decision)) for decision in Decision}


def _verb(call: ChangeMembersCall | TransferCall | BackupCall) -> str:
    if isinstance(call, TransferCall | BackupCall):
        return "cluster transfer" if isinstance(call, TransferCall) else "cluster backup"
    return "cluster " + " ".join(sorted({change.kind for change in call.changes}))


def _subject(call: ChangeMembersCall | TransferCall | BackupCall) -> str:
    if isinstance(call, BackupCall):
        return "the ledger"
    nodes = [call.to] if isinstance(call, TransferCall) else [change.node for change in call.changes]
    return "node " + " ".join(map(str, nodes))


class FromClient:
    """A Receiver. ``leader`` tells the leader's address, empty if it is not known."""

    def __init__(
        self,
        connection: Connection,
        ledger: NodeLedger,
        acceptors: NodeAcceptors,
        leader: Callable[[], str],
        operator: NodeAdmin,
    ) -> None:
        self._connection = connection
        self._right = connection.right
        self._ledger = ledger
        self._acceptors = acceptors
        self._leader = leader
        self._operator = operator
        self._backup = operator.backups.begin()
        self._loop = asyncio.get_running_loop()
        self._answers: list[Answer] = []
        self._unanswered = 0
        self._beating: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._say(LeaderHint(ledger.ledger_id, ledger.leads, leader()))

    def received(self, payload: bytes) -> None:
        refused: Sequence[envelope.Failed] = ()
        if envelope.size(payload) > REQUESTS_PER_CONNECTION_MAX:
            raise RemoteProtocolError(f"a frame of more than {REQUESTS_PER_CONNECTION_MAX} requests")
        try:
            requests = messages.decode_requests(payload)
        except (ValueError, RecursionError):
            # One caller's mistake: all of the client's process share this connection.
            requests, refused = messages.decode_each(payload)
        for answer in refused:
            self._say(answer)
        self._unanswered += len(requests)
        if self._beating is None and self._unanswered:
            self._beating = self._loop.call_later(BEAT_S, self._beat)
        if self._unanswered > REQUESTS_PER_CONNECTION_MAX:
            raise RemoteProtocolError(f"more than {REQUESTS_PER_CONNECTION_MAX} requests at once")
        if self._connection.version < VERSIONS.highest:
            self._check_versions(requests)
        for request in requests:
            try:
                if self._right is not Right.OPERATE:
                    rights.check(request.call, self._right, self._connection.certificate)
                self._begin(request)
            except NotPermitted as error:
                self._answer(request.number, error)
            except Exception as error:  # a bug of ours, met before anything was begun for this one
                log.exception("ledger call %s failed", type(request.call).__name__)
                self._answer(request.number, _unexpected(error))

    def _begin(self, request: Request[calls.Call | messages.NodeCall]) -> None:
        call = request.call
        if isinstance(call, calls.DecideCall) and self._ledger.leads:
            self._decide(request.number, call)
        elif isinstance(call, AcceptorCall):
            self._acceptors.ask(call.request, partial(self._answer, request.number))
        elif isinstance(call, StatusCall):
            self._answer(request.number, self._operator.status())
        else:
            task = self._loop.create_task(self._perform(request.number, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _decide(self, number: int, call: calls.DecideCall) -> None:
        try:
            command = self._ledger.decide_command(
                call.txid, call.decision, call.branches, call.protocol, call.cause
            )
        except UndoubtError as error:
            self._answer(number, error)
        else:
            self._ledger.submit(command, partial(self._answer, number))

    def _check_versions(self, requests: Sequence[Request[calls.Call | messages.NodeCall]]) -> None:
        spoken = self._connection.version
        for request in requests:
            if messages.since(request.call) > spoken:
                raise RemoteProtocolError(f"{type(request.call).__name__} is not of version {spoken}")

    def lost(self, why: str) -> None:
        """What was asked goes on: it may be half recorded, and whoever asked will ask again."""
        if self._beating is not None:
            self._beating.cancel()
        self._backup.end()

    def _beat(self) -> None:
        """A sign of life to a client that waits: else it would look for another leader, and ask again."""
        self._beating = None
        if self._unanswered:
            self._connection.send(envelope.encode([]))
            self._beating = self._loop.call_later(BEAT_S, self._beat)

    async def _perform(self, number: int, call: calls.Call | OperatorCall) -> None:
        try:
            if isinstance(call, OperatorCall):
                result: object = await self._operated(call)
            else:
                if isinstance(call, calls.RecordActCall):
                    act = msgspec.structs.replace(call.act, certificate=self._connection.certificate)
                    call = calls.RecordActCall(act)
                result = await calls.perform(self._ledger, call, remote=True)
        except UndoubtError as error:
            result = error
        except Exception as error:  # a bug of ours; the caller must hear something, and the node lives on
            log.exception("ledger call %s failed", type(call).__name__)
            result = _unexpected(error)
        self._answer(number, result)

    async def _operated(self, call: OperatorCall) -> object:
        """Changes of the members and of the leader are recorded, whoever asks, and so are backups, which hold
        the ledger's secret. Asked again at another leader, an act has the same id."""
        if not isinstance(call, ChangeMembersCall | TransferCall | BackupCall):
            return await self._operator.perform(call, self._backup)
        if isinstance(call, BackupCall) and call.offset:
            return await self._operator.perform(call, self._backup)
        act = call.act or Act(new_nonce(), _verb(call), _subject(call), self._ledger.now(), "")
        act = msgspec.structs.replace(act, certificate=self._connection.certificate)
        # A full disk takes no record, and is when a backup is wanted most.
        async with acting(self._ledger, act, needed=not isinstance(call, BackupCall)):
            return await self._operator.perform(call, self._backup)

    def _answer(self, number: int, result: object) -> None:
        self._unanswered -= 1
        if isinstance(result, Decision):
            self._say(envelope.Reply(number, _DECISIONS[result]))
        elif isinstance(result, NotLeading | NodeStopped):
            self._say(Elsewhere(number, self._leader(), str(result)))
        elif isinstance(result, UndoubtError):
            self._say(envelope.failed(number, result))
        else:
            self._say(envelope.Reply(number, msgspec.Raw(_raw(result))))

    def _say(self, answer: Answer) -> None:
        if not self._answers:
            self._loop.call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        payload = envelope.encode(answers)
        if len(payload) < ANSWERS_BYTES_MAX:
            self._connection.send(payload)
            return
        for answer in answers:
            one = envelope.encode([answer])
            if len(one) >= ANSWERS_BYTES_MAX and isinstance(answer, envelope.Reply):
                why = LedgerUnavailable(f"an answer of {len(one)} bytes does not fit into a frame")
                one = envelope.encode([envelope.failed(answer.number, why)])
            self._connection.send(one)


def _unexpected(error: Exception) -> LedgerUnavailable:
    """The answer to a call that an exception of no known kind ended. The connection's other callers hear
    theirs."""
    return LedgerUnavailable(f"the node failed: {type(error).__name__}: {error}")
