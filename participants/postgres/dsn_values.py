"""Judges the values of a completed dsn, before a driver gets them.

libpq looks at some values only when it uses them, and a driver may raise any exception for a value that it
does not expect: so a value that cannot be right is refused by the name of its key. Values of the keys with
names for values (``sslmode`` and so on) are judged by libpq itself: see
:func:`undoubt.participants.postgres.dsn.read_dsn`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from undoubt.participants.errors import ParticipantMisconfigured
from undoubt.participants.libpq import PORT_MAX, is_port
from undoubt.participants.postgres.dsn_form import MISPLACED_AT, keywords

FLAGS = ("gssdelegation", "sslcompression", "sslsni")
SOCKET_OPTIONS = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
INTEGERS = ("connect_timeout", "keepalives", *SOCKET_OPTIONS)
REFUSED_VALUE = (ValueError, TypeError, ArithmeticError, LookupError)
"""What a driver raises for a value that it cannot use (UnicodeError is a ValueError)."""

_SECRET = re.compile("password|secret|scram_")
_INTEGER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+[ \t\n\v\f\r]*")
_INT_MAX = 2**31 - 1
_DIGITS = re.compile("[0-9]{1,9}")
_REPLICATION_OFF = frozenset({"false", "off", "no", "0"})
_SOCKET_PATH_BYTES_MAX = 107
"""``sun_path`` of unix(7) without the NUL."""


def judge(
    participant: str, given: Mapping[str, str], resolved: Mapping[str, str], *, secret_port: bool
) -> None:
    """Raise ``ParticipantMisconfigured`` for a value that no driver can use. ``given`` are the parameters of
    the dsn itself; ``resolved`` are all. ``secret_port``: the port may be a password."""
    for key in INTEGERS:
        value = resolved.get(key)
        if value is not None and not (_INTEGER.fullmatch(value) and abs(int(value)) <= _INT_MAX):
            raise refused(participant, key, value, "must be a whole number of 32 bits", given)
    for key in FLAGS:
        if resolved.get(key, "") not in {"", "0", "1"}:
            raise refused(participant, key, resolved[key], "must be 0 or 1", given)
    if resolved.get("replication", "off").lower() not in _REPLICATION_OFF:
        why = "opens a replication connection, in which no transaction can be prepared"
        raise refused(participant, "replication", resolved["replication"], why, given)
    _judge_ports(participant, resolved, secret_port=secret_port)
    _judge_hosts(participant, given, resolved)


def refused(
    participant: str, key: str, value: str, why: str, given: Mapping[str, str]
) -> ParticipantMisconfigured:
    """The error for ``key``, which is not one of a secret."""
    variable = keywords().get(key, "")
    origin = f" (of {variable})" if key not in given and os.environ.get(variable) == value else ""
    return ParticipantMisconfigured(participant, f"its dsn cannot be used: {key}={value!r}{origin} {why}")


def driver_refusal(
    participant: str, error: Exception, resolved: Mapping[str, str], password: str | None
) -> ParticipantMisconfigured:
    """The error if a driver raised ``error``, one of :data:`REFUSED_VALUE`, before it was connected."""
    secrets = {password, *(value for key, value in resolved.items() if _SECRET.search(key))} - {None, ""}
    text = str(error)
    if any(str(secret) in text for secret in secrets):
        text = "for a password"
    return ParticipantMisconfigured(
        participant,
        f"its dsn cannot be used: the driver does not accept a value of it: {type(error).__name__} {text}",
    )


def _judge_ports(participant: str, resolved: Mapping[str, str], *, secret_port: bool) -> None:
    bad = [port for port in resolved["port"].split(",") if port and not _is_port(port)]
    if not bad:
        return
    if "@" in resolved.get("dbname", "") or "@" in resolved["port"]:
        raise ParticipantMisconfigured(participant, MISPLACED_AT)
    what = "the port" if secret_port else f"port {bad[0]}"
    why = f"its dsn cannot be used: {what} is not between 1 and {PORT_MAX}"
    if ":" in bad[0] and not secret_port:
        why += "; the IPv6 address of a URI is written in brackets"
    elif secret_port:
        why += "; a user and a password are followed by '@'"
    raise ParticipantMisconfigured(participant, why)


def _is_port(port: str) -> bool:
    return _DIGITS.fullmatch(port) is not None and is_port(int(port))


def _judge_hosts(participant: str, given: Mapping[str, str], resolved: Mapping[str, str]) -> None:
    names, addresses = resolved["host"].split(","), resolved.get("hostaddr", "").split(",")
    for address in filter(None, addresses):
        if not _is_address(address):
            raise refused(participant, "hostaddr", address, "is not a numeric address", given)
    count, ports = max(len(names), len(addresses)), resolved["port"].split(",")
    names, addresses, ports = (each * count if len(each) == 1 else each for each in (names, addresses, ports))
    for name, address, port in zip(names, addresses, ports, strict=True):
        if "@" in name[1:]:
            raise ParticipantMisconfigured(participant, MISPLACED_AT)
        if name.startswith("@"):
            raise ParticipantMisconfigured(
                participant, "its dsn names an abstract socket (host=@…), which neither driver can reach"
            )
        if not address and (why := _why_unreachable(name, port or "5432")):
            raise refused(participant, "host", name, why, given)


def _why_unreachable(host: str, port: str) -> str:
    """Why no driver can look for ``host``; empty if they can."""
    if host.startswith("/"):
        path = f"{host}/.s.PGSQL.{port}"
        long = len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX
        return f"is too long: a socket's path has at most {_SOCKET_PATH_BYTES_MAX} bytes" if long else ""
    try:
        host.encode("idna")  # as socket.getaddrinfo does
    except UnicodeError:
        return (
            "is not the name of a host: each of its parts, between dots, has 1 to 63 characters; the folder"
            " of a socket begins with '/'"
        )
    return ""


def _is_address(address: str) -> bool:
    """Whether libpq takes it for an address; nothing is asked. The zone of an IPv6 address is not judged."""
    try:
        socket.getaddrinfo(address.partition("%")[0], None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True
