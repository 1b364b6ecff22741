"""``undoubt cluster certs``, and a cluster of real processes that lets in only who has one. Broken if keys
could be read or overwritten, or if a node without TLS answered a network."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.ports import free_ports
from tests.undoubt.cli.harness import COMMAND, environment, undoubt
from undoubt.cli.cluster import CLIENT_ROLES
from undoubt.coordinator.wire import ROLES

ID = "k3v9q0x2ab"


def names(cert: Path) -> list[str]:
    shown = x509.load_pem_x509_certificate(cert.read_bytes())
    alternatives = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in alternatives]


def test_certificates_for_a_start(tmp_path: Path) -> None:
    """One call for the first nodes, later ones for more; the CA is made once."""
    first = undoubt(
        "cluster", "certs", "--id", f"{ID}-1f0c77de", "--node", "1=ledger-1,10.0.0.1", "--node", "2",
        "--client", "shop", "-o", "json", cwd=tmp_path,
    )  # fmt: skip
    assert first.status == 0, first.err
    assert first.json["cluster"] == ID
    place = tmp_path / "certs"
    assert names(place / "node-1.crt") == [f"undoubt://{ID}/node/1", "ledger-1", "10.0.0.1"]
    assert names(place / "client-shop.crt") == [f"undoubt://{ID}/client/shop", f"undoubt://{ID}/may/operate"]
    authority = (place / "ca.crt").read_bytes()
    later = undoubt("cluster", "certs", "--node", "3", cwd=tmp_path)
    assert later.status == 0, later.err
    assert f"undoubt://{ID}/node/3" in later.out
    assert (place / "ca.crt").read_bytes() == authority
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", "node-1.crt", "node-3.crt"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Not one file, and none of the others that were asked for is written either."""
    assert undoubt("cluster", "certs", "--id", ID, "--node", "2", cwd=tmp_path).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    again = undoubt("cluster", "certs", "--node", "1", "--node", "2", cwd=tmp_path)
    assert again.status == 2
    assert "node-2.crt, node-2.key" in again.err
    assert {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()} == before


def test_a_renewal_keeps_keys_and_names(tmp_path: Path) -> None:
    """So that at no moment a certificate and a key that do not belong together lie there."""
    undoubt("cluster", "certs", "--id", ID, "--node", "1=h", "--client", "shop", "--days", "1", cwd=tmp_path)
    place = tmp_path / "certs"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    renewed = undoubt("cluster", "certs", "--renew", "-o", "json", cwd=tmp_path)
    assert renewed.status == 0, renewed.err
    after = {path.name: path.read_bytes() for path in place.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"node-1.crt", "client-shop.crt", "serials"}
    assert names(place / "node-1.crt") == [f"undoubt://{ID}/node/1", "h"]
    shown = x509.load_pem_x509_certificate(after["node-1.crt"])
    assert 364 <= (shown.not_valid_after_utc - shown.not_valid_before_utc).days <= 365


def test_the_roles_of_clients(tmp_path: Path) -> None:
    """Broken if an application were given an operator's certificate, or a renewal lost a role."""

    def certs(*flags: str) -> list[dict[str, str]]:
        ran = undoubt("cluster", "certs", *flags, "-o", "json", cwd=tmp_path)
        assert ran.status == 0, ran.err
        return list(ran.json["certificates"])

    place = tmp_path / "certs"
    (shop, till) = certs("--id", ID, "--client", "shop", "--client", "till", "--role", "transact")
    assert (shop["role"], till["role"]) == ("transact", "transact")
    certs("--node", "1")
    assert {each["role"] for each in certs("--renew")} == {"transact", ""}
    assert names(place / "client-shop.crt")[1] == f"undoubt://{ID}/may/transact"
    key = (place / "client-till.key").read_bytes()
    (till,) = certs("--renew", "--client", "till", "--role", "observe")
    assert till["role"] == "observe"
    assert names(place / "client-till.crt") == [f"undoubt://{ID}/client/till", f"undoubt://{ID}/may/observe"]
    assert names(place / "client-shop.crt")[1] == f"undoubt://{ID}/may/transact"
    assert (place / "client-till.key").read_bytes() == key


