"""Serial numbers in a CA's list, which another library has written. Broken if a revoked peer stays connected,
or if bytes that are no list are taken for an empty one."""

from __future__ import annotations

import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from undoubt.coordinator.wire.revocation import revoked_in

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
serials = st.sets(st.integers(min_value=1, max_value=2**159 - 1), max_size=60)


def a_list(numbers: set[int], *, reasons: bool = False, year: int = 2027) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
        .last_update(NOW)
        .next_update(NOW.replace(year=year))
        .add_extension(x509.CRLNumber(7), critical=False)
    )
    for number in numbers:
        entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(NOW)
        if reasons:
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


WHOLE = base64.b64decode(b"".join(a_list({1, 2, 3}).splitlines()[1:-1]))


@settings(deadline=None)
@given(serials, serials, st.booleans(), st.sampled_from([2027, 2050, 2100]))
def test_all_numbers_of_all_lists(first: set[int], second: set[int], reasons: bool, year: int) -> None:
    """Also with long lengths, times of both kinds, and extensions of entries."""
    lists = a_list(first, reasons=reasons, year=year), a_list(second)
    assert revoked_in(b"".join(lists)) == first | second


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_what_is_no_list_is_refused_calmly(der: bytes) -> None:
    """Broken if a damaged file ends the process by another error than ``ValueError``."""
    for pem in (der, b"-----BEGIN X509 CRL-----\n" + base64.b64encode(der) + b"\n-----END X509 CRL-----\n"):
        try:
            found = revoked_in(pem)
        except ValueError:
            continue
        pytest.fail(f"{pem!r} is a list of {found}")


@settings(deadline=None)
@given(st.data())
def test_a_list_that_was_cut_is_refused(data: st.DataObject) -> None:
    """Broken if half a list counts as one with fewer entries."""
    cut = WHOLE[: data.draw(st.integers(min_value=0, max_value=len(WHOLE) - 1))]
    with pytest.raises(ValueError, match=r"DER|list|unpack"):
        revoked_in(b"-----BEGIN X509 CRL-----\n" + base64.b64encode(cut) + b"\n-----END X509 CRL-----\n")
