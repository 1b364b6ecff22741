"""Connection strings without their passwords, for everything that is printed, logged or raised."""

from __future__ import annotations

import re

HIDDEN = "***"

_URI = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^:@/?#]*):.*@(?P<rest>[^@]*)", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IN_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&#]*", re.IGNORECASE)
_KEYWORD = re.compile(
    r"((?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)",
    re.IGNORECASE | re.DOTALL,
)


def redact(dsn: str) -> str:
    """``dsn`` with every password in it replaced by ``***``: libpq URIs, keyword strings, SQLAlchemy URLs.

    Never raises. Everything up to a URI's last ``@`` counts as password, so that one with a raw ``@``,
    ``/`` or ``?`` in it is not shown in part; where a query has an ``@``, the host is hidden as well.
    """
    if not _SCHEME.match(dsn):
        return _KEYWORD.sub(rf"\1{HIDDEN}", dsn)
    match = _URI.fullmatch(dsn)
    shown = dsn if match is None else f"{match['head']}:{HIDDEN}@{match['rest']}"
    return _IN_QUERY.sub(rf"\1{HIDDEN}", shown)
