"""The key of a coordinator's session, also where the ledger gives none."""

from __future__ import annotations

from undoubt.coordinator.ledger.contract import Lease, Session
from undoubt.participants.ids import Gid, Protocol, SessionKey

KEY = b"the key of this session"


def session(key: bytes) -> Session:
    return Session(id=3, nonce="0123456789abcdef", name="test", ttl_s=10.0, key=key)


def test_a_session_without_a_key_still_proves_its_commits() -> None:
    """Broken if commits cannot be proved on a ledger of version 0.1.0, or two processes make one proof."""
    lease, another = Lease(session(b"")), Lease(session(b""))
    gid = Gid("abcdefghij", Protocol.THREE_PHASE, lease.begin(), 1, "orders")
    assert len(lease.key.proof(gid)) == 32
    assert lease.key.proof(gid) != another.key.proof(gid)
    assert gid.tagged(lease.key).tag == ""


def test_a_given_key_is_used() -> None:
    """Broken if a ledger that gives keys cannot verify what they make."""
    lease = Lease(session(KEY))
    gid = Gid("abcdefghij", Protocol.TWO_PHASE, lease.begin(), 1, "orders")
    assert lease.key.proof(gid) == SessionKey(KEY).proof(gid)
    assert gid.tagged(lease.key).tag == SessionKey(KEY).tag(gid.head)
