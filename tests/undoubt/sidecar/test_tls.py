"""TLS: a client's certificate serves as a token, and one of a stranger's CA does not."""

from __future__ import annotations

import datetime
import ssl
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.undoubt.sidecar.stage import Client, Stage, Work, prepare, staged, token

HEADER = "Undoubt-Transaction"
NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """A CA in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.crt"
        made = self._signed(self._name, self._key, ca=True)
        self.path.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(hours=1))
            .not_valid_after(NOW + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        return built.sign(self._key, hashes.SHA256())

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        paths = self.folder / f"{name}-{self.path.stem}.crt", self.folder / f"{name}-{self.path.stem}.key"
        paths[0].write_bytes(self._signed(subject, key, ca=False).public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(paths[0]), str(paths[1])


def get(stage: Stage, ca: Path, shown: tuple[str, str] | None, path: str, **headers: str) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(ca))
    if shown is not None:
        context.load_cert_chain(*shown)
    with httpx.Client(verify=context, base_url=f"https://localhost:{stage.port}") as client:
        return client.get(path, headers=headers)


def test_certificates(shops: dict[str, str], tmp_path: Path) -> None:
    ours, strangers = Authority(tmp_path, "ours"), Authority(tmp_path, "strangers")
    cert, key = ours.issue("server")
    more = '[[sidecar.tokens]]\nname = "till"\ncertificate = "till"\nparticipants = ["orders"]\n'
    with staged(
        tmp_path,
        shops,
        more=more,
        tls_cert=f'"{cert}"',
        tls_key=f'"{key}"',
        tls_ca=f'"{ours.path}"',
        hosts='["localhost"]',
    ) as stage:
        path = "/v1/participants"
        told = get(stage, ours.path, ours.issue("till"), path).json()
        assert [each["name"] for each in told["participants"]] == ["orders"]
        assert get(stage, ours.path, ours.issue("nobody"), path).json()["name"] == "CertificateUnknown"
        assert get(stage, ours.path, None, path).json()["name"] == "TokenNeeded"
        bearer = f"Bearer {token('shop')}"
        assert get(stage, ours.path, None, path, Authorization=bearer).status_code == 200
        with pytest.raises(httpx.TransportError):
            get(stage, ours.path, strangers.issue("till"), path)


OF_PEERS = """
[[sidecar.tokens]]
name = "a"
certificate = "a"
participants = ["*"]
[[sidecar.tokens]]
name = "b"
certificate = "b"
participants = ["*"]
[participants.payments.sidecar]
sql = true
"""


class Peers:
    """Sidecars that know one another by certificates of ``ours``, on one ledger."""

    def __init__(self, folder: Path, databases: dict[str, str], ledger: str) -> None:
        self.folder, self.databases, self.ledger = folder, databases, ledger
        self.ours, self.strangers = Authority(folder, "ours"), Authority(folder, "strangers")

    def staged(
        self, name: str, shown: Authority | None = None, trusted: Authority | None = None
    ) -> AbstractContextManager[Stage]:
        """``shown`` has signed its certificate, ``trusted`` signs those that it accepts; else it is ours."""
        folder = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        cert, key = (shown or self.ours).issue(name)
        ca = (trusted or self.ours).path
        return staged(
            folder,
            self.databases,
            self.ledger,
            OF_PEERS,
            secure=True,
            tls_cert=f'"{cert}"',
            tls_key=f'"{key}"',
            tls_ca=f'"{ca}"',
        )

    def client(self, stage: Stage, join: str = "", *, shown: Authority | None = None) -> Client:
        """A client with a token, and the header ``join``; ``shown`` has signed the sidecar's certificate."""
        context = ssl.create_default_context(cafile=str((shown or self.ours).path))
        http = httpx.Client(
            verify=context,
            base_url=f"https://localhost:{stage.port}",
            headers={"Authorization": f"Bearer {token('shop')}"} | ({HEADER: join} if join else {}),
            timeout=60.0,
        )
        stage.clients.append(http)
        return Client(http)


@pytest.fixture
def peers(tmp_path: Path, shops: dict[str, str], ledger: str) -> Peers:
    return Peers(tmp_path, shops, ledger)


def test_sidecars_know_one_another_by_their_certificates(peers: Peers) -> None:
    """In both directions: the second one asks to join, the first one orders what it runs as an agent."""
    with peers.staged("a") as a, peers.staged("b") as b:
        work = peers.client(a).begin()
        joined = Work(peers.client(b, work.join), work.id)
        own = joined.announce("orders")
        prepare(peers.databases["orders"], own, "select 1")
        assert joined.sql("select 1", participant="payments").status_code == 200
        assert [each["run_by"] for each in work.show()["branches"]] == ["caller", "agent"]
        there = Work(peers.client(b), work.id)
        answer = there.commit()  # forwarded with the client's token
        assert (answer.status_code, answer.json()["outcome"]) == (200, "committed"), answer.text


def test_a_sidecar_with_a_strangers_certificate_joins_nothing(peers: Peers) -> None:
    with peers.staged("a") as a, peers.staged("b", shown=peers.strangers) as b:
        work = peers.client(a).begin()
        client = peers.client(b, work.join, shown=peers.strangers)
        answer = client.post(f"{work.path}/branches", {"participant": "orders"})
        assert (answer.status_code, answer.json()["name"]) == (503, "OwnerUnavailable"), answer.text
        assert "branches" not in work.show()
        work.rollback()


def test_a_sidecar_without_a_name_at_the_owner_joins_nothing(peers: Peers) -> None:
    """Its certificate is of our CA, but no client of the owner's is called so."""
    with peers.staged("a") as a, peers.staged("c") as c:
        work = peers.client(a).begin()
        client = peers.client(c, work.join)
        answer = client.post(f"{work.path}/branches", {"participant": "orders"})
        assert (answer.status_code, answer.json()["name"]) == (502, "OwnerRefuses"), answer.text
        work.rollback()


def test_a_capability_is_sent_to_no_server_of_another_ca(peers: Peers) -> None:
    """Broken if whoever listens at the owner's address is given the capability and the client's token."""
    with peers.staged("a") as a, peers.staged("b", trusted=peers.strangers) as b:
        work = peers.client(a).begin()
        for join in (work.join, ""):
            answer = peers.client(b, join).post(f"{work.path}/branches", {"participant": "orders"})
            assert (answer.status_code, answer.json()["name"]) == (503, "OwnerUnavailable"), answer.text
        assert "branches" not in work.show()
        work.rollback()
