"""The password of this process's servers, and how a role gets it.

A random password needs no slow hash: its verifier is made here with one iteration (RFC 5802, section 3),
since clients would else spend more time on a connection than the server does.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import re
import secrets

CONNECT_TIMEOUT_S = 10
_STORED = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$.*")


def process_password() -> str:
    """One for all servers that a process starts, so that a copy of a server's data takes it as well."""
    return _drawn(os.getpid())


@functools.cache
def _drawn(_pid: int) -> str:
    return secrets.token_hex(16)


def verifier(password: str) -> str:
    """What PostgreSQL stores for ``password``, in the form that it takes instead of the password
    (src/common/scram-common.c, ``scram_build_secret``)."""
    return _verifier(password, secrets.token_bytes(16), 1)


def matches(stored: str, password: str) -> bool:
    """Whether ``stored``, of pg_authid, is a verifier of ``password``."""
    found = _STORED.fullmatch(stored)
    if found is None:
        return False
    return hmac.compare_digest(_verifier(password, base64.b64decode(found[2]), int(found[1])), stored)


def give_password(dsn: str, role: str, password: str) -> bool:
    """Give ``role`` the password unless it has one. True if it has this one now. ``dsn`` is a superuser's."""
    import psycopg  # noqa: PLC0415 - `undoubt.errors` leads here, and every command imports that
    from psycopg import sql  # noqa: PLC0415

    with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
        found = connection.execute("select rolpassword from pg_authid where rolname = %s", (role,)).fetchone()
        if found is None:
            return False
        if found[0] is not None:
            return matches(found[0], password)
        change = sql.SQL("alter role {} password {}")
        connection.execute(change.format(sql.Identifier(role), sql.Literal(verifier(password))))
        return True


def _verifier(password: str, salt: bytes, iterations: int) -> str:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return f"SCRAM-SHA-256${iterations}:{_text(salt)}${_text(stored_key)}:{_text(server_key)}"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
