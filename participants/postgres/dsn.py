"""Connection strings: libpq's keywords and URIs, read once for whichever driver connects.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING. Parsed and completed by libpq
itself (through psycopg): service files, environment variables and defaults, so that what works for ``psql``
works here. Nothing here connects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

from participants.errors import ParticipantRefused

UNREADABLE = (
    "its dsn is neither a URI (postgresql://user@host/database) nor a list of keywords (host=… dbname=…);"
    " characters like '@', ':', '/' and '#' inside a part of a URI must be percent-encoded"
)

_OTHER_SCHEME = re.compile(r"(?:jdbc:)?postgres(?:ql)?(?P<driver>\+\w+)?://")
_NO_VALUE = "undoubt:none"
"""No value that libpq takes: it completes the parameters, refuses this one, and connects to nobody."""


@dataclass(frozen=True, slots=True)
class Address:
    """A dsn's parameters by their names in libpq. The password is among them if the dsn had one.

    ``parameters`` are those of the dsn itself, ``resolved`` all that differ from libpq's defaults, whether
    they come from the dsn, from its service or from the environment. ``sslmode``, ``host`` and ``port`` are
    always there; ``host`` is empty for libpq's own default.
    """

    participant: str
    parameters: Mapping[str, str]
    resolved: Mapping[str, str]

    @property
    def has_password(self) -> bool:
        """In the dsn, or in the service that it names; one in PGPASSWORD counts for less than a file."""
        if "password" in self.parameters:
            return True
        return self.resolved.get("password") not in {None, os.environ.get("PGPASSWORD")}

    def for_libpq(self, *, options: str = "", **more: str) -> str:
        """A connection string with ``more`` parameters in it, and ``options`` for the server behind those
        that there are anyway. Never print it."""
        if options:
            more["options"] = f"{self.resolved.get('options', '')} {options}".strip()
        return make_conninfo("", **{**self.parameters, **more})

    def __repr__(self) -> str:
        return f"Address({self.participant!r})"


def read_dsn(participant: str, dsn: str) -> Address:
    """Raises ``ParticipantRefused``, without the password, if libpq cannot read ``dsn``."""
    _refuse_other_schemes(participant, dsn)
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    except ProgrammingError:
        # libpq quotes the part that it did not understand, which may be a part of the password.
        raise ParticipantRefused(participant, UNREADABLE) from None
    if not all(port.isdigit() for port in given.get("port", "").split(",") if port):
        raise ParticipantRefused(participant, UNREADABLE)  # "user:a/password@host" has port "a"
    wanted = _complete(participant, given, "sslmode").get("target_session_attrs", "any")
    resolved = _complete(participant, given, "target_session_attrs")
    if "," in resolved.get("hostaddr", resolved["host"]):
        wanted = "read-write"
    elif wanted not in {"read-write", "primary", "any"}:
        raise ParticipantRefused(
            participant, f"target_session_attrs={wanted!r} asks for a standby; only a primary can prepare"
        )
    given["target_session_attrs"] = resolved["target_session_attrs"] = wanted
    return Address(participant, given, resolved)


def _refuse_other_schemes(participant: str, dsn: str) -> None:
    other = _OTHER_SCHEME.match(dsn.strip())
    if other is None or not (other["driver"] or dsn.strip().startswith("jdbc:")):
        return
    drop = other["driver"] or "jdbc:"
    raise ParticipantRefused(
        participant,
        f"its dsn begins with {other[0]!r}, and libpq knows no such URI: drop {drop!r}, and name the driver"
        f" by participants.{participant}.driver",
    )


def _complete(participant: str, given: Mapping[str, str], but: str) -> dict[str, str]:
    """All parameters as libpq would connect with them, but for the one called ``but``."""
    conninfo = make_conninfo("", **{**given, but: _NO_VALUE})
    refused = PGconn.connect_start(conninfo.encode())
    try:
        message = refused.error_message.decode("utf-8", "replace").strip()
        options = refused.info
    finally:
        refused.finish()
    if f'"{_NO_VALUE}"' not in message:
        raise ParticipantRefused(participant, f"its dsn cannot be used: {message}")
    told = {
        option.keyword.decode(): (option.val.decode(), option.compiled)
        for option in options
        if option.val is not None
    }
    kept = {key: value for key, (value, default) in told.items() if value.encode() != default}
    always = {key: told[key][0] if key in told else "" for key in ("sslmode", "host", "port")}
    return {**kept, **always}
