"""All changes of the ledger's state, as one closed union of values.

All values that are not deterministic are part of the command: nonces are drawn and clocks are read before the
command is logged. A command is encoded as a tagged msgpack array, so fields may be added only at the end,
with a default. A new command or field gets its version in :func:`since`: a cluster's log never contains a
command of a newer version than its members have agreed on.

A command is checked as a whole before it changes anything, and refused if a field is out of bounds. The
process that proposes a command and all processes that apply it make the same checks. The machine checks by
the rules that its own log has agreed on (:class:`Judge`), so a command that an older release has applied is
applied again with the same result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import msgspec

from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import (
    ACT_CHARACTERS_MAX,
    CAUSE_CHARACTERS_MAX,
    Act,
    BranchRecord,
    Heuristic,
    is_newer,
)
from undoubt.coordinator.ledger.keys import wrong_key, wrong_result
from undoubt.coordinator.ledger.lock_queue import TOKEN_MAX, name_fault
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase
from undoubt.coordinator.ledger.state import LedgerState
from undoubt.participants.bounds import DURATION_S_MAX, count
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import (
    BRANCH_NUMBER_MAX,
    NUMBER_MAX,
    PARTICIPANT_NAME_BYTES_MAX,
    Gid,
    Protocol,
    TxId,
)


class _Command(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all commands. ``gc=False``: frozen values have no cycles, so the garbage collector need not
    visit them."""


class OpenSession(_Command, frozen=True, tag="open"):
    nonce: str
    name: str
    ttl_ms: int
    owner: str = ""
    """The process that owns the ledger, if it opened the session for itself; empty for another process, which
    must renew the session."""
    acceptors: tuple[int, ...] = ()
    """The voters of the cluster's committed configuration, if the session is bound to acceptors."""
    tagged: bool = False
    """Whether the opener gets a key and all gids of the session have a tag."""
    agent: AgentBinding | None = None
    """The agent to which the session is bound, if it is."""


class KeepAlive(_Command, frozen=True, tag="alive"):
    session: int
    nonce: str
    floor: int


class CloseSession(_Command, frozen=True, tag="close"):
    session: int
    nonce: str


class ExpireSession(_Command, frozen=True, tag="expire"):
    session: int


class Decide(_Command, frozen=True, tag="decide"):
    txid: TxId
    protocol: Protocol
    decision: Decision
    branches: tuple[BranchRecord, ...]
    at: float
    """The wall clock of the proposing process, in seconds since 1970; for operators only."""
    cause: str = ""
    """The reason of an ABORT, as text for operators."""


class Precommit(_Command, frozen=True, tag="precommit"):
    """Three-phase commit: all branches have voted PREPARED. Decides nothing."""

    txid: TxId
    protocol: Protocol
    branches: tuple[BranchRecord, ...]
    at: float
    """As in :class:`Decide`."""


class Finish(_Command, frozen=True, tag="finish"):
    txids: tuple[TxId, ...]


class RecordHeuristic(_Command, frozen=True, tag="heuristic"):
    heuristic: Heuristic
    final: bool = False
    """Whether a forgotten heuristic stays forgotten if more becomes known about it."""


class ForgetHeuristic(_Command, frozen=True, tag="forget"):
    gid: Gid
    request: str = ""
    """An id of the request: if it is repeated because its answer was lost, the result is the same."""


class AdvanceTime(_Command, frozen=True, tag="time"):
    """Ledger time advances by the time that a monotonic clock measured; sessions that were closed longer than
    the retention ago are dropped."""

    elapsed_ms: int
    retention_ms: int


class Restore(_Command, frozen=True, tag="restore"):
    """The state comes from a backup: a new incarnation begins. The counter of sessions is raised above all
    numbers that may have been issued since the backup, and above session ``issued``, which was issued."""

    session_skip: int
    issued: int = 0


