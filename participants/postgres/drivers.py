"""Which driver a participant's sessions are opened with. Drivers are imported when they are chosen."""

from __future__ import annotations

from undoubt.participants.postgres.connecting import Connector, Handles
from undoubt.participants.settings import ParticipantSettings


def new_connector(
    participant: str, settings: ParticipantSettings, application_name: str, handles: Handles
) -> Connector:
    """Connects nowhere yet."""
    if handles == "async" and settings.driver == "asyncpg":
        from undoubt.participants.postgres.asyncpg_connect import AsyncpgConnector  # noqa: PLC0415

        return AsyncpgConnector(participant, settings, application_name)
    from undoubt.participants.postgres.psycopg_connect import PsycopgConnector  # noqa: PLC0415

    return PsycopgConnector(participant, settings, application_name, handles)
