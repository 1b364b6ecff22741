"""Translates a dsn into asyncpg's arguments, or refuses what asyncpg cannot do; reads password files.

asyncpg reads URIs by its own rules: it takes the first part of an IPv6 address for the host, and sends
unknown keys to the server as settings. So asyncpg gets a list of hosts, and every key is translated here,
ignored if that does no harm, or refused by name."""

from __future__ import annotations

import logging
import os
import random
import re
import socket
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from undoubt.participants.errors import ParticipantMisconfigured
from undoubt.participants.postgres.dsn import Conninfo
from undoubt.participants.postgres.dsn_values import SOCKET_OPTIONS, refused

log = logging.getLogger(__name__)

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_TLS_VERSIONS = {
    "ssl_min_protocol_version": "minimum_version",
    "ssl_max_protocol_version": "maximum_version",
}
_TLS = ("sslmode", "sslnegotiation", "sslpassword", *_TLS_VERSIONS)

_HANDLED = frozenset(
    {
        *(
            "host",
            "hostaddr",
            "port",
            "user",
            "password",
            "passfile",
            "dbname",
            "options",
            "krbsrvname",
            "gsslib",
        ),
        *("target_session_attrs", "load_balance_hosts", "keepalives", *SOCKET_OPTIONS, *_TLS, *_FILES),
    }
)
_HARMLESS = frozenset(
    {
        *("application_name", "fallback_application_name", "client_encoding", "connect_timeout"),
        *("max_protocol_version", "replication", "service", "servicefile", "sslcompression"),
    }
)
"""Keys that asyncpg does not get: undoubt sets them itself, libpq has used them already, or they do no
harm."""

_PROMISES = {
    "channel_binding": {"disable", "prefer"},
    "gssencmode": {"disable", "prefer"},
    "gssdelegation": {"0"},
    "min_protocol_version": {"3.0"},
    "sslcertmode": {"allow"},
    "sslsni": {"1"},
}
"""Keys that asyncpg does not support, with the values that need no support. If other values were ignored, the
connection would be less safe than the dsn demands."""

_ENVIRONMENT = {"PGDATESTYLE": "datestyle", "PGTZ": "timezone", "PGGEQO": "geqo"}
"""Environment variables that libpq sends as settings with each connection, unless their value is ``default``
(``EnvironmentOptions`` in src/interfaces/libpq/fe-connect.c). They are not parameters of a dsn."""