class DrawSecret(_Command, frozen=True, tag="secret"):
    """The ledger's secret, from which the keys of its sessions are derived. A second secret is ignored."""

    secret: bytes

    def __repr__(self) -> str:
        return "DrawSecret(…)"


class Doom(_Command, frozen=True, tag="doom"):
    """An undecided transaction was chosen to abort. Decides nothing: ``cause`` is for its coordinator."""

    txid: TxId
    cause: str


class RecordAct(_Command, frozen=True, tag="act"):
    """An act of an operator, or the result of an act. Only the newest ``keep`` acts are kept."""

    act: Act
    keep: int


class ClaimKey(_Command, frozen=True, tag="claim key"):
    """An undecided transaction wants an idempotency key, which no other transaction must have then."""

    txid: TxId
    key: str


class CommitKey(_Command, frozen=True, tag="commit key"):
    """COMMIT of a transaction of two-phase commit, the key that it has claimed, and its encoded result."""

    txid: TxId
    key: str
    result: bytes
    branches: tuple[BranchRecord, ...]
    at: float
    """As in :class:`Decide`."""


class FreeKey(_Command, frozen=True, tag="free key"):
    """ABORT of a transaction that has claimed a key and has no prepared branch; frees the key."""

    txid: TxId
    key: str


class AskLock(_Command, frozen=True, tag="lock"):
    """Ask for a lock. Without ``wait`` nothing is recorded unless it is granted at once."""

    request: LockRequest
    wait: bool


class EndLock(_Command, frozen=True, tag="unlock"):
    """The session of ``request`` ends it, whether or not it was granted."""

    request: LockRequest


class RevokeLock(_Command, frozen=True, tag="revoke"):
    """An operator ends a granted request."""

    name: str
    token: int


class SealLedger(_Command, frozen=True, tag="seal"):
    """The ledger is being moved away: from this entry on it records and answers nothing here. Refused while a
    session is open. Settled by :class:`SettleMove`."""

    move: MoveMark


class SettleMove(_Command, frozen=True, tag="settle move"):
    """The move ``move`` enters ``phase``: *moved* at the old place, *arrived* at the new one. ``phase`` None:
    the move is undone at the old place, unless it is *moved* there."""

    move: str
    phase: MovePhase | None


class ReceiveState(_Command, frozen=True, tag="receive"):
    """A piece of the state of ledger ``ledger_id``, which is being moved here; ``number`` counts the pieces
    from 0. With the last piece comes ``digest``, the SHA-256 of all pieces together, in hexadecimal: then
    they replace the state. Refused unless the ledger here is unused, or was moved away itself."""

    move: MoveMark
    ledger_id: str
    number: int
    data: bytes
    digest: str = ""


class Judge(_Command, frozen=True, tag="judge"):
    """From this entry on commands are checked by version ``rules`` of the rules (:func:`refusal`). There is
    only version 1."""

    rules: int


Command = (
    OpenSession
    | KeepAlive
    | CloseSession
    | ExpireSession
    | Decide
    | Precommit
    | Finish
    | RecordHeuristic
    | ForgetHeuristic
    | AdvanceTime
    | Restore
    | DrawSecret
    | Doom
    | RecordAct
    | Judge
    | ClaimKey
    | CommitKey
    | FreeKey
    | AskLock
    | EndLock
    | RevokeLock
    | SealLedger
    | SettleMove
    | ReceiveState
)

MovingCommand = SealLedger | SettleMove | ReceiveState
"""The commands of a move: all that a ledger accepts which does not live at its place."""

FIRST_VERSION = 1
PAXOS_VERSION = 2
"""Paxos Commit: sessions that are bound to acceptors, and outcomes that acceptors have chosen."""
TAGS_VERSION = 3
"""The ledger's secret, tagged names, evidence that names a history, causes of aborts, acts of operators,
checked commands, idempotency keys, locks."""
RULES = 1
"""The version of the rules by which commands are checked when they are applied, after the first
:class:`Judge` in the log."""


