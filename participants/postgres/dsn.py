"""Connection strings: libpq's keywords and URIs, turned into what each driver reads.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING. Parsed by libpq itself (through
psycopg), so that what works for ``psql`` works here. Nothing here connects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from participants.errors import ParticipantRefused

_CLIENT_ONLY = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "replication",
        "requirepeer",
        "require_auth",
        "sslcertmode",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
"""Of libpq's own connection handling; asyncpg would send them to the server as settings."""

_PROMISES = {
    "channel_binding": {"disable", "prefer"},
    "gssencmode": {"disable", "prefer"},
    "replication": {"false", "off", "no", "0"},
    "require_auth": set[str](),
    "requirepeer": set[str](),
    "sslcertmode": {"disable", "allow"},
}
"""What a dsn may ask for that asyncpg cannot give, with the values that ask for nothing. To ignore the others
would connect with less safety than was asked for."""

UNREADABLE = (
    "its dsn is neither a URI (postgresql://user@host/database) nor a list of keywords (host=… dbname=…);"
    " characters like '@', ':', '/' and '#' inside a part of a URI must be percent-encoded"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A dsn's parameters by their names in libpq. The password is among them if the dsn had one."""

    participant: str
    parameters: Mapping[str, str]

    @property
    def has_password(self) -> bool:
        return "password" in self.parameters

    def for_libpq(self, **more: str) -> str:
        """A connection string with ``more`` parameters in it. Never print it."""
        return make_conninfo("", **{**self.parameters, **more})

    def for_asyncpg(self) -> str:
        """A URI of what asyncpg understands. Never print it. Raises ``ParticipantRefused`` if the dsn asks
        for what asyncpg cannot promise."""
        given = dict(self.parameters)
        for key, harmless in _PROMISES.items():
            if key in given and given[key] not in harmless:
                raise ParticipantRefused(
                    self.participant,
                    f"its dsn asks for {key}={given[key]}, which the driver asyncpg cannot promise;"
                    " the driver psycopg can",
                )
        if "hostaddr" in given:
            given["host"] = given.pop("hostaddr")
        kept = {key: value for key, value in given.items() if key not in _CLIENT_ONLY}
        return f"postgresql://?{urlencode(kept, quote_via=quote)}"

    def __repr__(self) -> str:
        return f"Address({self.participant!r})"


def read_dsn(participant: str, dsn: str) -> Address:
    """Raises ``ParticipantRefused``, without the password, if libpq cannot read ``dsn``."""
    try:
        given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    except ProgrammingError:
        # libpq quotes the part that it did not understand, which may be a part of the password.
        raise ParticipantRefused(participant, UNREADABLE) from None
    if not all(port.isdigit() for port in given.get("port", "").split(",") if port):
        raise ParticipantRefused(participant, UNREADABLE)  # "user:a/password@host" has port "a"
    if "," in given.get("hostaddr", given.get("host", "")):
        given["target_session_attrs"] = "read-write"
    elif given.get("target_session_attrs") not in {None, "read-write", "primary", "any"}:
        raise ParticipantRefused(
            participant,
            f"target_session_attrs={given['target_session_attrs']!r} asks for a standby;"
            " only a primary can prepare",
        )
    return Address(participant, given)