def test_the_roles_are_those_of_the_nodes() -> None:
    """Broken if the command offered a role that no node knows."""
    assert CLIENT_ROLES == ROLES


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--id", ID, "--node", "1", "--role", "observe"], "--client"),
        (["--id", ID, "--renew", "--role", "observe"], "--client"),
        (["--id", ID, "--client", "shop", "--role", "root"], "'root'"),
        (["--node", "1"], "which cluster"),
        (["--id", ID], "--renew, alone"),
        (["--id", ID, "--renew", "--node", "1"], "--renew, alone"),
        (["--id", ID, "--node", "one"], "'one'"),
        (["--id", ID, "--node", "0"], "counted from 1"),
        (["--id", ID, "--client", "../x"], "'../x'"),
        (["--id", "shop", "--node", "1"], "ledger id"),
        (["--id", ID, "--node", "1=" + "x" * 70], "host name"),
    ],
)
def test_mistakes_are_told(flags: list[str], words: str, tmp_path: Path) -> None:
    """As mistakes of usage, with the way out."""
    ran = undoubt("cluster", "certs", *flags, cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_another_clusters_ca_is_not_used(tmp_path: Path) -> None:
    """Two clusters in one folder would share a CA by mistake."""
    undoubt("cluster", "certs", "--id", ID, "--node", "1", cwd=tmp_path)
    other = undoubt("cluster", "certs", "--id", "aaaaaaaaaa", "--node", "2", cwd=tmp_path)
    assert other.status == 2
    assert ID in other.err
    assert "--dir FOLDER" in other.err
    apart = ["--id", "aaaaaaaaaa", "--node", "2", "--dir", "others"]
    assert undoubt("cluster", "certs", *apart, cwd=tmp_path).status == 0


def test_a_name_is_revoked_with_all_its_certificates(tmp_path: Path) -> None:
    """Broken if a certificate from before a renewal, which has the same key, stays valid; or if the next
    renewal makes the revoked one valid again."""
    place = tmp_path / "certs"
    made = undoubt("cluster", "certs", "--id", ID, "--node", "1", "--client", "shop", cwd=tmp_path)
    assert made.status == 0, made.err
    first = x509.load_pem_x509_certificate((place / "client-shop.crt").read_bytes()).serial_number
    assert undoubt("cluster", "certs", "--renew", cwd=tmp_path).status == 0
    second = x509.load_pem_x509_certificate((place / "client-shop.crt").read_bytes()).serial_number
    assert set(x509.load_pem_x509_crl((place / "ca.crl").read_bytes())) == set()
    ran = undoubt("cluster", "certs", "--revoke", "--client", "shop", "-o", "json", cwd=tmp_path)
    assert ran.json == {"cluster": ID, "revoked": ["client-shop"], "crl": "certs/ca.crl"}, ran.err
    assert {entry.serial_number for entry in x509.load_pem_x509_crl((place / "ca.crl").read_bytes())} == {
        first,
        second,
    }
    assert undoubt("cluster", "certs", "--renew", cwd=tmp_path).status == 0
    assert not (place / "client-shop.crt").exists()
    assert not (place / "client-shop.key").exists()
    again = undoubt("cluster", "certs", "--client", "shop", cwd=tmp_path)
    assert again.status == 0, again.err
    verified = subprocess.run(
        ["openssl", "verify", "-crl_check", "-CRLfile", "ca.crl", "-CAfile", "ca.crt", "client-shop.crt"],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_what_cannot_be_revoked_is_said(tmp_path: Path) -> None:
    """Broken if a misspelled name passes for a revoked one, or takes others with it."""
    assert undoubt("cluster", "certs", "--id", ID, "--client", "shop", cwd=tmp_path).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    for words in (
        ["--client", "shop", "--client", "shpo"],
        ["--client", "../certs/client-shop"],
        ["--node", "1"],
        [],
        ["--client", "shop", "--renew"],
        ["--client", "shop", "--role", "observe"],
    ):
        ran = undoubt("cluster", "certs", "--revoke", *words, cwd=tmp_path)
        assert ran.status == 2, (words, ran.err)
    assert before == {path: path.read_bytes() for path in (tmp_path / "certs").iterdir()}


CONFIGURATION = """
[ledger]
url = "raft://{addresses}"
request_timeout_s = 20.0
{tls}
[node]
number = {number}
listen = "{listen}"
data = "node-{number}"
heartbeat_s = 0.05
election_timeout_s = 0.5
"""


def configuration(folder: Path, addresses: list[str], number: int, stem: str, listen: str = "") -> Path:
    tls = (
        f'tls_ca = "certs/ca.crt"\ntls_cert = "certs/{stem}.crt"\ntls_key = "certs/{stem}.key"\n'
        if stem
        else ""
    )
    path = folder / f"{stem or 'bare'}-{number}.toml"
    path.write_text(
        CONFIGURATION.format(addresses=",".join(addresses), tls=tls, number=number, listen=listen)
    )
    return path


@contextlib.contextmanager
def nodes(folder: Path, addresses: list[str]) -> Iterator[None]:
    """Three processes, each of them ready."""
    ticket = ""
    with contextlib.ExitStack() as stack:
        for number in (1, 2, 3):
            config = str(configuration(folder, addresses, number, f"node-{number}"))
            flags = ["--id", ticket] if ticket else []
            begun = undoubt("cluster", "init", "--config", config, *flags)
            assert begun.status == 0, begun.err
            if not ticket:
                ticket = begun.out.strip()
                made = ["--node", "1", "--node", "2", "--node", "3", "--client", "shop"]
                issued = undoubt("cluster", "certs", "--id", ticket, *made, cwd=folder)
                assert issued.status == 0, issued.err
        for number in (1, 2, 3):
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, "node", "--config", str(folder / f"node-{number}-{number}.toml")],
                    stderr=subprocess.PIPE, text=True, env=environment(),
                )
            )  # fmt: skip
            stack.callback(process.kill)
            assert process.stderr is not None
            for line in process.stderr:
                if "is ready" in line:
                    break
            else:
                pytest.fail(f"node {number} ended")
        yield


