"""Removes passwords from connection strings, for everything that is printed, logged or raised."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

HIDDEN = "***"

_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.:-]*://")
_URI = re.compile(r"(?P<head>\s*[A-Za-z][A-Za-z0-9+.:-]*://[^:@/?#]*):.*@(?P<rest>[^@]*)", re.DOTALL)
_SECRET = re.compile(r"passw(?:or)?d|secret", re.IGNORECASE)
_INSIDE = re.compile(
    # A keyword string, options for the server, or a URI with a password, as a value.
    r"(?:passw(?:or)?d|secret)['\"\s\\]*=|://[^@/?#]*:.*@",
    re.IGNORECASE | re.DOTALL,
)
_KEYWORD = re.compile(
    r"(?P<name>\w+)(?P<is>\s*=\s*)(?P<value>'(?:[^'\\]|\\.)*'?|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)", re.DOTALL
)
_NESTED = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.:-]*://[^:@/?#\s']*):[^\s']*@")
_ENCODINGS_MAX = 8
"""How often a value is percent-decoded: a URI can be a value of another URI, and so on."""


def redact(dsn: str) -> str:
    """``dsn`` with every password in it replaced by ``***``: libpq URIs, keyword strings, SQLAlchemy URLs,
    and each of these as a value of another, percent-encoded or not.

    Never raises. Everything up to a URI's last ``@`` counts as the password, so that a password with a raw
    ``@``, ``/`` or ``?`` is not shown in part; if a query has an ``@``, the host is hidden as well. A value
    that contains a password is hidden completely.
    """
    if not _SCHEME.match(dsn):
        return _NESTED.sub(rf"\g<head>:{HIDDEN}@", _KEYWORD.sub(_keyword, dsn))
    match = _URI.fullmatch(dsn)
    head, rest = (dsn, "") if match is None else (f"{match['head']}:{HIDDEN}@", match["rest"])
    place, mark, query = (rest or head).partition("?")
    shown = _path(place) + mark + "&".join(map(_parameter, query.split("&")))
    return head + shown if rest else shown


def _path(place: str) -> str:
    """The authority and path of a URI, or the end of them, with secrets hidden; the path is a database's
    name."""
    scheme, slashes, rest = place.rpartition("://") if _SCHEME.match(place) else ("", "", place)
    host, slash, name = rest.partition("/")
    return scheme + slashes + host + slash + (HIDDEN if _has_password(name) else name)


def _parameter(text: str) -> str:
    name, is_, value = text.partition("=")
    if not is_ or _has_password(name):
        # This may be the rest of a value with a raw "&": no library reads a parameter without a value.
        return HIDDEN if text else ""
    return f"{name}={HIDDEN}" if _SECRET.search(_decoded(name)) or _has_password(value) else text


def _keyword(match: re.Match[str]) -> str:
    hidden = _SECRET.search(match["name"]) or _has_password(match["value"])
    return f"{match['name']}{match['is']}{HIDDEN}" if hidden else match[0]


def _has_password(value: str) -> bool:
    """Whether ``value`` contains a password."""
    return _INSIDE.search(_decoded(value)) is not None


def _decoded(text: str) -> str:
    for _ in range(_ENCODINGS_MAX):
        further = unquote_plus(text)
        if further == text:
            break
        text = further
    return text
