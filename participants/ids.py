"""The names of transactions and their branches.

``TxId`` names a transaction, ``Gid`` one branch of it as PostgreSQL knows it: the string given to
``PREPARE TRANSACTION`` (under 200 bytes, https://www.postgresql.org/docs/current/sql-prepare-transaction.html)::

    undoubt:<ledger id>:<protocol 2|3|p|l>:<session>-<nonce>.<seq>:<branch number>:<participant>:<tag>

A database may hold prepared transactions of any program, so parsing never raises: a string that is not a gid
of undoubt is a :class:`Foreign`.

A gid that parses proves nothing: every role that may connect to a database can prepare a transaction under
any name, and a gid is public from its PREPARE on. The tag is a keyed hash of everything before it.
:class:`SessionKey` makes tags; the process that opened the session has the key, and the ledger, which can
derive the key again, verifies the tags."""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace

import msgspec

from undoubt.participants.errors import UsageError

GID_BYTES_MAX = 199
"""Longest gid in bytes: PostgreSQL's GIDSIZE is 200 with its terminating zero (src/include/access/xact.h)."""

PARTICIPANT_NAME_BYTES_MAX = 63
"""Longest participant name in bytes; a gid with this name and the widest numbers still fits."""

NUMBER_MAX = 2**63 - 1
BRANCH_NUMBER_MAX = 9_999

_LEDGER_ID = r"[a-z0-9]{10}"
_NONCE = r"[0-9a-f]{16}"
_NUMBER = r"[1-9][0-9]{0,18}"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62})"
_TAG = r"[0-9a-f]{20}"

TAG_BYTES = 10
"""The size of a tag: 80 bits cannot be guessed by preparing transactions."""

_LEDGER_ID_RE = re.compile(_LEDGER_ID)
_TXID_RE = re.compile(rf"({_NUMBER})-({_NONCE})\.({_NUMBER})")
_NAME_RE = re.compile(_NAME)
_GID_RE = re.compile(
    rf"undoubt:({_LEDGER_ID}):([23pl]):({_NUMBER})-({_NONCE})\.({_NUMBER}):([1-9][0-9]{{0,3}}):({_NAME})"
    rf"(?::({_TAG}))?"
)


class Protocol(enum.StrEnum):
    """The commit protocol of a transaction; the value is its letter in a gid."""

    TWO_PHASE = "2"
    THREE_PHASE = "3"
    PAXOS = "p"
    LAST = "l"


class InvalidName(UsageError, ValueError):
    """A string cannot be a ledger id, a transaction id or a participant's name; the message says which and
    why."""


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

    Allowed are letters, digits, ``_``, ``.`` and ``-``, beginning with a letter, digit or ``_``; at most
    :data:`PARTICIPANT_NAME_BYTES_MAX` bytes, so that every gid with the name fits PostgreSQL's limit.
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
    """The id of a transaction: the session that began it, and its sequence number in that session.

    ``session`` and ``seq`` count from 1. ``nonce`` is random for each session, so that a restored ledger, a
    forked process or a cloned machine never uses the id of another transaction.
    """

    session: int
    nonce: str
    seq: int

    def __str__(self) -> str:
        return f"{self.session}-{self.nonce}.{self.seq}"

    @classmethod
    def of(cls, given: TxId | str) -> TxId:
        """``given`` itself, or the id that ``given`` is the text of. Raises :class:`InvalidName` on anything
        else. Functions that receive an id from an application call this first."""
        if isinstance(given, TxId):
            return given
        if not isinstance(given, str):
            raise InvalidName(f"not a transaction id: {given!r} (a TxId, or its text)")
        return cls.parse(given)

    @classmethod
    def parse(cls, text: str) -> TxId:
        """The id whose ``str()`` is ``text``; raises :class:`InvalidName` if there is none."""
        match = _TXID_RE.fullmatch(text)
        if match is None or int(match[1]) > NUMBER_MAX or int(match[3]) > NUMBER_MAX:
            raise InvalidName(f"not a transaction id: {text!r} (<session>-<nonce>.<seq>)")
        return cls(int(match[1]), match[2], int(match[3]))