_PROTOCOLS_SINCE = {Protocol.PAXOS: PAXOS_VERSION, Protocol.LAST: TAGS_VERSION}


def since_protocol(protocol: Protocol) -> int:
    """The lowest version in which a process knows ``protocol``: others would take its letter for an error, or
    its branches for branches of another program."""
    return _PROTOCOLS_SINCE.get(protocol, FIRST_VERSION)


def since(command: Command) -> int:  # noqa: PLR0911 - one line per kind of command
    """The lowest version in which a process can apply ``command`` with these fields."""
    match command:
        case DrawSecret() | Doom() | RecordAct() | Judge() | ClaimKey() | CommitKey() | FreeKey():
            return TAGS_VERSION
        case AskLock() | EndLock() | RevokeLock() | SealLedger() | SettleMove() | ReceiveState():
            return TAGS_VERSION
        case OpenSession():
            if command.tagged or command.agent is not None:
                return TAGS_VERSION
            return PAXOS_VERSION if command.acceptors else FIRST_VERSION
        case Decide() | Precommit():
            if (isinstance(command, Decide) and command.cause) or any(map(is_newer, command.branches)):
                return TAGS_VERSION
            return since_protocol(command.protocol)
        case RecordHeuristic():
            return TAGS_VERSION if command.final else FIRST_VERSION
        case Restore():
            return TAGS_VERSION if command.issued else FIRST_VERSION
        case KeepAlive() | CloseSession() | ExpireSession() | Finish() | ForgetHeuristic() | AdvanceTime():
            return FIRST_VERSION
        case _:
            assert_never(command)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def encode(command: Command) -> bytes:
    """``command`` as msgpack. Raises ``UsageError`` if it cannot be encoded: a number of more than 64 bits,
    text that is not valid Unicode."""
    try:
        return _encoder.encode(command)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{type(command).__name__} has a field that cannot be recorded: {error}") from error


def decode(data: bytes) -> Command:
    """The command in ``data``. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` if there is
    none."""
    return _decoder.decode(data)


# Bounds.

DURATION_MS_MAX = round(DURATION_S_MAX * 1000)
TIME_MS_MAX = 2**62
"""The bound of ledger time: with a retention added it fits the integers of a snapshot and of SQLite."""
NAME_CHARACTERS_MAX = 1_000
NOTE_CHARACTERS_MAX = 10_000
EVIDENCE_CHARACTERS_MAX = 100
SECRET_BYTES = 32
LIMIT_MAX = 10_000
UNSIGNED_MAX = 2**64 - 1


class CommandRefused(UsageError):
    """A field of a command is out of bounds. The command has changed nothing on any node."""


def refusal(command: Command, state: LedgerState | None) -> CommandRefused | None:
    """The error for ``command``; None if it is within its bounds. With ``state`` None, bounds that depend on
    the state are not checked."""
    why = _wrong(command) or (_wrong_in(command, state) if state is not None else "")
    return CommandRefused(f"{type(command).__name__} was refused: {why}") if why else None


def check_command(command: Command) -> None:
    """Check ``command`` before it is queued. Raises :class:`CommandRefused`."""
    if (refused := refusal(command, None)) is not None:
        raise refused


def check_given(command: Command) -> None:
    """Check a command whose fields come unchecked from a caller: bounds and types. Raises ``UsageError``."""
    try:
        decode(encode(command))
    except msgspec.MsgspecError as error:
        raise CommandRefused(
            f"{type(command).__name__} has a field that no ledger accepts: {error}"
        ) from error
    check_command(command)


def check_asked(txid: TxId | None) -> None:
    """Check a ``txid`` in a query: its numbers have to fit the integers of SQLite and PostgreSQL. Raises
    :class:`CommandRefused`."""
    if txid is not None and (why := _transaction(txid)):
        raise CommandRefused(f"no ledger has such a transaction: {why}")


