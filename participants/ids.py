"""The names of things: transactions and their branches.

``TxId`` names a transaction, ``Gid`` one branch of it as PostgreSQL knows it: the string given to
``PREPARE TRANSACTION`` (under 200 bytes, https://www.postgresql.org/docs/current/sql-prepare-transaction.html)::

    undoubt:<ledger id>:<protocol 2|3|p>:<session>-<nonce>.<seq>:<branch number>:<participant>

A database may hold prepared transactions of anybody, so parsing never raises: a string that is not
ours is a :class:`Foreign`, a value like any other.
"""

from __future__ import annotations

import enum
import re
import secrets
from dataclasses import dataclass

import msgspec

GID_BYTES_MAX = 199
"""Longest gid in bytes: PostgreSQL's GIDSIZE is 200 with its terminating zero (src/include/access/xact.h)."""

PARTICIPANT_NAME_BYTES_MAX = 63
"""Longest participant name in bytes; together with the widest numbers a gid still fits."""

NUMBER_MAX = 2**63 - 1
BRANCH_NUMBER_MAX = 9_999

_LEDGER_ID = r"[a-z0-9]{10}"
_NONCE = r"[0-9a-f]{16}"
_NUMBER = r"[1-9][0-9]{0,18}"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62})"

_LEDGER_ID_RE = re.compile(_LEDGER_ID)
_TXID_RE = re.compile(rf"({_NUMBER})-({_NONCE})\.({_NUMBER})")
_NAME_RE = re.compile(_NAME)
_GID_RE = re.compile(
    rf"undoubt:({_LEDGER_ID}):([23p]):({_NUMBER})-({_NONCE})\.({_NUMBER}):([1-9][0-9]{{0,3}}):({_NAME})"
)


class Protocol(enum.StrEnum):
    """How a transaction ends; the value is its letter in a gid."""

    TWO_PHASE = "2"
    THREE_PHASE = "3"
    PAXOS = "p"


class InvalidName(ValueError):
    """A string that cannot be a ledger id, a transaction id or a participant's name; says which and why."""


def new_ledger_id() -> str:
    """Ten random characters ``a-z0-9`` (51 bits), drawn once per ledger."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(10))


def new_nonce() -> str:
    """Sixteen random hexadecimal characters (64 bits), drawn once per session."""
    return secrets.token_hex(8)


def check_ledger_id(text: str) -> str:
    """Return ``text`` if it can be a ledger id, else raise :class:`InvalidName`."""
    if not _LEDGER_ID_RE.fullmatch(text):
        raise InvalidName(f"not a ledger id: {text!r} (ten characters of a-z and 0-9)")
    return text


def check_participant_name(text: str) -> str:
    """Return ``text`` if it can name a participant, else raise :class:`InvalidName`.

    Letters, digits, ``_``, ``.`` and ``-``, beginning with a letter, digit or ``_``; at most
    :data:`PARTICIPANT_NAME_BYTES_MAX` bytes, so that every gid made of it fits PostgreSQL's limit.
    """
    if len(text.encode()) > PARTICIPANT_NAME_BYTES_MAX:
        raise InvalidName(
            f"participant name too long: {text!r} has {len(text.encode())} bytes,"
            f" at most {PARTICIPANT_NAME_BYTES_MAX} fit into a gid; choose a shorter name"
        )
    if not _NAME_RE.fullmatch(text):
        raise InvalidName(
            f"not a participant name: {text!r} (letters, digits, '_', '.' and '-',"
            " beginning with a letter, a digit or '_')"
        )
    return text


class TxId(msgspec.Struct, frozen=True, order=True, gc=False):
    """A transaction: the session that began it and its sequence number there.

    ``session`` and ``seq`` count from 1. ``nonce`` is the session's and random, so that neither a
    restored ledger nor a forked process nor a cloned machine can speak for another's transaction.
    """

    session: int
    nonce: str
    seq: int

    def __str__(self) -> str:
        return f"{self.session}-{self.nonce}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> TxId:
        """The inverse of ``str()``; raises :class:`InvalidName` on anything else."""
        match = _TXID_RE.fullmatch(text)
        if match is None or int(match[1]) > NUMBER_MAX or int(match[3]) > NUMBER_MAX:
            raise InvalidName(f"not a transaction id: {text!r} (<session>-<nonce>.<seq>)")
        return cls(int(match[1]), match[2], int(match[3]))


@dataclass(frozen=True, slots=True)
class Foreign:
    """A prepared transaction's name that no undoubt wrote. ``text`` is the whole of it."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, order=True)
class Gid:
    """One branch. ``branch`` counts from 1 within its transaction."""

    ledger: str
    protocol: Protocol
    txid: TxId
    branch: int
    participant: str

    def __str__(self) -> str:
        return f"undoubt:{self.ledger}:{self.protocol}:{self.txid}:{self.branch}:{self.participant}"

    @staticmethod
    def parse(text: str) -> Gid | Foreign:
        """A :class:`Gid` if ``text`` is exactly what ``str()`` of one gives, else :class:`Foreign`."""
        match = _GID_RE.fullmatch(text)
        if match is None or len(text) > GID_BYTES_MAX:
            return Foreign(text)
        session, seq = int(match[3]), int(match[5])
        if session > NUMBER_MAX or seq > NUMBER_MAX:
            return Foreign(text)
        return Gid(match[1], Protocol(match[2]), TxId(session, match[4], seq), int(match[6]), match[7])
