"""Reads the certificates that a CA has revoked, from its list (RFC 5280 §5).

OpenSSL checks the list's signature and its dates, and refuses a revoked peer in a handshake. What it does not
do is look again at peers whose handshake was earlier; for that the serial numbers are read here."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

_LIST = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_INTEGER, _UTC_TIME, _TIME, _SEQUENCE = 0x02, 0x17, 0x18, 0x30


def revoked_in(pem: bytes) -> frozenset[int]:
    """The serial numbers in all lists of a PEM file. Raises ``ValueError`` if it has none, or something
    else."""
    if b"CERTIFICATE-----" in pem:
        raise ValueError("it contains a certificate, which would be trusted as a CA")
    lists = _LIST.findall(pem)
    if not lists:
        raise ValueError("it contains no list of revoked certificates")
    return frozenset(serial for each in lists for serial in _serials(base64.b64decode(each)))


def _serials(der: bytes) -> Iterator[int]:
    [(_, signed)] = _elements(der)
    (_, listed), *_ = _elements(signed)
    seen_time = False
    for tag, content in _elements(listed):
        # Before the times there are other sequences; behind them only that of the entries.
        if tag in {_UTC_TIME, _TIME}:
            seen_time = True
        elif seen_time and tag == _SEQUENCE:
            for _, entry in _elements(content):
                (kind, serial), *_ = _elements(entry)
                if kind != _INTEGER:
                    raise ValueError("an entry does not begin with a serial number")
                yield int.from_bytes(serial, "big")


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of DER (X.690 §8.1)."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1] if at + 1 < len(der) else 0x80
        at += 2
        if length >= 0x80:
            count = length - 0x80
            length = int.from_bytes(der[at : at + count], "big")
            at += count
            if not count or at > len(der):
                raise ValueError("its DER has a length without bytes")
        if at + length > len(der):
            raise ValueError("its DER ends early")
        yield tag, der[at : at + length]
        at += length
