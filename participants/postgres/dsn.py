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

from undoubt.participants.errors import ParticipantMisconfigured
from undoubt.participants.libpq import PORT_MAX, is_connection_string, is_port

UNREADABLE = (
    "its dsn is neither a URI (postgresql://user@host/database) nor a list of keywords (host=… dbname=…);"
    " characters like '@', ':', '/' and '#' inside a part of a URI must be percent-encoded"
)

_OTHER_SCHEME = re.compile(r"(?:jdbc:)?postgres(?:ql)?(?P<driver>\+\w+)?://")
_DIGITS = re.compile("[0-9]{1,9}")
_NO_VALUE = "undoubt:none"
"""No value that libpq takes: it completes the parameters, refuses this one, and connects to nobody."""


@dataclass(frozen=True, slots=True)
class Conninfo:
    """A dsn's parameters by their names in libpq. The password is among them if the dsn had one.

    ``parameters`` are those of the dsn itself, ``resolved`` all that differ from libpq's defaults, whether
    they come from the dsn, from its service or from the environment. ``sslmode``, ``host`` and ``port`` are
    always there; ``host`` is empty for libpq's own default, which is ``default_host``: a folder, or
    "localhost" in a libpq that was compiled so.
    """

    participant: str
    parameters: Mapping[str, str]
    resolved: Mapping[str, str]
    default_host: str

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


def read_dsn(participant: str, dsn: str) -> Conninfo:
    """Raises ``ParticipantMisconfigured``, without the password, if libpq cannot read ``dsn``."""
    _refuse_other_schemes(participant, dsn)
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    except ProgrammingError:
        # libpq quotes the part that it did not understand, which may be a part of the password.
        raise ParticipantMisconfigured(participant, UNREADABLE) from None
    if not all(_DIGITS.fullmatch(port) for port in given.get("port", "").split(",") if port):
        raise ParticipantMisconfigured(participant, UNREADABLE)  # "user:a/password@host" has port "a"
    wanted = _complete(participant, given, "sslmode").get("target_session_attrs", "any")
    resolved = _complete(participant, given, "target_session_attrs")
    _check_database(participant, resolved.get("dbname", ""))
    _check_ports(participant, resolved)
    hosts = (resolved.get("hostaddr") or resolved["host"]).split(",")
    if any(host.startswith("@") for host in hosts):
        raise ParticipantMisconfigured(
            participant, "its dsn names an abstract socket (host=@…), which neither driver can reach"
        )
    if len(hosts) > 1:
        wanted = "read-write"
    elif wanted not in {"read-write", "primary", "any"}:
        raise ParticipantMisconfigured(
            participant, f"target_session_attrs={wanted!r} asks for a standby; only a primary can prepare"
        )
    given["target_session_attrs"] = resolved["target_session_attrs"] = wanted
    return Conninfo(participant, given, resolved, _default_host())


def _check_database(participant: str, name: str) -> None:
    if is_connection_string(name):
        raise ParticipantMisconfigured(
            participant,
            "the dbname of its dsn is a connection string itself, which psql follows, and libpq takes for a"
            " database's name: make that string the dsn",
        )


def _check_ports(participant: str, resolved: Mapping[str, str]) -> None:
    for port in resolved["port"].split(","):
        if port and not (_DIGITS.fullmatch(port) and is_port(int(port))):
            if "@" in resolved.get("dbname", ""):
                raise ParticipantMisconfigured(
                    participant, UNREADABLE
                )  # "user:99/password@host" has port "99"
            raise ParticipantMisconfigured(
                participant, f"its dsn cannot be used: port {port} is not between 1 and {PORT_MAX}"
            )


def _default_host() -> str:
    """What libpq connects to where no host is named. Only a connection tells, also one that is refused
    before it begins."""
    refused = PGconn.connect_start(f"host='' hostaddr='' sslmode={_NO_VALUE}".encode())
    try:
        return refused.host.decode("utf-8", "surrogateescape")
    finally:
        refused.finish()


def _refuse_other_schemes(participant: str, dsn: str) -> None:
    other = _OTHER_SCHEME.match(dsn.strip())
    if other is None or not (other["driver"] or dsn.strip().startswith("jdbc:")):
        return
    drop = other["driver"] or "jdbc:"
    raise ParticipantMisconfigured(
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
        raise ParticipantMisconfigured(participant, f"its dsn cannot be used: {message}")
    told = {
        option.keyword.decode(): (option.val.decode(), option.compiled)
        for option in options
        if option.val is not None
    }
    kept = {key: value for key, (value, default) in told.items() if value.encode() != default}
    always = {key: told[key][0] if key in told else "" for key in ("sslmode", "host", "port")}
    return {**kept, **always}
