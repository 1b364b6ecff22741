"""Who may speak with whom, and in which version. Broken if a node could join another cluster's talk or answer
for another node, or if two releases that share a version could not speak (or two that share none did)."""

from __future__ import annotations

import msgspec
import pytest

from undoubt.coordinator.wire import (
    HandshakeRefusal,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    RemoteProtocolError,
    Versions,
)
from undoubt.coordinator.wire import handshake as shake

ME = PeerIdentity(PeerRole.NODE, "shop", 1, "a")
PEER = PeerIdentity(PeerRole.NODE, "shop", 2, "b")
CLIENT = PeerIdentity(PeerRole.CLIENT, name="till 7")
BOTH = frozenset(PeerRole)
V1 = Versions(1, 1)


def asked(
    peer: PeerIdentity, versions: Versions = V1, for_number: int = 0, roles: frozenset[PeerRole] = BOTH
) -> HandshakeRefusal:
    with pytest.raises(HandshakeRefused) as refused:
        shake.check_hello(shake.hello(peer, versions, for_number), ME, V1, roles)
    return refused.value.refusal


def test_peers_of_one_cluster_agree() -> None:
    """The listener learns who dialed, the dialer whom it reached."""
    assert shake.check_hello(shake.hello(PEER, V1, 1), ME, V1, BOTH) == (PEER, 1)
    assert shake.check_answer(shake.welcome(ME, 1), PEER, V1, 1) == (ME, 1)


def test_a_client_may_ask_which_cluster_this_is() -> None:
    """An address is all that a client is given at first; from the answer on it knows the cluster."""
    assert shake.check_hello(shake.hello(CLIENT, V1, 0), ME, V1, BOTH) == (CLIENT, 1)
    assert shake.check_answer(shake.welcome(ME, 1), CLIENT, V1, 0)[0].cluster_id == "shop"


@pytest.mark.parametrize(
    ("peer", "for_number", "refusal"),
    [
        (PeerIdentity(PeerRole.NODE, "bank", 2), 1, HandshakeRefusal.CLUSTER),
        (PeerIdentity(PeerRole.CLIENT, "bank"), 0, HandshakeRefusal.CLUSTER),
        (PeerIdentity(PeerRole.NODE, "", 2), 1, HandshakeRefusal.CLUSTER),
        (PeerIdentity(PeerRole.NODE, "shop", 2), 3, HandshakeRefusal.NUMBER),
        (PeerIdentity(PeerRole.NODE, "shop", 1), 0, HandshakeRefusal.NUMBER),
        (PeerIdentity(PeerRole.NODE, "shop", 0), 0, HandshakeRefusal.NUMBER),
        (PeerIdentity(PeerRole.NODE, "shop", -4), 0, HandshakeRefusal.NUMBER),
    ],
)
def test_strangers_and_mistaken_peers_are_refused(
    peer: PeerIdentity, for_number: int, refusal: HandshakeRefusal
) -> None:
    """Another cluster's, a node without a cluster, one that meant somebody else, one with our own number."""
    assert asked(peer, for_number=for_number) is refusal


def test_roles_that_are_not_served_are_refused() -> None:
    """A node has no business at a ledger of one process; a role of the future is named in the refusal."""
    assert asked(PEER, roles=frozenset({PeerRole.CLIENT})) is HandshakeRefusal.ROLE
    future = msgspec.msgpack.encode(shake.Hello("shop", "auditor", 0, "", V1))
    with pytest.raises(HandshakeRefused, match="auditor"):
        shake.check_hello(future, ME, V1, BOTH)


