"""Explains why libpq cannot read a dsn, or reads it otherwise than it was meant, and never shows a secret.

libpq quotes the part of the string that it did not understand
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING), which may be a part of a
password: so its words are recognized, and what they quote is shown only if it is a key. If libpq speaks
another language than English, only the general explanation is left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from urllib.parse import unquote

from psycopg.pq import Conninfo as Parser

UNREADABLE = (
    "its dsn is neither a URI (postgresql://user@host/database) nor a list of keywords (host=… dbname=…);"
    " characters like '@', ':', '/' and '#' inside a part of a URI must be percent-encoded"
)
MISPLACED_AT = (
    "its dsn has an '@' in the wrong place: in a user name, a password or the name of a database '@' has to"
    " be written %40, and ':', '/', '?' and '#' must be percent-encoded as well"
)
_IPV6 = "its dsn has a host in brackets that is not complete: write an IPv6 address as [2001:db8::5]:5432"
_PERCENT = "has a '%' that is not followed by two hexadecimal digits: write '%' itself as %25"
_NUL = "has a %00, but PostgreSQL accepts no NUL characters"
_NO_EQUALS = (
    "its dsn has a word without '=' among its keywords: a value with a space in it has to be quoted, as in"
    " application_name='two words'"
)

_URI = re.compile(r"postgres(?:ql)?://")
_USER = re.compile(r"[a-z]+://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?", re.DOTALL)
_PAIR = re.compile(r"(?P<key>[^\s=]+)\s*=\s*(?P<value>'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)", re.DOTALL)
_NO_VALUE = re.compile(r"(?:^|(?<=\s))(\w+)\s*=\s+(?=(\w+)\s*=)")
_WORD = re.compile(r"\w[\w.-]*")
_SECRET = re.compile("passw|pwd|secret|scram_", re.IGNORECASE)

_UNKNOWN_KEY = re.compile(r'invalid (?:connection option|URI query parameter:) "(.*)"', re.DOTALL)
_SEPARATOR = re.compile(r'(missing|extra) key/value separator "=" in URI query parameter: "(.*)"', re.DOTALL)
_TOKEN = re.compile(r'(invalid percent-encoded token|forbidden value %00[^:]*): "(.*)"', re.DOTALL)

_MEANT = {
    **dict.fromkeys(("database", "db", "databasename"), "dbname"),
    **dict.fromkeys(("username", "usr", "uid", "role"), "user"),
    **dict.fromkeys(("passwd", "pwd", "pass"), "password"),
    **dict.fromkeys(("hostname", "server"), "host"),
    **dict.fromkeys(("timeout", "logintimeout"), "connect_timeout"),
    **dict.fromkeys(("encoding", "charset"), "client_encoding"),
    "applicationname": "application_name",
    "targetservertype": "target_session_attrs",
}
_TOOLS = {
    **dict.fromkeys(
        ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_pre_ping", "echo"), "SQLAlchemy"
    ),
    **dict.fromkeys(("conn_max_age", "conn_health_checks", "atomic_requests"), "Django"),
    **dict.fromkeys(("min_size", "max_size", "command_timeout", "statement_cache_size"), "asyncpg"),
    "prepared_statement_cache_size": "SQLAlchemy",
    "prepare_threshold": "psycopg",
    **dict.fromkeys(("connection_limit", "pgbouncer", "schema", "sslaccept", "socket_timeout"), "Prisma"),
    **dict.fromkeys(("currentschema", "loggerlevel", "preparethreshold", "stringtype"), "JDBC"),
    **dict.fromkeys(("pool_max_conns", "pool_min_conns", "default_query_exec_mode"), "pgx"),
}
_SERVER = frozenset(
    {
        *("search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"),
        *("idle_session_timeout", "transaction_timeout", "timezone", "datestyle", "work_mem", "jit", "geqo"),
        *("synchronous_commit", "default_transaction_isolation", "default_transaction_read_only"),
    }
)
"""Settings that some drivers take as keys, and that libpq takes in ``options``."""


def keywords() -> dict[str, str]:
    """The keys that this libpq knows, each with the environment variable that completes it, or ""."""
    return {
        option.keyword.decode(): (option.envvar or b"").decode()
        for option in Parser.get_defaults()
        if option.keyword
    }


def is_uri(dsn: str) -> bool:
    return _URI.match(dsn) is not None


def misplaced_at(dsn: str) -> bool:
    """Whether a URI has an '@' in its hosts or its path. libpq ends the user and the password at the first
    '@', so that the rest of a password with an '@' is taken for a host; with a '/' before the '@', a part of
    it is taken for a port or a database."""
    begin = _URI.match(dsn)
    if begin is None:
        return False
    rest = dsn[begin.end() :]
    login = re.match("[^@/]*@", rest)
    return "@" in rest[login.end() if login else 0 :].partition("?")[0]


def port_may_be_password(dsn: str) -> bool:
    """Whether ``dsn`` may be ``postgresql://user:password/database``, without a host: libpq takes the
    password for a port."""
    return is_uri(dsn) and "@" not in dsn


def key_without_value(dsn: str, given: Mapping[str, str]) -> str | None:
    """The key for whose value libpq took the next key and its value (``port= password=…``), if there is
    one."""
    known = keywords()
    for match in _NO_VALUE.finditer("" if is_uri(dsn) else dsn):
        key, following = match.groups()
        if key in known and following in known and given.get(key, "").startswith(following):
            return key
    return None


def why_unreadable(dsn: str, message: str) -> str:
    """Why libpq refused to read ``dsn``; ``message`` is libpq's own."""
    if is_uri(dsn):
        return _why_no_uri(dsn, message)
    if is_uri(dsn.lstrip()):
        return "its dsn begins with white space: remove it"
    return _why_no_keywords(dsn, message)


