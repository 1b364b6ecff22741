"""Mutual TLS: who is let in is who the certificate says. Broken if a stranger, a client or another node could
speak as a node, if a failing handshake were silent, or if a renewed certificate needed a restart."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import ssl
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.wire.support import CLIENT, ONE, TWO, VERSIONS, Side, dialed, ends, listening, warnings
from undoubt.coordinator.wire import (
    Address,
    HandshakeRefusal,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    TlsSettings,
    TlsUnusable,
    WireSettings,
    refuse_exposed,
    tls_of,
)
from undoubt.coordinator.wire.handshake import hello
from undoubt.coordinator.wire.tls import check_names
from undoubt.participants.errors import UsageError
from undoubt.serve.certs import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "certs", "shop")
    made.issue({1: ["localhost"], 2: [], 3: []}, ["till", "audit"])
    return made


def files(folder: Folder, stem: str, ca: Folder | None = None) -> WireSettings:
    place = folder.place
    authority = (ca or folder).place / "ca.crt"
    return WireSettings(
        tls=TlsSettings(str(authority), str(place / f"{stem}.crt"), str(place / f"{stem}.key"))
    )


async def test_certified_peers_talk(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Nodes with nodes, clients with nodes; the listener knows the client by its certificate."""
    here = Side(answer=bytes.upper)
    async with listening(here, settings=files(folder, "node-1")) as (_, where):
        for me, stem in [(TWO, "node-2"), (CLIENT, "client-till"), (CLIENT, "node-3")]:
            box = await dialed(where, me, settings=files(folder, stem))
            assert box.connection.peer == ONE
            for word in (b"hi", b"x" * 3_000_000):
                box.connection.send(word)
                assert await box.got.get() == word.upper()
        names = [here.boxes.get_nowait().connection.peer.name for _ in range(3)]
        assert names == ["", "till (till 7)", "node 3 (till 7)"]
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("me", "stem"),
    [(TWO, "node-3"), (TWO, "client-till"), (PeerIdentity(PeerRole.NODE, "shop", 9), "node-2")],
)
async def test_nobody_is_believed_to_be_another(
    me: PeerIdentity, stem: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """A client's certificate makes no node, a node's no other node."""
    here = Side()
    async with listening(here, settings=files(folder, "node-1")) as (_, where):
        with pytest.raises(HandshakeRefused, match="is not valid for") as refused:
            await dialed(where, me, settings=files(folder, stem))
    assert refused.value.refusal is HandshakeRefusal.CERTIFICATE
    assert here.boxes.empty()
    (line,) = warnings(caplog)
    assert f"undoubt://shop/node/{me.number}" in line


async def test_the_dialer_checks_who_listens(folder: Folder) -> None:
    """A client's certificate at a node's address: decisions must not be told to it, nor believed."""
    async with listening(Side(), settings=files(folder, "client-till")) as (_, where):
        for me, stem in [(TWO, "node-2"), (CLIENT, "client-audit")]:
            with pytest.raises(HandshakeRefused, match="node/1") as refused:
                await dialed(where, me, settings=files(folder, stem))
            assert refused.value.refusal is HandshakeRefusal.CERTIFICATE


async def test_another_clusters_certificate_is_none(
    folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where one CA serves several clusters: it is the name that counts, not the signature alone."""
    for end in ("crt", "key"):
        (tmp_path / f"ca.{end}").write_bytes((folder.place / f"ca.{end}").read_bytes())
    other = Folder(tmp_path, "")
    other.cluster = "bank"
    other.issue({2: []}, ["till"])
    async with listening(Side(), settings=files(folder, "node-1")) as (_, where):
        for me, stem in [(TWO, "node-2"), (CLIENT, "client-till")]:
            with pytest.raises(HandshakeRefused, match="undoubt://bank"):
                await dialed(where, me, settings=files(other, stem))
    assert len(warnings(caplog)) == 2


async def test_strangers_get_no_further_than_tls(
    folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another CA's certificate, none, no TLS at all: one line each, and others go on."""
    here = Side(answer=bytes.upper)
    foreign = Folder(tmp_path / "foreign", "shop")
    foreign.issue({2: []}, [])
    async with listening(here, settings=files(folder, "node-1")) as (_, where):
        box = await dialed(where, CLIENT, settings=files(folder, "client-till"))
        with pytest.raises(ConnectionError, match="not accepted"):
            await dialed(where, TWO, settings=files(foreign, "node-2"))
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
        await ends(*await asyncio.open_connection(where.host, where.port, ssl=bare))
        bare.load_cert_chain(foreign.place / "node-2.crt", foreign.place / "node-2.key")
        await ends(*await asyncio.open_connection(where.host, where.port, ssl=bare))
        with pytest.raises(ConnectionError):
            await dialed(where, TWO)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(hello(TWO, VERSIONS, 1))
        await ends(reader, writer)
        box.connection.send(b"still there")
        assert await box.got.get() == b"STILL THERE"
    lines = warnings(caplog)
    assert len(lines) == 5, lines
    assert any("shows no certificate" in line for line in lines)
    assert any("does not use TLS" in line for line in lines)


async def test_a_tls_dialer_at_a_plain_port_is_told(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """One side was configured, the other forgotten."""
    async with listening(Side()) as (_, where):
        with pytest.raises(ConnectionError):
            await dialed(where, TWO, settings=files(folder, "node-2"))
    (line,) = warnings(caplog)
    assert "it uses TLS, and this port does not" in line


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01\x02\x00"])
async def test_a_tls_handshake_has_a_deadline(
    says: bytes, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """The one deadline is for both handshakes."""
    settings = files(folder, "node-1")
    brief = WireSettings(tls=settings.tls, handshake_s=0.1)
    async with listening(Side(), settings=brief) as (listener, where):
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(says)
        await ends(reader, writer)
        assert not listener.strangers
    (line,) = warnings(caplog)
    assert "no handshake within 0.1 s" in line


async def test_a_renewed_certificate_is_used_without_a_restart(folder: Folder) -> None:
    """By listeners and dialers that were there before; open connections stay."""
    here = Side(answer=bytes.upper)
    theirs = files(folder, "client-till")
    async with listening(here, settings=files(folder, "node-1")) as (_, where):
        before = await dialed(where, CLIENT, settings=theirs)
        first = serial(before)
        folder.renew()
        after = await dialed(where, CLIENT, settings=theirs)
        assert serial(after) != first
        before.connection.send(b"still open")
        assert await before.got.get() == b"STILL OPEN"


def serial(box) -> str:  # type: ignore[no-untyped-def]
    return str(box.connection.secured.shown["serialNumber"])


async def test_a_broken_renewal_leaves_the_former_certificate(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a copy must not cut a node off from the others."""
    ours = files(folder, "node-1")
    async with listening(Side(), settings=ours) as (_, where):
        await dialed(where, CLIENT, settings=files(folder, "client-till"))
        whole = (folder.place / "node-1.crt").read_bytes()
        (folder.place / "node-1.crt").write_bytes(whole[:100])
        await dialed(where, CLIENT, settings=files(folder, "client-till"))
        await dialed(where, CLIENT, settings=files(folder, "client-till"))
        (line,) = warnings(caplog)
        assert "node-1.crt" in line
        assert "former one is kept" in line
        (folder.place / "node-1.crt").write_bytes(whole)
        await dialed(where, CLIENT, settings=files(folder, "client-till"))
        assert len(warnings(caplog)) == 1


def listed(settings: WireSettings, folder: Folder) -> WireSettings:
    """With the CA's list, which is looked at often."""
    assert settings.tls is not None
    tls = msgspec.structs.replace(settings.tls, crl=str(folder.place / "ca.crl"))
    return msgspec.structs.replace(settings, tls=tls, review_s=0.01)


async def test_a_revoked_certificate_is_refused_and_its_connections_end(
    folder: Folder, tmp_path: Path
) -> None:
    """By listeners and dialers that were there before, also one from before a renewal. Broken if whoever has
    stolen a key goes on until the CA is replaced."""
    stolen = Folder(tmp_path / "certs", "")
    stolen.place = tmp_path / "stolen"
    shutil.copytree(folder.place, stolen.place)
    folder.renew()
    ours = listed(files(folder, "node-1"), folder)
    async with (
        listening(Side(), ONE, ours) as (_, here),
        listening(Side(), TWO, files(stolen, "node-2")) as (_, there),
    ):
        honest = await dialed(here, CLIENT, settings=listed(files(folder, "client-audit"), folder))
        thief = await dialed(here, CLIENT, settings=files(stolen, "client-till"))
        impostor = await dialed(there, ONE, settings=ours)
        assert folder.revoke([2], ["till"]) == ["node-2", "client-till"]
        assert await impostor.ended == "its certificate has been revoked"
        await thief.ended
        with pytest.raises(ConnectionError, match="has been revoked"):
            await dialed(here, CLIENT, settings=files(stolen, "client-till"))
        with pytest.raises(ConnectionError, match="not accepted: certificate revoked"):
            await dialed(there, ONE, settings=ours)
        assert not honest.ended.done()
        folder.issue({}, ["till"])
        await dialed(here, CLIENT, settings=files(folder, "client-till"))


async def test_a_list_that_is_of_no_use_leaves_the_former(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken if half a copy cuts nodes off from each other, or makes a revoked certificate valid again."""
    crl = folder.place / "ca.crl"
    stolen = [(folder.place / f"client-till.{end}").read_bytes() for end in ("crt", "key")]
    folder.revoke([], ["till"])
    for end, content in zip(("crt", "key"), stolen, strict=True):
        (folder.place / f"client-till.{end}").write_bytes(content)
    async with listening(Side(), settings=listed(files(folder, "node-1"), folder)) as (_, where):
        for half in (crl.read_bytes()[:100], b"", crl.read_bytes() + (folder.place / "ca.crt").read_bytes()):
            crl.write_bytes(half)
            await dialed(where, CLIENT, settings=files(folder, "client-audit"))
            with pytest.raises(ConnectionError, match="has been revoked"):
                await dialed(where, CLIENT, settings=files(folder, "client-till"))
        crl.unlink()
        with pytest.raises(ConnectionError, match="has been revoked"):
            await dialed(where, CLIENT, settings=files(folder, "client-till"))
    assert len([line for line in warnings(caplog) if "former one is kept" in line]) == 4


def test_files_that_are_of_no_use_are_named(folder: Folder, tmp_path: Path) -> None:
    """At the start, not by the first peer."""
    place = folder.place
    ca, cert, key = (str(place / name) for name in ("ca.crt", "node-1.crt", "node-1.key"))
    foreign = Folder(tmp_path / "foreign", "shop").place / "ca.crt"
    for settings, words in [
        (TlsSettings(str(place / "none"), cert, key), "none.*No such file"),
        (TlsSettings(ca, str(place / "none"), key), "none.*No such file"),
        (TlsSettings(key, cert, key), "node-1.key"),
        (TlsSettings(ca, cert, str(place / "node-2.key")), "does not belong"),
        (TlsSettings(str(foreign), cert, key), "node-1.crt.*not accepted"),
        (TlsSettings(ca, cert, key, str(place / "none")), "none.*No such file"),
        (TlsSettings(ca, cert, key, key), "contains no list"),
        (TlsSettings(ca, cert, key, ca), "would be trusted as a CA"),
        (TlsSettings(ca, cert, key, str(foreign.with_name("ca.crl"))), "not accepted: .*CRL"),
    ]:
        with pytest.raises(TlsUnusable, match=words):
            tls_of(settings)


def test_an_expired_certificate_is_found_at_the_start(folder: Folder) -> None:
    """Peers would refuse it; the message says so before they do."""
    folder.validity = datetime.timedelta(seconds=-1)
    folder.renew()
    with pytest.raises(TlsUnusable, match="expired"):
        tls_of(files(folder, "node-1").tls)


def test_a_node_knows_whether_its_certificate_is_its_own(folder: Folder) -> None:
    """A node with its neighbour's files would be refused by everybody, one by one."""
    tls = tls_of(files(folder, "node-1").tls)
    tls.check_own(ONE)
    with pytest.raises(TlsUnusable, match="names undoubt://shop/node/1, not undoubt://shop/node/2"):
        tls.check_own(TWO)
    left_s = tls.own.not_after - datetime.datetime.now(datetime.UTC).timestamp()
    assert 364 * 86_400 < left_s < 366 * 86_400


@pytest.mark.parametrize(
    "name",
    [
        "undoubt://shop/node/22",
        "undoubt://shop/node/2/x",
        "undoubt://shop/node/",
        "undoubt://shop/node",
        "undoubt://shop2/node/2",
        "undoubt://shop/nodes/2",
        "undoubt://SHOP/node/2",
        "undoubt:///node/2",
        "https://shop/node/2",
        "node 2",
    ],
)
def test_only_the_exact_name_counts(name: str) -> None:
    """Prefixes, suffixes and other spellings are other names."""
    with pytest.raises(HandshakeRefused):
        check_names([name], TWO, "shop")
    assert check_names([name, "undoubt://shop/node/2"], TWO, "shop") == "2"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "db.internal"])
def test_an_open_port_needs_tls_or_a_word(host: str) -> None:
    """Nobody shall decide transactions for everybody on the network by forgetting a setting."""
    where = Address(host, 7400)
    with pytest.raises(UsageError, match="--insecure") as refused:
        refuse_exposed(where, tls=False, insecure=False, way_out="set ledger.tls_ca")
    assert "set ledger.tls_ca" in str(refused.value)
    refuse_exposed(where, tls=True, insecure=False, way_out="")
    refuse_exposed(where, tls=False, insecure=True, way_out="")
    refuse_exposed(Address("127.0.0.1", 7400), tls=False, insecure=False, way_out="")


def test_keys_are_nobody_elses(folder: Folder) -> None:
    """Whoever reads a node's key is that node."""
    assert folder.place.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.place.iterdir()}
    assert set(modes.values()) == {0o600}
