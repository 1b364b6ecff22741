"""Every change of the ledger's state, as one closed union of values.

Whatever is not deterministic is inside the command: nonces are drawn, clocks are read, before it is logged.
Encoded they are msgpack arrays with a tag, so fields may be added at the end only, with a default. What is
added, a command or a field, gets its version in :func:`since`: a cluster's log holds nothing that is newer
than what all of its members have agreed to know.

A command is judged whole, before it changes anything: what is out of its bounds is refused. Who proposes a
command and everybody who applies it judge alike. The machine judges by the rules that its own log has agreed
on (:class:`Judge`): what an older release has applied is applied again as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import msgspec

from undoubt.coordinator.ledger.contract import (
    ACT_CHARACTERS_MAX,
    CAUSE_CHARACTERS_MAX,
    Act,
    BranchRecord,
    Heuristic,
    is_newer,
)
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
    """Frozen values hold no cycles: the collector need not look at the many that are alive."""


class OpenSession(_Command, frozen=True, tag="open"):
    nonce: str
    name: str
    ttl_ms: int
    owner: str = ""
    """The process that owns the ledger and opened it for itself, or empty for one that must be renewed."""
    acceptors: tuple[int, ...] = ()
    """The cluster's voters, as far as that is committed, if it is to be bound to them."""
    tagged: bool = False
    """Its opener gets a key, and every gid of the session carries a tag."""


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
    """Wall clock of who proposes, seconds since 1970; for people only."""
    cause: str = ""
    """Of ABORT: why, for people."""


class Precommit(_Command, frozen=True, tag="precommit"):
    """Three-phase commit: every branch has voted PREPARED. Decides nothing."""

    txid: TxId
    protocol: Protocol
    branches: tuple[BranchRecord, ...]
    at: float
    """As of :class:`Decide`."""


class Finish(_Command, frozen=True, tag="finish"):
    txids: tuple[TxId, ...]


class RecordHeuristic(_Command, frozen=True, tag="heuristic"):
    heuristic: Heuristic
    final: bool = False
    """One that was forgotten stays so, whatever more is found of it."""


class ForgetHeuristic(_Command, frozen=True, tag="forget"):
    gid: Gid
    request: str = ""
    """Names the request: asked again, because an answer was lost, it is answered the same."""


class AdvanceTime(_Command, frozen=True, tag="time"):
    """Ledger time goes on by what a monotonic clock measured; sessions that are old enough are dropped."""

    elapsed_ms: int
    retention_ms: int


class Restore(_Command, frozen=True, tag="restore"):
    """The state comes from a backup: a new incarnation begins. Counters are raised past anything that may
    have been issued since, and past session ``issued``, which is known to have been."""

    session_skip: int
    issued: int = 0


class DrawSecret(_Command, frozen=True, tag="secret"):
    """The ledger's secret, from which the keys of its sessions are derived. The first one stays."""

    secret: bytes

    def __repr__(self) -> str:
        return "DrawSecret(…)"


class Doom(_Command, frozen=True, tag="doom"):
    """An undecided transaction was chosen to abort. Decides nothing: its coordinator learns ``cause``."""

    txid: TxId
    cause: str


class RecordAct(_Command, frozen=True, tag="act"):
    """What an operator does, or what came of it. Of all acts the newest ``keep`` are kept."""

    act: Act
    keep: int


class Judge(_Command, frozen=True, tag="judge"):
    """From here on commands are judged by rules ``rules`` (:func:`refusal`), 1 so far."""

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
)

FIRST_VERSION = 1
PAXOS_VERSION = 2
"""Paxos Commit: sessions that are bound to acceptors, outcomes that these have chosen."""
TAGS_VERSION = 3
"""The ledger's secret, tagged names, evidence that names a history, causes of aborts, acts of operators,
judged commands."""
RULES = 1
"""By which commands are judged when they are applied, from the first :class:`Judge` in the log on."""


def since(command: Command) -> int:  # noqa: PLR0911 - one line per kind of command
    """The version that whoever applies ``command``, as it is filled in, has to know."""
    match command:
        case DrawSecret() | Doom() | RecordAct() | Judge():
            return TAGS_VERSION
        case OpenSession():
            if command.tagged:
                return TAGS_VERSION
            return PAXOS_VERSION if command.acceptors else FIRST_VERSION
        case Decide() | Precommit():
            if (isinstance(command, Decide) and command.cause) or any(map(is_newer, command.branches)):
                return TAGS_VERSION
            return PAXOS_VERSION if command.protocol == Protocol.PAXOS else FIRST_VERSION
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
    """Raises ``UsageError`` for what cannot be encoded: a number of more than 64 bits, text that is no
    Unicode."""
    try:
        return _encoder.encode(command)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{type(command).__name__} holds what cannot be recorded: {error}") from error