@dataclass(frozen=True, slots=True)
class Foreign:
    """The name of a prepared transaction that is not a gid of undoubt. ``text`` is the whole name."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, order=True)
class Gid:
    """The name of one branch. ``branch`` counts from 1 within its transaction.

    ``tag`` is empty in sessions of a ledger that gives no keys (see :class:`SessionKey`).
    """

    ledger: str
    protocol: Protocol
    txid: TxId
    branch: int
    participant: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.head}:{self.tag}" if self.tag else self.head

    @property
    def head(self) -> str:
        """The gid without its tag; the tag is a hash of this text."""
        return f"undoubt:{self.ledger}:{self.protocol}:{self.txid}:{self.branch}:{self.participant}"

    def tagged(self, key: SessionKey) -> Gid:
        """This gid with the tag that ``key`` makes for it; without a tag if the key makes none."""
        return replace(self, tag=key.tag(self.head))

    @staticmethod
    def parse(text: str) -> Gid | Foreign:
        """A :class:`Gid` if ``text`` is the ``str()`` of a gid, else a :class:`Foreign`."""
        match = _GID_RE.fullmatch(text)
        if match is None or len(text) > GID_BYTES_MAX:
            return Foreign(text)
        session, seq = int(match[3]), int(match[5])
        if session > NUMBER_MAX or seq > NUMBER_MAX:
            return Foreign(text)
        txid = TxId(session, match[4], seq)
        return Gid(match[1], Protocol(match[2]), txid, int(match[6]), match[7], match[8] or "")


class SessionKey:
    """The secret of one ledger session, with which its coordinator proves that a gid is its own.

    Every use puts a different word before the text that is hashed (HMAC-SHA256), so that no hash serves two
    uses. The hashes of the empty key (:data:`NO_KEY`) are empty. A session whose ledger gives no key has a
    key that was :meth:`drawn`."""

    __slots__ = ("_given", "_key")

    def __init__(self, key: bytes, *, given: bool = True) -> None:
        self._key = key
        self._given = given and bool(key)

    @classmethod
    def drawn(cls) -> SessionKey:
        """A random key for the coordinator of a session whose ledger gives no key. The key makes proofs of
        commits, since no other process has to make the same proof; it makes no tags, since no ledger could
        verify them."""
        return cls(secrets.token_bytes(32), given=False)

    def __bool__(self) -> bool:
        """Whether the ledger can derive the key, and so can verify the tags that the key makes."""
        return self._given

    def __repr__(self) -> str:
        return "SessionKey(…)" if self._key else "NO_KEY"

    def tag(self, head: str) -> str:
        """The tag of a gid that begins with ``head``: 20 hexadecimal digits. Empty if the ledger gave no
        key."""
        return self._hash("tag", head)[:TAG_BYTES].hex() if self._given else ""

    def proof(self, gid: Gid) -> bytes:
        """32 bytes that only the coordinator of ``gid`` knows. If their hash was stored inside the branch and
        is visible, this branch has committed. Empty without a key."""
        return self._hash("commit", str(gid)) if self._key else b""

    def note(self, gid: Gid) -> bytes:
        """SHA-256 of :meth:`proof`, which may be public. Empty without a key."""
        return hashlib.sha256(self.proof(gid)).digest() if self._key else b""

    def backend(self, txid: TxId, pid: int) -> str:
        """Eight characters that prove that the database session with process id ``pid`` works in ``txid``;
        ``pid`` is 0 where a pooler hides the process. Empty if the ledger gave no key."""
        if not self._given:
            return ""
        return base64.urlsafe_b64encode(self._hash("backend", f"{pid} {txid}")[:6]).decode()

    def agent(self, txid: TxId) -> bytes:
        """32 bytes that only the coordinator of ``txid`` and the ledger know. Their hash is the primary key
        of the row, or of the tombstone, of ``txid`` at its agent
        (:mod:`undoubt.participants.last_agent`). Empty if the ledger gave no key."""
        return self._hash("agent", str(txid)) if self._given else b""

    def key_proof(self, txid: TxId, key: str) -> str:
        """20 hexadecimal digits that prove that the coordinator of ``txid`` wants the idempotency key
        ``key``. Empty if the ledger gave no key."""
        return self._hash("key", f"{txid} {key}")[:TAG_BYTES].hex() if self._given else ""

    def _hash(self, use: str, text: str) -> bytes:
        return hmac.digest(self._key, f"{use}\0{text}".encode(), hashlib.sha256)


NO_KEY = SessionKey(b"")
"""The key where there is no session: its hashes are empty and prove nothing."""
