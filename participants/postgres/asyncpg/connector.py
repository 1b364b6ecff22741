"""Opens a session with asyncpg, and translates the errors of a failed attempt."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Mapping
from typing import Any

import asyncpg

from undoubt.participants.errors import (
    ParticipantError,
    ParticipantMisconfigured,
    ParticipantRefused,
    ParticipantUnavailable,
)
from undoubt.participants.postgres.asyncpg.dsn import connect_arguments, set_keepalive
from undoubt.participants.postgres.asyncpg.session import TRANSLATED, AsyncpgSession, translate
from undoubt.participants.postgres.connecting import Connector
from undoubt.participants.postgres.dsn import Conninfo
from undoubt.participants.postgres.dsn_values import REFUSED_VALUE, driver_refusal
from undoubt.participants.postgres.sqlstate import pooler_refusal, startup_error, tls_refusal

STATEMENT_CACHE_SIZE = 100


def _reached(arguments: Mapping[str, Any]) -> str:
    """The servers of ``arguments``, which an error of the operating system does not name."""
    pairs = zip(arguments["host"], arguments["port"], strict=True)
    return ", ".join(
        f"socket {host}/.s.PGSQL.{port}" if host.startswith("/") else f"host {host}, port {port}"
        for host, port in pairs
    )


class UniqueNames(asyncpg.Connection):
    """An asyncpg connection with random names for statements and cursors. asyncpg numbers them within its
    process; behind a pooler the names of several processes would conflict in one server process."""

    def _get_unique_id(self, prefix: str) -> str:
        return f"__asyncpg_{prefix}_{secrets.token_hex(8)}__"


class AsyncpgConnector(Connector):
    async def open(self, address: Conninfo, password: str | None, options: str) -> AsyncpgSession:
        reached = ""
        try:
            arguments = await asyncio.to_thread(connect_arguments, address, password)
            reached = _reached(arguments)
            given = arguments["server_settings"]
            given["application_name"] = self.application_name
            if options:
                given["options"] = f"{given.get('options', '')} {options}"
            connection = await asyncpg.connect(
                **arguments,
                timeout=self.settings.connect_timeout_s,
                statement_cache_size=STATEMENT_CACHE_SIZE,
                connection_class=UniqueNames,
            )
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise self.no_primary() from error
        except ssl.SSLError as error:  # before ValueError, since an error of a certificate is both
            raise tls_refusal(self.participant, getattr(error, "verify_message", "") or str(error)) from error
        except asyncpg.ClientConfigurationError as error:
            raise ParticipantMisconfigured(self.participant, f"its dsn cannot be used: {error}") from error
        except TRANSLATED as error:
            raise self._connect_error(error, reached) from error
        except REFUSED_VALUE as error:
            # Without its cause, whose text may show a password.
            raise driver_refusal(self.participant, error, address.resolved, password) from None
        # Enabled only if it is known that no pooler shares the server process: see keep_statements.
        connection._stmt_cache_enabled = False  # type: ignore[attr-defined]
        sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        try:
            set_keepalive(sock, address)
        except BaseException:
            connection.terminate()
            raise
        major, minor, *_ = connection.get_server_version()
        self.version = major * 10_000 + minor
        return AsyncpgSession(connection)

    def _connect_error(self, error: BaseException, reached: str) -> ParticipantError:  # noqa: PLR0911 - a line per meaning
        match error:
            case TimeoutError():
                return self.no_answer_in_time()
            case OSError() if "rejected SSL upgrade" in str(error):
                return tls_refusal(self.participant, "the server does not support SSL")
            case OSError():
                return ParticipantUnavailable(self.participant, f"no connection to {reached}: {error}")
            case asyncpg.PostgresError() if error.sqlstate and not error.sqlstate.startswith("08"):
                return startup_error(self.participant, translate(error))
            case asyncpg.PostgresError() if refusal := pooler_refusal(self.participant, str(error)):
                return refusal
            case asyncpg.PostgresError():
                return ParticipantUnavailable(self.participant, f"no connection: {error}")
            case _:
                return ParticipantRefused(self.participant, f"no connection: {error}")