def decode(data: bytes) -> Command:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` on anything that is no command."""
    return _decoder.decode(data)


# Bounds.

DURATION_MS_MAX = round(DURATION_S_MAX * 1000)
TIME_MS_MAX = 2**62
"""Of ledger time: with a retention added it fits the integers of a snapshot, and of SQLite."""
NAME_CHARACTERS_MAX = 1_000
NOTE_CHARACTERS_MAX = 10_000
EVIDENCE_CHARACTERS_MAX = 100
SECRET_BYTES = 32
LIMIT_MAX = 10_000
UNSIGNED_MAX = 2**64 - 1


class CommandRefused(UsageError):
    """A command is not within its bounds. It has changed nothing, on any node."""


def refusal(command: Command, state: LedgerState | None) -> CommandRefused | None:
    """Why ``command`` is refused; None if it is within its bounds. ``state`` None: as far as can be told
    without one."""
    why = _wrong(command) or (_wrong_in(command, state) if state is not None else "")
    return CommandRefused(f"{type(command).__name__} was refused: {why}") if why else None


def check_command(command: Command) -> None:
    """Before ``command`` is queued. Raises :class:`CommandRefused`."""
    if (refused := refusal(command, None)) is not None:
        raise refused


def check_given(command: Command) -> None:
    """The same of one whose fields come from a caller as they are: types too. Raises ``UsageError``."""
    try:
        decode(encode(command))
    except msgspec.MsgspecError as error:
        raise CommandRefused(f"{type(command).__name__} holds what no ledger takes: {error}") from error
    check_command(command)


def check_asked(txid: TxId | None) -> None:
    """Of a question that a file's or a database's integers have to hold. Raises :class:`CommandRefused`."""
    if txid is not None and (why := _transaction(txid)):
        raise CommandRefused(f"no ledger has such a transaction: {why}")


def check_limit(limit: int) -> None:
    """Of records in one answer. Raises ``UsageError``."""
    count("limit", limit, most=LIMIT_MAX)


def check_page(limit: int, after: TxId | None) -> None:
    """Raises ``UsageError``."""
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
            return "" if size == SECRET_BYTES else f"a secret of {size} bytes, {SECRET_BYTES} are needed"
        case Judge():
            return _number("rules", command.rules)
        case RecordAct():
            return _act(command.act) or _number("keep", command.keep)
        case Doom():
            return _transaction(command.txid) or _text("cause", command.cause, CAUSE_CHARACTERS_MAX)
        case _:
            assert_never(command)


def _wrong_in(command: Command, state: LedgerState) -> str:
    """Counters stay within what a snapshot holds."""
    if isinstance(command, AdvanceTime) and state.time_ms + command.elapsed_ms > TIME_MS_MAX:
        return f"ledger time would pass {TIME_MS_MAX} ms"
    if isinstance(command, OpenSession) and state.next_session >= NUMBER_MAX:
        return "there are no more numbers for sessions"
    if isinstance(command, Restore):
        following = max(state.next_session, command.issued + 1) + command.session_skip
        if following > NUMBER_MAX:
            return f"numbers of sessions would pass {NUMBER_MAX}"
    return ""


def _act(act: Act) -> str:
    texts = ("id", "verb", "subject", "who", "note", "result", "certificate")
    wrong = (_text(name, getattr(act, name), ACT_CHARACTERS_MAX) for name in texts)
    return _moment(act.at) or next(filter(None, wrong), "")


def _gid(gid: Gid) -> str:
    return _transaction(gid.txid) or ("" if Gid.parse(str(gid)) == gid else "a gid that none can be")


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


def _number(name: str, value: int, *, least: int = 1, most: int = NUMBER_MAX) -> str:
    return "" if least <= value <= most else f"{name} must be {least} to {most}"


def _moment(at: float) -> str:
    return "" if math.isfinite(at) else "a time that is not finite"


def _text(name: str, text: str, most: int) -> str:
    return "" if len(text) <= most else f"{name} of {len(text)} characters, {most} are the most"