@pytest.mark.parametrize(
    ("ours", "theirs", "spoken"),
    [
        (Versions(1, 2), Versions(1, 1), 1),
        (Versions(1, 1), Versions(1, 2), 1),
        (Versions(1, 3), Versions(2, 5), 3),
        (Versions(2, 3), Versions(1, 2), 2),
        (Versions(2, 3), Versions(1, 1), None),
        (Versions(1, 1), Versions(2, 3), None),
    ],
)
def test_the_lower_of_the_highest_versions_is_spoken(
    ours: Versions, theirs: Versions, spoken: int | None
) -> None:
    """Two releases next to each other understand each other in either direction; others say so."""
    hello = shake.hello(PEER, theirs, 1)
    if spoken is None:
        with pytest.raises(HandshakeRefused, match="wire version") as refused:
            shake.check_hello(hello, ME, ours, BOTH)
        assert refused.value.refusal is HandshakeRefusal.VERSION
    else:
        assert shake.check_hello(hello, ME, ours, BOTH) == (PEER, spoken)


def test_the_dialer_checks_the_answer() -> None:
    """An address that was given to another node since, or another cluster that moved in there."""
    for answer, refusal in [
        (shake.welcome(PeerIdentity(PeerRole.NODE, "bank", 1), 1), HandshakeRefusal.CLUSTER),
        (shake.welcome(PeerIdentity(PeerRole.NODE, "shop", 3), 1), HandshakeRefusal.NUMBER),
    ]:
        with pytest.raises(HandshakeRefused) as refused:
            shake.check_answer(answer, PEER, V1, 1)
        assert refused.value.refusal is refusal
    with pytest.raises(RemoteProtocolError, match="version 7"):
        shake.check_answer(shake.welcome(ME, 7), PEER, V1, 1)


def test_a_refusal_arrives_in_the_words_of_who_refused() -> None:
    """Also one of a kind that this release does not know; and it cannot forge a line in our log."""
    sent = shake.refused(HandshakeRefused(HandshakeRefusal.BUSY, "full"))
    with pytest.raises(HandshakeRefused, match=r"^full$") as refused:
        shake.check_answer(sent, PEER, V1, 1)
    assert refused.value.refusal is HandshakeRefusal.BUSY
    with pytest.raises(HandshakeRefused) as refused:
        shake.check_answer(
            msgspec.msgpack.encode(shake.RefusedReply("quota", "x\nERROR all lost")), PEER, V1, 1
        )
    assert refused.value.refusal is HandshakeRefusal.OTHER
    assert "\n" not in refused.value.reason


@pytest.mark.parametrize("name", ["x\ny", "\x1b[31m", "x" * 200])
def test_names_cannot_forge_log_lines(name: str) -> None:
    """Names are written into logs as they are."""
    with pytest.raises(RemoteProtocolError):
        shake.check_hello(shake.hello(PeerIdentity(PeerRole.CLIENT, name=name), V1, 0), ME, V1, BOTH)
    with pytest.raises(RemoteProtocolError):
        shake.check_answer(shake.welcome(PeerIdentity(PeerRole.NODE, "shop", 1, name), 1), CLIENT, V1, 0)


def test_the_handshake_of_a_later_release_is_understood() -> None:
    """Fields that later releases add at the end are passed over; without that no upgrade could be rolling."""
    longer = [*msgspec.msgpack.decode(shake.hello(PEER, Versions(1, 9), 1)), "added", 42]
    longer[5] = [*longer[5], "added"]
    assert shake.check_hello(msgspec.msgpack.encode(longer), ME, V1, BOTH) == (PEER, 1)
    answer = [*msgspec.msgpack.decode(shake.welcome(ME, 1)), {"added": 1}]
    assert shake.check_answer(msgspec.msgpack.encode(answer), PEER, V1, 1) == (ME, 1)


def test_every_handshake_fits_its_bound() -> None:
    """The longest names that are taken must not make a frame that is refused."""
    long = PeerIdentity(
        PeerRole.NODE, "\U0001f512" * shake.TEXT_MAX, 2**63 - 1, "\U0001f512" * shake.TEXT_MAX
    )
    for payload in [
        shake.hello(long, Versions(1, 255), 2**63 - 1),
        shake.welcome(long, 255),
        shake.refused(HandshakeRefused(HandshakeRefusal.CLUSTER, "\U0001f512" * 10_000)),
    ]:
        assert len(payload) < shake.HANDSHAKE_BYTES_MAX