def _why_no_uri(uri: str, message: str) -> str:
    if unknown := _UNKNOWN_KEY.search(message):
        return _unknown_key(uri, unknown[1])
    separator = _SEPARATOR.search(message)
    if separator is not None and not _may_be_secret(uri, separator[2]):
        how = "has no '='" if separator[1] == "missing" else "has a second '=': write it as %3D"
        return f"its dsn has the key {separator[2]!r}, which {how}"
    if token := _TOKEN.search(message):
        return f"the {_part(uri, token[2])} of its dsn {_PERCENT if 'token' in token[1] else _NUL}"
    if "IPv6" in message or 'expected ":" or "/"' in message:
        return _IPV6
    return UNREADABLE


def _why_no_keywords(text: str, message: str) -> str:
    unknown = _UNKNOWN_KEY.search(message)
    if unknown is not None and _WORD.fullmatch(unknown[1]):
        return _unknown_key(text, unknown[1])
    if "unterminated quoted string" in message:
        return "its dsn has a quoted value without the closing quote; inside of quotes, write \\' and \\\\"
    first = _PAIR.match(text.lstrip())
    if 'missing "="' in message and first is not None and first["key"] in keywords():
        return _NO_EQUALS
    return UNREADABLE


def _unknown_key(dsn: str, key: str) -> str:
    advice, exact = _advice(key)
    if not exact and _may_be_secret(dsn, key):
        # "password=two words=…" without quotes, or a password with '?', '&' and '@' in a URI.
        if is_uri(dsn):
            return (
                "its dsn has a key that PostgreSQL does not know; it is not shown, since it may be a part of"
                " the password, in which '@', '?' and '&' must be percent-encoded"
            )
        return (
            "its dsn has a key behind the password that PostgreSQL does not know; it is not shown, since it"
            " may be a part of the password: a value with a space in it has to be quoted"
        )
    return f"its dsn has the key {key!r}, which is not a key of PostgreSQL{advice}"


def _advice(key: str) -> tuple[str, bool]:
    """What to write instead, and whether ``key`` is a known word, which cannot be a secret."""
    known, lower = keywords(), key.lower()
    if lower in _TOOLS:
        return f" but of {_TOOLS[lower]}: remove it", True
    if lower in _SERVER:
        example = f"options='-c {lower}=…' (in a URI: options=-c{lower}%3D…)"
        return f": a setting of the server is given as {example}", True
    if lower == "servicefile":
        return ", or not of this libpq: name the file in the environment variable PGSERVICEFILE", True
    meant = lower if lower in known else _MEANT.get(lower)
    if meant is not None:
        return f": write {meant!r}", True
    close = get_close_matches(lower, known, 1, 0.75)
    return (f": did you mean {close[0]!r}?" if close else ""), False


def _may_be_secret(dsn: str, key: str) -> bool:
    """Whether what libpq took for ``key`` may be a part of a password."""
    if is_uri(dsn):
        query = dsn.partition("?")[2]
        if "@" in query:
            return True
        names = [unquote(pair.partition("=")[0]) for pair in query.split("&")]
        return key not in names or any(
            name == key and _SECRET.search(before) for before, name in pairwise(["", *names])
        )
    pairs = list(_PAIR.finditer(dsn))
    before: Iterator[re.Match[str] | None] = iter([None, *pairs])
    for former, pair in zip(before, pairs, strict=False):
        if pair["key"] == key:
            return bool(former and _SECRET.search(former["key"]) and not former["value"].startswith("'"))
    return True


def _part(dsn: str, token: str) -> str:
    """The name of the part of a URI in which ``token`` is."""
    login = _USER.match(dsn)
    for part in ("password", "user"):
        if login is not None and login[part] == token:
            return part
    for pair in dsn.partition("?")[2].split("&"):
        key, _, value = pair.partition("=")
        if value == token and key in keywords():
            return key
    return "host, port, dbname or a key"
