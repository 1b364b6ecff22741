"""What doctor says of a ledger in etcd: whether its members answer, and who reads its secret."""

from __future__ import annotations

import pytest

from tests.coordinator.ledger.etcd_stage import Place
from tests.etcd import EtcdCluster
from tests.ports import free_ports
from undoubt.config import load
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.doctor import examine
from undoubt.doctor.ledger import etcd_access
from undoubt.participants.findings import Severity

OK, WARNING, PROBLEM = Severity.OK, Severity.WARNING, Severity.PROBLEM


async def test_a_member_that_does_not_answer_is_named(etcd: EtcdCluster) -> None:
    """Broken if an operator hears of the first member that is down only when the second one is."""
    place = Place(etcd)
    await maintenance.init(place.settings)
    [port] = free_ports(1)
    for url, severity, words in (
        (place.settings.url, OK, "all members"),
        (place.settings.url.replace("etcd://", f"etcd://127.0.0.1:{port},"), PROBLEM, f"127.0.0.1:{port}"),
    ):
        told = {one.check: one for one in await examine(load({"ledger": {"url": url}}), older_than_s=0.0)}
        assert told["ledger"].severity is OK
        assert told["ledger_members"].severity is severity
        assert words in told["ledger_members"].what


@pytest.mark.parametrize(
    ("url", "tls", "expected"),
    [
        ("etcd://127.0.0.1:2379", ("", "", ""), {"ledger_secret": WARNING}),
        ("etcd://u:p@127.0.0.1:2379", ("", "", ""), {"ledger_secret": OK}),
        ("etcd://10.0.0.1:2379", ("", "", ""), {"ledger_secret": PROBLEM, "ledger_tls": PROBLEM}),
        ("etcd://u:p@10.0.0.1:2379", ("", "", ""), {"ledger_secret": OK, "ledger_tls": PROBLEM}),
        ("etcd://10.0.0.1:2379", ("ca", "", ""), {"ledger_secret": PROBLEM}),
        ("etcd://10.0.0.1:2379", ("ca", "cert", "key"), {"ledger_secret": WARNING}),
        ("etcd://u:p@10.0.0.1:2379", ("ca", "cert", "key"), {"ledger_secret": OK}),
    ],
)
def test_who_reads_the_secret(url: str, tls: tuple[str, str, str], expected: dict[str, Severity]) -> None:
    """Broken if a ledger whose secret anybody on the network can read is called sound."""
    tls_ca, tls_cert, tls_key = tls
    found = etcd_access(LedgerSettings(url=url, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key))
    assert {one.check: one.severity for one in found} == expected
