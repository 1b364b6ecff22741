"""Makes a CA and certificates, which ``undoubt cluster certs`` writes into a folder.

::

    ca.crt  ca.key                        the CA, for ten years; its key only signs: keep it off the nodes
    node-1.crt  node-1.key  …             for a node: undoubt://CLUSTER/node/1, and its hosts
    client-NAME.crt  client-NAME.key  …   for a client: undoubt://CLUSTER/client/NAME, and its role:
                                          undoubt://CLUSTER/may/transact
    ca.crl                                the certificates that are revoked, for as long as the CA lasts
    serials                               the number of each certificate that was made, with its file

An operator who has a PKI issues certificates with the same names with it. Keys are ECDSA P-256, readable by
their owner only. Only a renewal overwrites files: it replaces each certificate in one step and keeps its key,
so that certificate and key match at every moment. Processes load the new certificate while they run.
A revocation lists every certificate that was made for a name, since all of them may have one key.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from undoubt.coordinator.wire import PeerRole
from undoubt.coordinator.wire.rights import SCHEME, Right, named_right, uri_of
from undoubt.coordinator.wire.tls import name_of
from undoubt.participants.errors import UsageError

CA_DAYS = 3650
DAYS = 365
_EARLIER = datetime.timedelta(minutes=5)
"""Certificates are valid from a little before the moment they are made, since other machines' clocks may be
late."""
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def right_of_role(role: str) -> Right:
    """The right of ``role``, which is spelled as on the command line."""
    return Right[role.upper()]


class Issued(msgspec.Struct, frozen=True):
    """A certificate that was written. ``until`` is a date, UTC. ``role`` is a client's role, empty if the
    certificate names no role. ``hosts`` are for operators and for other tools: undoubt itself checks
    ``name``."""

    cert: str
    key: str
    name: str
    hosts: tuple[str, ...]
    until: str
    role: str = ""


class Folder:
    """The folder that holds the CA and the certificates."""

    def __init__(self, place: Path, cluster: str, days: int = DAYS) -> None:
        """Opens the CA in ``place``, or makes a CA. ``cluster`` may be empty if there is a CA, which names
        its cluster. Raises ``UsageError``."""
        self.place = place
        self.validity = datetime.timedelta(days=days)
        with _as_usage_error(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (place / "ca.crt").exists():
                _make_ca(place, cluster)
            self._ca = x509.load_pem_x509_certificate((place / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((place / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(
                f"{place / 'ca.key'} was not made by this command; issue certificates with your own tool"
            )
        self._ca_key = key
        self.cluster = _cluster_of(self._ca)
        if not self._has("ca.crl"):
            self._list(())
        if cluster not in {"", self.cluster}:
            raise UsageError(
                f"the CA in {place} is of cluster {self.cluster}, not {cluster}: keep the certificates of"
                " another cluster in another folder, with --dir FOLDER"
            )

    def issue(
        self,
        nodes: Mapping[int, Sequence[str]],
        clients: Sequence[str],
        right: Right | None = Right.OPERATE,
    ) -> list[Issued]:
        """Write new certificates. ``right`` is the role of the clients, None for certificates without a role.
        Raises ``UsageError``, before anything is written, if one of the files exists already."""
        wanted: list[tuple[str, str, tuple[str, ...], Right | None]] = []
        for number, hosts in nodes.items():
            if number < 1:
                raise UsageError(f"--node {number}: nodes are counted from 1")
            for host in hosts:
                _general_name(host)
            name = name_of(self.cluster, PeerRole.NODE, str(number))
            wanted.append((f"node-{number}", name, tuple(hosts), None))
        for client in clients:
            if not _CLIENT_NAME.fullmatch(client):
                raise UsageError(
                    f"--client {client!r}: a client's name consists of letters, digits and . _ -"
                )
            wanted.append((f"client-{client}", name_of(self.cluster, PeerRole.CLIENT, client), (), right))
        there = [f"{stem}{end}" for stem, *_ in wanted for end in (".crt", ".key") if self._has(stem + end)]
        if there:
            raise UsageError(
                f"{', '.join(there)} in {self.place} would be overwritten; --renew replaces certificates"
            )
        issued = []
        for stem, name, hosts, role in wanted:
            key = ec.generate_private_key(ec.SECP256R1())
            with _as_usage_error(self.place):
                _put(self.place / f"{stem}.key", _pem(key))
            issued.append(self._sign(stem, name, hosts, role, key.public_key()))
        return issued

    def renew(self, clients: Sequence[str] = (), right: Right | None = None) -> list[Issued]:
        """Write every certificate in the folder, or those of ``clients``, anew, with its present key and
        names, and with another role if ``right`` is given. Raises ``UsageError``."""
        issued = []
        with _as_usage_error(self.place):
            paths = sorted([*self.place.glob("node-*.crt"), *self.place.glob("client-*.crt")])
            if clients:
                paths = [self.place / f"client-{client}.crt" for client in clients]
            for path in paths:
                former = x509.load_pem_x509_certificate(path.read_bytes())
                key = former.public_key()
                if not isinstance(key, ec.EllipticCurvePublicKey):
                    raise UsageError(f"{path} was not made by this command; renew it with your own tool")
                name, hosts, role = _names_of(former, self.cluster)
                issued.append(self._sign(path.stem, name, hosts, right or role, key))
        return issued

    def revoke(self, nodes: Sequence[int], clients: Sequence[str]) -> list[str]:
        """Add every certificate of these nodes and clients to the list, and delete the last one of each with
        its key, so that no renewal makes it valid again. Returns the names of the deleted files,
        without their endings. Raises ``UsageError``, before anything is written, if no certificate was made
        for one of them."""
        stems = [f"node-{number}" for number in nodes] + [f"client-{client}" for client in clients]
        with _as_usage_error(self.place):
            serials = {stem: self._serials(stem) for stem in stems}
            if unknown := [stem for stem, found in serials.items() if not found]:
                raise UsageError(f"no certificate was made in {self.place} for {', '.join(unknown)}")
            self._list(serial for found in serials.values() for serial in found)
            for stem in stems:
                for end in (".crt", ".key"):
                    (self.place / f"{stem}{end}").unlink(missing_ok=True)
        return stems

    def _serials(self, stem: str) -> set[int]:
        """Of all certificates that were made in ``stem``.crt; those of versions that kept no record: only of
        the last one."""
        found = set()
        with contextlib.suppress(FileNotFoundError):
            lines = (self.place / "serials").read_text().splitlines()
            found = {int(line.split()[1], 16) for line in lines if line.split()[0] == stem}
        with contextlib.suppress(FileNotFoundError):
            last = x509.load_pem_x509_certificate((self.place / f"{stem}.crt").read_bytes())
            found.add(last.serial_number)
        return found

    def _list(self, serials: Iterable[int]) -> None:
        """Write the list with these serial numbers besides those that it has."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._ca.subject)
            .last_update(now - _EARLIER)
            # A list that has expired would refuse everybody: it lasts as long as the CA.
            .next_update(self._ca.not_valid_after_utc)
        )
        there = set()
        if self._has("ca.crl"):
            for entry in x509.load_pem_x509_crl((self.place / "ca.crl").read_bytes()):
                builder = builder.add_revoked_certificate(entry)
                there.add(entry.serial_number)
        for serial in sorted(set(serials) - there):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._ca_key, hashes.SHA256())
        with _as_usage_error(self.place):
            _put(self.place / "ca.crl", signed.public_bytes(serialization.Encoding.PEM))

    def _has(self, name: str) -> bool:
        return (self.place / name).exists()

    def _sign(
        self,
        stem: str,
        name: str,
        hosts: tuple[str, ...],
        right: Right | None,
        key: ec.EllipticCurvePublicKey,
    ) -> Issued:
        now = datetime.datetime.now(datetime.UTC)
        until = min(now + self.validity, self._ca.not_valid_after_utc)
        authority = x509.SubjectKeyIdentifier.from_public_key(self._ca_key.public_key())
        certificate = (
            _begun(_subject(name.removeprefix(SCHEME)), self._ca.subject, key, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        *(x509.UniformResourceIdentifier(uri) for uri in self._uris(name, right)),
                        *(_general_name(host) for host in hosts),
                    ]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False
            )
            .sign(self._ca_key, hashes.SHA256())
        )
        cert_path, key_path = self.place / f"{stem}.crt", self.place / f"{stem}.key"
        with _as_usage_error(self.place):
            # First: what is not recorded cannot be revoked.
            record = os.open(
                self.place / "serials", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(record, f"{stem} {certificate.serial_number:x}\n".encode())
                os.fsync(record)
            finally:
                os.close(record)
            _put(cert_path, certificate.public_bytes(serialization.Encoding.PEM))
        role = "" if right is None else str(right)
        return Issued(str(cert_path), str(key_path), name, hosts, f"{until:%Y-%m-%d}", role)

    def _uris(self, name: str, right: Right | None) -> list[str]:
        return [name] if right is None else [name, uri_of(self.cluster, right)]


def _make_ca(place: Path, cluster: str) -> None:
    if not cluster:
        raise UsageError(
            f"which cluster? There is no CA in {place} yet: pass --id, as `cluster init` printed it"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"undoubt cluster {cluster} CA")
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=CA_DAYS)
    certificate = (
        _begun(subject, subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SCHEME + cluster)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    _put(place / "ca.key", _pem(key))
    _put(place / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.now(datetime.UTC) - _EARLIER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except ValueError as error:
        raise UsageError(f"{host!r} is not a host name: {error}") from None


def _cluster_of(ca: x509.Certificate) -> str:
    with contextlib.suppress(x509.ExtensionNotFound):
        for name in ca.extensions.get_extension_for_class(x509.SubjectAlternativeName).value:
            if isinstance(name, x509.UniformResourceIdentifier) and name.value.startswith(SCHEME):
                return name.value.removeprefix(SCHEME)
    raise UsageError(
        "ca.crt was not made by this command: it names no cluster; issue certificates with your own tool"
    )


def _names_of(certificate: x509.Certificate, cluster: str) -> tuple[str, tuple[str, ...], Right | None]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    right = named_right(uris, cluster)
    (name,) = (uri for uri in uris if right is None or uri != uri_of(cluster, right))
    return name, tuple(hosts), right


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _put(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` completely or not at all. Other users can at no moment read the file."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)


@contextlib.contextmanager
def _as_usage_error(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write certificates in {place}: {error.strerror or error}") from error
    except (ValueError, x509.ExtensionNotFound) as error:
        raise UsageError(f"{place} has a file that this command cannot read: {error}") from error
