"""Draws the password of this process's servers, and gives it to roles.

A random password needs no slow hash: its verifier is made with one iteration (RFC 5802, section 3). With more
iterations a client would spend more time on a new connection than the server does.
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
    """The password of all servers that this process starts: a copy of a server's data has the same one."""
    return _drawn(os.getpid())


@functools.cache
def _drawn(_pid: int) -> str:
    return secrets.token_hex(16)


def verifier(password: str) -> str:
    """The verifier that PostgreSQL stores for ``password``, and accepts in ALTER ROLE in place of the
    password (src/common/scram-common.c, ``scram_build_secret``)."""
    return _verifier(password, secrets.token_bytes(16), 1)


def matches(stored: str, password: str) -> bool:
    """Whether ``stored``, of pg_authid, is a verifier of ``password``."""
    found = _STORED.fullmatch(stored)
    if found is None:
        return False
    return hmac.compare_digest(_verifier(password, base64.b64decode(found[2]), int(found[1])), stored)


def give_password(dsn: str, role: str, password: str) -> bool:
    """Give ``role`` the password, unless the role has one. True if ``password`` is now its password. ``dsn``
    connects as a superuser."""
    import psycopg  # noqa: PLC0415 - `undoubt.errors` imports this module, and every command imports `undoubt.errors`
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