def test_restored_before_there_are_certificates(tmp_path: Path) -> None:
    """They are made with the id that the restore prints. Broken if they are needed before; or if a node of
    the former cluster, which cannot be asked without them, is not noticed."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    new = configuration(tmp_path, addresses, 1, "node-1")
    new = new.rename(tmp_path / "new.toml")
    new.write_text(new.read_text().replace("certs/", "new-certs/").replace('"node-1"', '"new-1"'))
    restore = ("cluster", "restore", str(tmp_path / "ledger.backup"), "--yes", "--config", str(new))
    with nodes(tmp_path, addresses):
        client = str(configuration(tmp_path, addresses, 0, "client-shop"))
        made = undoubt("cluster", "backup", str(tmp_path / "ledger.backup"), "--config", client)
        assert made.status == 0, made.err
        refused = undoubt(*restore)
        assert refused.status == 1
        assert "end all nodes of the former cluster first" in refused.err
        assert not (tmp_path / "new-1").exists()
    restored = undoubt(*restore)
    assert restored.status == 0, restored.err
    ticket = restored.out.strip()
    assert f"undoubt cluster certs --dir FOLDER --id {ticket}" in restored.err
    issued = ("cluster", "certs", "--id", ticket, "--node", "1")
    assert "--dir FOLDER" in undoubt(*issued, cwd=tmp_path).err
    assert undoubt(*issued, "--dir", "new-certs", cwd=tmp_path).status == 0


def test_a_cluster_of_processes_behind_tls(tmp_path: Path) -> None:
    """They find each other, and serve who has a certificate; nobody else gets as far as a status."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with nodes(tmp_path, addresses):
        client = str(configuration(tmp_path, addresses, 0, "client-shop"))
        told = undoubt("ledger", "init", "--config", client, "-o", "json")
        assert told.status == 0, told.err
        status = undoubt("cluster", "status", "--config", client, "-o", "json")
        assert status.status == 0, status.err
        assert [node["role"] for node in status.json["nodes"]].count("leader") == 1
        left_s = [node["certificate_until"] - time.time() for node in status.json["nodes"]]
        assert all(364 * 86_400 < seconds < 366 * 86_400 for seconds in left_s)
        assert "certificate" not in undoubt("cluster", "status", "--config", client).out
        undoubt("cluster", "transfer", "--note", "because", "--config", client)
        acts = undoubt("audit", "--config", client, "-o", "json").json
        after = [act for act in acts if act["verb"] != "cluster init"]
        assert [(act["certificate"], act["verb"], act["note"], act["result"]) for act in after] == [
            ("shop", "cluster transfer", "because", "done")
        ]
        undoubt("cluster", "certs", "--client", "dashboard", "--role", "observe", cwd=tmp_path)
        sees = str(configuration(tmp_path, addresses, 0, "client-dashboard"))
        for asked in (
            ["indoubt", "list"],
            ["tx", "list"],
            ["audit"],
            ["cluster", "status"],
        ):
            ran = undoubt(*asked, "--config", sees)
            assert ran.status == 0, (asked, ran.err)
        refused = undoubt("cluster", "transfer", "--config", sees)
        assert refused.status == 1
        assert (
            "needs a certificate with the role operate; the certificate of dashboard has observe"
            in refused.err
        )
        undoubt("cluster", "certs", "--renew", "--days", "7", cwd=tmp_path)
        assert "its certificate ends in 7 days" in undoubt("cluster", "status", "--config", client).out
        bare = undoubt("cluster", "status", "--config", str(configuration(tmp_path, addresses, 0, "")))
        assert bare.status == 4
        ours = undoubt("cluster", "status", "--config", str(tmp_path / "node-1-1.toml"), "-o", "json")
        assert ours.status == 0, ours.err


def test_an_open_port_is_refused(tmp_path: Path) -> None:
    """And with TLS, or if told so, it is not: the mistake is in the message, and its ways out."""
    (port,) = free_ports(1)
    config = configuration(tmp_path, [f"127.0.0.1:{port}"], 1, "", listen=f"0.0.0.0:{port}")
    assert undoubt("cluster", "init", "--config", str(config)).status == 0
    ran = undoubt("node", "--config", str(config))
    assert ran.status == 2
    assert "--insecure" in ran.err
    assert "cluster certs" in ran.err


def test_a_node_with_anothers_certificate_does_not_start(tmp_path: Path) -> None:
    """It would be refused by all the others, one by one."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    begun = undoubt("cluster", "init", "--config", str(configuration(tmp_path, addresses, 1, "")))
    assert begun.status == 0, begun.err
    undoubt("cluster", "certs", "--id", begun.out.strip(), "--node", "2", cwd=tmp_path)
    ran = undoubt("node", "--config", str(configuration(tmp_path, addresses, 1, "node-2")))
    assert ran.status == 1
    assert "node/2" in ran.err
    missing = undoubt("node", "--config", str(configuration(tmp_path, addresses, 1, "node-3")))
    assert missing.status == 2
    assert "node-3.crt" in missing.err