_PASSWORD_LINE = re.compile(r"((?:[^\\:]|\\.)*):" * 4 + "(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def connect_arguments(address: Conninfo, password: str | None) -> dict[str, Any]:
    """Keyword arguments of ``asyncpg.connect``. Never print them. Reads files. Raises
    ``ParticipantMisconfigured`` if the dsn demands something that asyncpg cannot promise."""
    given = address.resolved
    for key, value in given.items():
        if key not in _HANDLED | _HARMLESS and value not in _PROMISES.get(key, ()):
            raise _refused(address, f"{key}={value}" if key in _PROMISES else key)
    user = given["user"]
    database = given.get("dbname", user)
    hosts, passwords = _hosts(address), {password or given.get("password")}
    if passwords == {None}:
        passwords = {
            password_for(given.get("passfile"), name, port, database, user, default_host=address.default_host)
            for name, _, port in hosts
        }
    if len(passwords) > 1:
        raise ParticipantMisconfigured(
            address.participant,
            "the password file has different passwords for its hosts, but the driver asyncpg would send one"
            " password to all hosts; the driver psycopg does not",
        )
    if given.get("load_balance_hosts", "disable") != "disable":
        random.shuffle(hosts)
    arguments: dict[str, Any] = {
        # Always set: without hosts asyncpg tries folders that libpq does not use, among them /tmp, where any
        # local user may listen and receive the password.
        "host": [reached for _, reached, _ in hosts],
        "port": [int(port) for _, _, port in hosts],
        "user": user,
        "database": database,
        # Not None: asyncpg would then look for a password itself, and send it to every host.
        "password": passwords.pop() or "",
        "server_settings": _server_settings(given),
        "target_session_attrs": given["target_session_attrs"],
        **{key: given[key] for key in ("krbsrvname", "gsslib") if key in given},
    }
    return {**arguments, **_tls(address, given)}


def _server_settings(given: Mapping[str, str]) -> dict[str, str]:
    settings = {"options": given["options"]} if given.get("options") else {}
    for variable, setting in _ENVIRONMENT.items():
        value = os.environ.get(variable)
        if value is not None and value.lower() != "default":
            settings[setting] = value
    return settings


def _hosts(address: Conninfo) -> list[tuple[str, str, str]]:
    """For each host: its name, the address or folder to connect to, its port."""
    given = address.resolved
    addresses = (given.get("hostaddr") or given["host"]).split(",")
    names = given["host"].split(",") if given["host"] else addresses
    ports = given["port"].split(",")
    if len(ports) == 1:
        ports *= len(addresses)
    reached = [place or name or address.default_host for place, name in zip(addresses, names, strict=True)]
    for host in reached:
        if not host:
            raise ParticipantMisconfigured(
                address.participant,
                "its dsn names no host, and libpq does not report its default: write"
                " host=/folder/of/the/socket or host=localhost",
            )
    return list(zip(names, reached, (port or "5432" for port in ports), strict=True))


def _tls(address: Conninfo, given: Mapping[str, str]) -> dict[str, Any]:
    verified = given["sslmode"] == "verify-full"
    if verified and (given.get("hostaddr") or given["host"]) != given["host"]:
        raise _refused(address, "hostaddr together with sslmode=verify-full")
    system = given.get("sslrootcert") == "system"
    files = {key: given[key] for key in _FILES if given.get(key) and not (system and key == "sslrootcert")}
    for key, path in files.items():
        _check_readable(address.participant, key, path)
    if not system:
        more = {key: given[key] for key in _TLS if given.get(key)}
        for key in _TLS_VERSIONS:
            if key in more:
                more[key] = _tls_version(more[key])
        return {"dsn": f"postgresql://?{urlencode({**more, **files}, quote_via=quote)}"}
    # asyncpg takes "system" for the name of a file. With "system" libpq requires verify-full.
    if "sslcrl" in files:
        raise _refused(address, "sslcrl together with sslrootcert=system")
    context = ssl.create_default_context()
    if "sslcert" in files:
        context.load_cert_chain(files["sslcert"], files.get("sslkey"), given.get("sslpassword", ""))
    for key, end in _TLS_VERSIONS.items():
        if given.get(key):
            setattr(context, end, ssl.TLSVersion[_tls_version(given[key]).replace(".", "_")])
    return {"ssl": context, "direct_tls": given.get("sslnegotiation") == "direct"}


def _tls_version(version: str) -> str:
    """``version`` as asyncpg and the module ssl write it; libpq has judged it, and takes any case."""
    return "TLSv" + version[len("TLSv") :]


def _check_readable(participant: str, key: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ParticipantMisconfigured(
            participant, f"its {key} {path!r} cannot be read: {error.strerror}"
        ) from error


def _refused(address: Conninfo, what: str) -> ParticipantMisconfigured:
    return ParticipantMisconfigured(
        address.participant,
        f"its dsn asks for {what}, which the driver asyncpg cannot promise; the driver psycopg can",
    )


def set_keepalive(sock: socket.socket, address: Conninfo) -> None:
    """Set the keepalive options of a TCP socket as libpq does: on unless ``keepalives=0``. Without keepalives
    nothing detects that a host is gone, or that a firewall has dropped the connection. Raises
    ``ParticipantMisconfigured`` for a value that the system does not accept."""
    given = address.resolved
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    if int(given.get("keepalives", "1")):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for key, name in SOCKET_OPTIONS.items():
        option, value = getattr(socket, name, None), int(given.get(key, "0"))
        if option is None or value <= 0:
            continue
        try:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError as error:
            why = f"is not possible for a socket: {error.strerror}"
            raise refused(address.participant, key, given[key], why, address.parameters) from error


def password_for(
    path: str | None, host: str, port: str, database: str, user: str, *, default_host: str
) -> str | None:
    """The password of the first matching line, as libpq reads password files
    (https://www.postgresql.org/docs/current/libpq-pgpass.html); None if there is none. ``path`` None:
    ``PGPASSFILE``, or ``~/.pgpass``. A file that other users may read is not used, as by libpq, and that is
    logged.

    ``default_host`` is libpq's host if no ``host`` is named. In the file that folder, and an empty host, are
    called ``localhost``; any other folder has its own name (passwordFromFile in
    src/interfaces/libpq/fe-connect.c), since in a folder such as ``/tmp`` every local user may listen."""
    file = Path(path or os.environ.get("PGPASSFILE") or "~/.pgpass").expanduser()
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            return None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("password file %s is not used: other users may read it; chmod 0600", file)
            return None
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    wanted = ["localhost" if host in {"", default_host} else host, port, database, user]
    for line in lines:
        match = None if line.startswith("#") else _PASSWORD_LINE.fullmatch(line)
        if match is not None and all(map(_fits, match.groups(), wanted)):
            return _ESCAPED.sub(r"\1", match[5])
    return None


def _fits(pattern: str, value: str) -> bool:
    return pattern == "*" or _ESCAPED.sub(r"\1", pattern) == value
