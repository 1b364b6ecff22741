"""Reads connection strings, libpq's keywords and URIs, once for both drivers.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING. libpq itself
parses and completes them (through psycopg), with service files, environment variables and defaults, so that a
dsn that works for ``psql`` works here. Nothing here connects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import OperationalError
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo as Parser
from psycopg.pq import ConninfoOption, PGconn

from undoubt.participants.errors import ParticipantMisconfigured
from undoubt.participants.libpq import is_connection_string
from undoubt.participants.postgres.dsn_form import (
    MISPLACED_AT,
    key_without_value,
    keywords,
    misplaced_at,
    port_may_be_password,
    why_unreadable,
)
from undoubt.participants.postgres.dsn_values import judge

_OTHER_SCHEME = re.compile(r"(?:jdbc:)?postgres(?:ql)?(?P<driver>\+\w+)?://")
_NO_VALUE = "undoubt:none"
"""A value that libpq does not accept: libpq completes the parameters, refuses this value, and does not
connect."""


@dataclass(frozen=True, slots=True)
class Conninfo:
    """The parameters of a dsn by their names in libpq. They include the password if the dsn has one.

    ``parameters`` are those of the dsn itself. ``resolved`` are all that differ from libpq's defaults, from
    the dsn, its service or the environment; ``sslmode``, ``host`` and ``port`` are always included. ``host``
    is empty for libpq's own default, which is ``default_host``: a folder, or "localhost" if libpq was
    compiled that way."""

    participant: str
    parameters: Mapping[str, str]
    resolved: Mapping[str, str]
    default_host: str

    @property
    def has_password(self) -> bool:
        """Whether the dsn, or the service that it names, has a password. A password in PGPASSWORD does not
        count, since a password file has precedence over it."""
        if "password" in self.parameters:
            return True
        return self.resolved.get("password") not in {None, os.environ.get("PGPASSWORD")}

    def for_libpq(self, *, options: str = "", **more: str) -> str:
        """A connection string with ``more`` parameters added, and with ``options`` for the server after its
        own options. Never print it."""
        if options:
            more["options"] = f"{self.resolved.get('options', '')} {options}".strip()
        return make_conninfo("", **{**self.parameters, **more})

    def __repr__(self) -> str:
        return f"Address({self.participant!r})"


def read_dsn(participant: str, dsn: str) -> Conninfo:
    """Parse and complete ``dsn``. Raises ``ParticipantMisconfigured``, without the password in the message,
    if libpq cannot read it or no driver can use it."""
    _refuse_other_schemes(participant, dsn)
    given = _parse(participant, dsn)
    if key := key_without_value(dsn, given):
        raise ParticipantMisconfigured(
            participant, f"its dsn has no value for {key}: write {key}='', or leave {key} out"
        )
    wanted = _complete(participant, given, "sslmode").get("target_session_attrs", "any")
    resolved = _complete(participant, given, "target_session_attrs")
    _check_database(participant, resolved.get("dbname", ""))
    judge(participant, given, resolved, secret_port=port_may_be_password(dsn))
    # With an address that is none libpq gets to the end of its checks, and does not connect; with a password
    # it reads no password file, of which it would warn once more.
    _complete(participant, {**given, "host": "", "port": "", "password": "-"}, "hostaddr")
    if len((resolved.get("hostaddr") or resolved["host"]).split(",")) > 1:
        wanted = "read-write"
    elif wanted not in {"read-write", "primary", "any"}:
        raise ParticipantMisconfigured(
            participant, f"target_session_attrs={wanted!r} asks for a standby; only a primary can prepare"
        )
    given["target_session_attrs"] = resolved["target_session_attrs"] = wanted
    return Conninfo(participant, given, resolved, _default_host())


def _parse(participant: str, dsn: str) -> dict[str, str]:
    """The parameters of the dsn itself."""
    if misplaced_at(dsn):
        raise ParticipantMisconfigured(participant, MISPLACED_AT)
    try:
        options = Parser.parse(dsn.encode())
    except UnicodeEncodeError:
        raise ParticipantMisconfigured(participant, "its dsn is not text in UTF-8") from None
    except OperationalError as error:
        # Without its cause: libpq quotes the part that it did not understand.
        raise ParticipantMisconfigured(participant, why_unreadable(dsn, str(error))) from None
    return _decoded(participant, options)


def _decoded(participant: str, options: list[ConninfoOption]) -> dict[str, str]:
    """The values of ``options``, without those that have none."""
    values = {}
    for option in options:
        if option.val is None:
            continue
        key = option.keyword.decode()
        try:
            values[key] = option.val.decode()
        except UnicodeDecodeError:
            variable = keywords().get(key)
            also = f" (or {variable} of the environment)" if variable else ""
            raise ParticipantMisconfigured(
                participant, f"the {key} of its dsn{also} is not text in UTF-8"
            ) from None
    return values


def _check_database(participant: str, name: str) -> None:
    if is_connection_string(name):
        raise ParticipantMisconfigured(
            participant,
            "the dbname of its dsn is a connection string itself, which psql accepts, but libpq takes for the"
            " name of a database: use that string as the dsn",
        )


def _default_host() -> str:
    """The host to which libpq connects if no host is named. Only a connection object shows it; an object
    whose connection was refused before it began suffices."""
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
        f"its dsn begins with {other[0]!r}, which libpq does not accept as a URI: remove {drop!r}, and name"
        f" the driver in participants.{participant}.driver",
    )


def _complete(participant: str, given: Mapping[str, str], but: str) -> dict[str, str]:
    """All parameters with which libpq would connect, except the one called ``but``."""
    conninfo = make_conninfo("", **{**given, but: _NO_VALUE})
    refused = PGconn.connect_start(conninfo.encode())
    try:
        message = refused.error_message.decode("utf-8", "replace").strip()
        options = refused.info
    finally:
        refused.finish()
    if f'"{_NO_VALUE}"' not in message:
        raise ParticipantMisconfigured(participant, f"its dsn cannot be used: {message}")
    completed = _decoded(participant, options)
    compiled = {option.keyword.decode(): option.compiled for option in options}
    kept = {key: value for key, value in completed.items() if value.encode() != compiled[key]}
    return {**kept, **{key: completed.get(key, "") for key in ("sslmode", "host", "port")}}