def check_key(key: str) -> None:
    """Check a ``key`` in a query. Raises :class:`CommandRefused`."""
    if why := wrong_key(key):
        raise CommandRefused(f"no ledger has such a key: {why}")


def check_limit(limit: int) -> None:
    """Check the number of records in one answer. Raises ``UsageError``."""
    count("limit", limit, most=LIMIT_MAX)


def check_page(limit: int, after: TxId | None) -> None:
    """Check the arguments for one page. Raises ``UsageError``."""
    count("limit", limit, least=1, most=LIMIT_MAX)
    check_asked(after)


def _wrong(command: Command) -> str:  # noqa: PLR0911, PLR0912 - one line per kind of command
    match command:
        case Decide():
            return (
                _transaction(command.txid)
                or _branches(command.branches)
                or _moment(command.at)
                or _text("cause", command.cause, CAUSE_CHARACTERS_MAX)
            )
        case Precommit():
            return _transaction(command.txid) or _branches(command.branches) or _moment(command.at)
        case Finish():
            return next(filter(None, map(_transaction, command.txids)), "")
        case KeepAlive():
            return _number("session", command.session) or _number("floor", command.floor, least=0)
        case OpenSession():
            return (
                _number("ttl_ms", command.ttl_ms, most=DURATION_MS_MAX)
                or _text("name", command.name, NAME_CHARACTERS_MAX)
                or next(filter(None, (_number("acceptor", node) for node in command.acceptors)), "")
                or ("" if command.agent is None else _agent(command.agent))
            )
        case CloseSession() | ExpireSession():
            return _number("session", command.session)
        case RecordHeuristic(heuristic=heuristic):
            return (
                _gid(heuristic.gid)
                or _moment(heuristic.found_at)
                or _text("note", heuristic.note, NOTE_CHARACTERS_MAX)
            )
        case ForgetHeuristic():
            return _gid(command.gid) or _text("request", command.request, NAME_CHARACTERS_MAX)
        case AdvanceTime():
            elapsed = _number("elapsed_ms", command.elapsed_ms, least=-DURATION_MS_MAX, most=DURATION_MS_MAX)
            return elapsed or _number("retention_ms", command.retention_ms, least=0, most=DURATION_MS_MAX)
        case Restore():
            skip = _number("session_skip", command.session_skip, least=0)
            return skip or _number("issued", command.issued, least=0)
        case DrawSecret():
            size = len(command.secret)
            return "" if size == SECRET_BYTES else f"a secret of {size} bytes; it must have {SECRET_BYTES}"
        case Judge():
            return _number("rules", command.rules)
        case RecordAct():
            return _act(command.act) or _number("keep", command.keep)
        case Doom():
            return _transaction(command.txid) or _text("cause", command.cause, CAUSE_CHARACTERS_MAX)
        case ClaimKey() | FreeKey():
            return _transaction(command.txid) or wrong_key(command.key)
        case CommitKey():
            return (
                _transaction(command.txid)
                or wrong_key(command.key)
                or wrong_result(command.result)
                or _branches(command.branches)
                or _moment(command.at)
            )
        case AskLock() | EndLock():
            return _lock_request(command.request)
        case RevokeLock():
            return name_fault(command.name) or _number("token", command.token)
        case SealLedger() | SettleMove() | ReceiveState():
            return _moving(command)
        case _:
            assert_never(command)


def _wrong_in(command: Command, state: LedgerState) -> str:
    """Why ``command`` would raise a counter above what a snapshot can store; empty if it would not."""
    if isinstance(command, AdvanceTime) and state.time_ms + command.elapsed_ms > TIME_MS_MAX:
        return f"ledger time would pass {TIME_MS_MAX} ms"
    if isinstance(command, OpenSession) and state.next_session >= NUMBER_MAX:
        return "there are no more numbers for sessions"
    if isinstance(command, Restore):
        following = max(state.next_session, command.issued + 1) + command.session_skip
        if following > NUMBER_MAX:
            return f"numbers of sessions would pass {NUMBER_MAX}"
    if isinstance(command, AskLock) and state.locks.next_token >= TOKEN_MAX:
        return "there are no more tokens for locks"
    return ""


