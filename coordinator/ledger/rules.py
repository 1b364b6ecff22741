"""The rules of all backends: which names a ledger has given, and the answers that follow from the records.

A session's key is HMAC-SHA256(secret, session id and nonce). Only the process that opened the session gets
it; the ledger derives it again to verify a tag. So the ledger stores one secret and no keys, and recognizes
its own names even of sessions that it has dropped.

Arguments: ``state`` and ``floor`` are those of the transaction's session; ``recorded`` is the transaction's
decision, None if there is none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import attrgetter

from undoubt.coordinator.errors import Impostor
from undoubt.coordinator.ledger.agents import AgentBinding, AgentKey
from undoubt.coordinator.ledger.commands import SECRET_BYTES
from undoubt.coordinator.ledger.contract import TERMINATES_BY_ITSELF, BranchRecord, SessionState, Verdict
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey, TxId

_NUMBER = attrgetter("number")


def sorted_branches(branches: Iterable[BranchRecord]) -> list[BranchRecord]:
    return sorted(branches, key=_NUMBER)


def labels(branches: Iterable[BranchRecord]) -> list[str]:
    """A list of branches in the form in which lists are compared: number and participant."""
    return [f"{branch.number}:{branch.participant}" for branch in sorted_branches(branches)]


def agrees(asked: Decision, given: Sequence[str], recorded: Decision, known: Sequence[str]) -> bool:
    """Whether ``recorded``, with the branches ``known``, may be answered to a caller with the branches
    ``given``.

    A recorded ABORT is answered for any list: it may have been recorded by a process that knew only some
    branches, and it can never cause a commit. A caller that asks for ABORT may know only some branches.
    """
    if recorded is Decision.ABORT:
        return True
    return set(given) <= set(known) if asked is Decision.ABORT else list(given) == list(known)


def verdict_of(  # noqa: PLR0911 - one line per rule
    recorded: Decision | None, state: SessionState | None, floor: int, seq: int, protocol: Protocol | None
) -> Verdict:
    """The verdict for recovery on a transaction with a prepared branch. ``state`` is None if the session does
    not exist, was dropped, or has another nonce."""
    if state is None:
        return Verdict.ASK_PROTOCOL if protocol in TERMINATES_BY_ITSELF else Verdict.FORGOTTEN
    if recorded is not None:
        return Verdict.COMMITTED if recorded is Decision.COMMIT else Verdict.ABORTED
    if protocol in TERMINATES_BY_ITSELF:
        return Verdict.ASK_PROTOCOL
    if seq < floor:
        # Also for a restored session: below the floor nothing was undecided at the backup, nor has been
        # since.
        return Verdict.ABORTED
    match state:
        case SessionState.OPEN:
            return Verdict.ACTIVE
        case SessionState.RESTORED:
            return Verdict.FORGOTTEN
        case SessionState.CLOSED | SessionState.EXPIRED:
            return Verdict.ABORTED


# Names.

KEYS_MAX = 4_096
"""Most sessions whose derived keys are cached."""

_PROTOCOLS = list(Protocol)


def new_secret() -> bytes:
    """256 random bits, drawn once per ledger."""
    return secrets.token_bytes(SECRET_BYTES)


def new_request() -> str:
    """128 random bits in hexadecimal: the secret id of a request to open a session. The session's nonce is
    derived from it (:func:`nonce_of`). The nonce is public from the first PREPARE on; only the opener and the
    ledger see the request."""
    return secrets.token_hex(16)


def nonce_of(request: str) -> str:
    """The nonce of the session that ``request`` opens. A request cannot be found from a nonce."""
    return hashlib.sha256(f"nonce\0{request}".encode()).hexdigest()[:16]


def _equal(expected: str, given: str) -> bool:
    """As ``hmac.compare_digest``, which raises for text that is not ASCII; ``given`` may be any text."""
    return hmac.compare_digest(expected.encode(), given.encode(errors="surrogatepass"))


class Names:
    """The names that one ledger gives. ``secret`` is empty if the ledger gives no tags yet."""

    def __init__(self, ledger_id: str, secret: bytes) -> None:
        self.ledger_id = ledger_id
        self.secret = secret
        self._key = lru_cache(KEYS_MAX)(self._derived)

    def key(self, session: int, nonce: str) -> SessionKey:
        """The key of a session, whether or not the session was ever opened."""
        return self._key(session, nonce)

    def _derived(self, session: int, nonce: str) -> SessionKey:
        if not self.secret:
            return NO_KEY
        return SessionKey(self.key_bytes(session, nonce))

    def key_bytes(self, session: int, nonce: str) -> bytes:
        """The bytes of the session's :class:`~undoubt.participants.ids.SessionKey`; empty without a
        secret."""
        if not self.secret:
            return b""
        return hmac.digest(self.secret, f"session\0{session}-{nonce}".encode(), hashlib.sha256)

    def gave(self, gid: Gid) -> bool:
        """Whether this ledger gave the name ``gid``: the ledger id is its own, and the tag is right."""
        expected = self.key(gid.txid.session, gid.txid.nonce).tag(gid.head)
        ours = gid.ledger == self.ledger_id
        return ours and bool(expected) and _equal(expected, gid.tag)

    def proved(self, claim: Claim, nonce: str) -> TxId | None:
        """The transaction of ``claim`` if its proof is right, otherwise None. ``nonce`` is the nonce of the
        session that the claim names."""
        txid = TxId(claim.session, nonce, claim.seq)
        expected = self.key(claim.session, nonce).backend(txid, claim.pid)
        return txid if expected and _equal(expected, claim.proof) else None

    def agent_key(self, txid: TxId, binding: AgentBinding | None) -> AgentKey | None:
        """The key of the row of ``txid`` at its agent; None without a ``binding``, or without a secret."""
        proof = self.key(txid.session, txid.nonce).agent(txid)
        return AgentKey(binding, proof) if proof and binding is not None else None

    def proves_key(self, txid: TxId, key: str, proof: str) -> bool:
        """Whether ``proof`` shows that the coordinator of ``txid`` wants the idempotency key ``key``."""
        expected = self.key(txid.session, txid.nonce).key_proof(txid, key)
        return bool(expected) and _equal(expected, proof)

    def check(
        self,
        txid: TxId,
        protocol: Protocol,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        tagged: bool,
    ) -> None:
        """Raise ``Impostor`` unless ``decision`` may be recorded for these branches, ``UsageError`` if
        ``protocol`` is not a protocol. ``tagged``: whether the gids of the session have tags.

        For COMMIT all branches need a right tag. For ABORT one right tag is enough, since a termination may
        know other branches only by number; but a wrong tag is refused."""
        if protocol not in _PROTOCOLS:
            raise UsageError(f"not a protocol: {protocol!r} ({', '.join(_PROTOCOLS)})")
        if not tagged:
            return
        proved = 0
        for branch in branches:
            if branch.tag or decision is Decision.COMMIT:
                gid = branch.gid(self.ledger_id, protocol, txid)
                if not self.gave(gid):
                    raise Impostor(f"this ledger never gave the name {gid}: its tag is wrong or missing")
                proved += 1
        if not proved:
            raise Impostor(f"nothing proves the name of any branch of transaction {txid}: no tag was given")
