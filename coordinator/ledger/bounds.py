"""Whether a command is within its bounds: judged whole, before it changes anything.

Pure, so that whoever proposes a command and everybody who applies it judge alike. The machine judges by the
rules that its own log has agreed on (:class:`~undoubt.coordinator.ledger.commands.Judge`): what an older
release has applied is applied again as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import assert_never

import msgspec

from undoubt.coordinator.ledger.commands import (
    AdvanceTime,
    CloseSession,
    Command,
    Decide,
    Doom,
    DrawSecret,
    ExpireSession,
    Finish,
    ForgetHeuristic,
    Judge,
    KeepAlive,
    OpenSession,
    Precommit,
    RecordAct,
    RecordHeuristic,
    Restore,
    decode,
    encode,
)
from undoubt.coordinator.ledger.contract import ACT_CHARACTERS_MAX, CAUSE_CHARACTERS_MAX, Act, BranchRecord
from undoubt.coordinator.ledger.state import LedgerState
from undoubt.participants.bounds import DURATION_S_MAX, count
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import BRANCH_NUMBER_MAX, NUMBER_MAX, PARTICIPANT_NAME_BYTES_MAX, Gid, TxId

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


def check(command: Command) -> None:
    """Before ``command`` is queued. Raises :class:`CommandRefused`."""
    if (refused := refusal(command, None)) is not None:
        raise refused


def check_given(command: Command) -> None:
    """The same of one whose fields come from a caller as they are: types too. Raises ``UsageError``."""
    try:
        decode(encode(command))
    except msgspec.MsgspecError as error:
        raise CommandRefused(f"{type(command).__name__} holds what no ledger takes: {error}") from error
    check(command)


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