def _lock_request(request: LockRequest) -> str:
    return (
        name_fault(request.name)
        or _number("session", request.session)
        or _number("number", request.number)
        or _text("nonce", request.nonce, NAME_CHARACTERS_MAX)
        or _moment(request.at)
        or (_transaction(request.txid) if request.txid is not None else "")
    )


def _moving(command: MovingCommand) -> str:
    match command:
        case SealLedger():
            return _move(command.move, MovePhase.SEALED)
        case SettleMove():
            return _text("move", command.move, NAME_CHARACTERS_MAX)
        case ReceiveState():
            return (
                _move(command.move, MovePhase.ARRIVING)
                or _text("ledger_id", command.ledger_id, NAME_CHARACTERS_MAX)
                or _number("number", command.number, least=0)
                or _text("digest", command.digest, EVIDENCE_CHARACTERS_MAX)
            )


def _move(mark: MoveMark, phase: MovePhase) -> str:
    if mark.phase is not phase:
        return f"a move that is {mark.phase}; it must be {phase}"
    return (
        _text("id of a move", mark.id, NAME_CHARACTERS_MAX)
        or _text("place", mark.place, NOTE_CHARACTERS_MAX)
        or _moment(mark.at)
    )


def _act(act: Act) -> str:
    texts = ("id", "verb", "subject", "who", "note", "result", "certificate")
    wrong = (_text(name, getattr(act, name), ACT_CHARACTERS_MAX) for name in texts)
    return _moment(act.at) or next(filter(None, wrong), "")


def _gid(gid: Gid) -> str:
    return _transaction(gid.txid) or ("" if Gid.parse(str(gid)) == gid else "not a valid gid")


def _transaction(txid: TxId) -> str:
    return _number("session", txid.session) or _number("seq", txid.seq)


def _branches(branches: Iterable[BranchRecord]) -> str:
    for branch in branches:
        numbers = (branch.xid, branch.system, branch.position)
        texts = (branch.tag, branch.timeline or "", branch.history or "")
        if not 1 <= branch.number <= BRANCH_NUMBER_MAX:
            return f"number of a branch must be 1 to {BRANCH_NUMBER_MAX}"
        if len(branch.participant) > PARTICIPANT_NAME_BYTES_MAX:
            return _text("participant", branch.participant, PARTICIPANT_NAME_BYTES_MAX)
        if any(number is not None and not 0 <= number <= UNSIGNED_MAX for number in numbers):
            return f"xid, system and position of a branch must be 0 to {UNSIGNED_MAX}"
        if max(map(len, texts)) > EVIDENCE_CHARACTERS_MAX:
            return f"tag, timeline and history of a branch have {EVIDENCE_CHARACTERS_MAX} characters at most"
    return ""


def _agent(agent: AgentBinding) -> str:
    if agent.system is not None and not 0 <= agent.system <= UNSIGNED_MAX:
        return f"system of an agent must be 0 to {UNSIGNED_MAX}"
    return _text("agent", agent.participant, PARTICIPANT_NAME_BYTES_MAX) or _text(
        "history of an agent", agent.history, EVIDENCE_CHARACTERS_MAX
    )


def _number(name: str, value: int, *, least: int = 1, most: int = NUMBER_MAX) -> str:
    return "" if least <= value <= most else f"{name} must be {least} to {most}"


def _moment(at: float) -> str:
    return "" if math.isfinite(at) else "a time that is not finite"


def _text(name: str, text: str, most: int) -> str:
    return "" if len(text) <= most else f"{name} of {len(text)} characters; the limit is {most}"
