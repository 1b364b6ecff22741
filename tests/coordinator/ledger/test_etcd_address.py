"""URLs of ledgers in etcd, and TLS with its members. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.coordinator.ledger.etcd_stage import place_in
from tests.coordinator.ledger.test_etcd import BRANCHES, COMMIT
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import LedgerMisconfigured, LedgerUnavailable
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.etcd.address import read, tls_context
from undoubt.coordinator.settings import LedgerSettings
from undoubt.serve.certs import Folder


def test_what_a_url_says() -> None:
    """Broken if a ledger is looked for elsewhere than its URL says."""
    found = read("etcd://u%3A1:p%40s%2Fs@10.0.0.1,[::1]:2380,db.example:99/one/two/")
    assert [str(endpoint) for endpoint in found.endpoints] == ["10.0.0.1:2379", "[::1]:2380", "db.example:99"]
    assert (found.prefix, found.user, found.password) == ("one/two", "u:1", "p@s/s")
    assert "p@s" not in repr(found)
    assert read("etcd://a").prefix == "undoubt"
    assert not read("etcd://a").user


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd:///undoubt",
        "etcd://user@a",
        "etcd://:secret@a",
        "etcd://user:@a",
        "etcd://user:secret@",
        "etcd://user:secret@a,,b",
        "etcd://user:secret@a:0",
        "etcd://user:secret@a:99999",
        "etcd://user:secret@a,a:2379",
        "etcd://user:secret@a/über",
        "etcd://user:secret@a/one//two",
        "etcd://user:secret@a/one?two",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    """Broken if a slip in a URL makes another ledger, or its message shows the password."""
    with pytest.raises(LedgerMisconfigured) as caught:
        await open_ledger(LedgerSettings(url=url))
    assert "secret" not in str(caught.value)


def test_files_for_tls_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Broken if a wrong path ends in a connection without TLS, or in an error that names no setting."""
    assert tls_context(LedgerSettings(url="etcd://a")) is None
    with pytest.raises(LedgerMisconfigured, match=r"ledger\.tls_ca"):
        tls_context(LedgerSettings(url="etcd://a", tls_ca=str(tmp_path / "absent.pem")))


async def test_members_that_ask_for_certificates(tmp_path: Path) -> None:
    """Broken if an etcd with TLS cannot have a ledger, or if a member is believed whose certificate is not
    from the CA of the settings, or that speaks without TLS."""
    certs, others = tmp_path / "certs", tmp_path / "others"
    for place in (certs, others):
        Folder(place, "etcd").issue({1: ["127.0.0.1"]}, ["app"])
    cluster = EtcdCluster(tmp_path / "etcd", 1, certs=certs)
    right = {
        "tls_ca": str(certs / "ca.crt"),
        "tls_cert": str(certs / "client-app.crt"),
        "tls_key": str(certs / "client-app.key"),
    }
    try:
        await asyncio.to_thread(cluster.start)
        async with place_in(cluster, **right) as place_:
            ledger = await place_.open()
            session = await ledger.open_session("test", 600)
            assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
            for wrong in (
                {"tls_ca": str(others / "ca.crt")},
                {"tls_cert": "", "tls_key": ""},
                {
                    "tls_cert": str(others / "client-app.crt"),
                    "tls_key": str(others / "client-app.key"),
                },
                {"tls_ca": "", "tls_cert": "", "tls_key": ""},
            ):
                with pytest.raises(LedgerUnavailable):
                    await place_.open(request_timeout_s=1.0, **wrong)
    finally:
        cluster.close()
