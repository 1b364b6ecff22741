"""TLS: a client's certificate serves as a token, and one of a stranger's CA does not."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.undoubt.sidecar.stage import Stage, staged, token

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
