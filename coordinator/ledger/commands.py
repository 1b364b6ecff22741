"""Every change of the ledger's state, as one closed union of values.

Whatever is not deterministic is inside the command: nonces are drawn, clocks are read, before it is logged.
Encoded they are msgpack arrays with a tag, so fields may be added at the end only, with a default. What is
added, a command or a field, gets its version in :func:`since`: a cluster's log holds nothing that is newer
than what all of its members have agreed to know.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from undoubt.coordinator.ledger.contract import Act, BranchRecord, Heuristic, is_newer
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, TxId


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
    protocol: str
    decision: Decision
    branches: tuple[BranchRecord, ...]
    at: float
    """Wall clock of who proposes, seconds since 1970; for people only."""
    cause: str = ""
    """Of ABORT: why, for people."""


class Precommit(_Command, frozen=True, tag="precommit"):
    """Three-phase commit: every branch has voted PREPARED. Decides nothing."""

    txid: TxId
    protocol: str
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
    """From here on commands are judged by rules ``rules`` (:mod:`undoubt.coordinator.ledger.bounds`), 1 so
    far."""

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
