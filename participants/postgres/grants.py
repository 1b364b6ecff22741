"""The smallest set of rights with which a role can do undoubt's part in a database.

Everything else that undoubt asks of a server is given to PUBLIC, by PostgreSQL or by undoubt's own tables.
The rights of the application itself, on its own tables, are the application's affair."""

from __future__ import annotations

import getpass

from undoubt.participants.postgres.dsn import read_dsn
from undoubt.participants.postgres.sql import identifier
from undoubt.participants.settings import ParticipantSettings


def grants(participant: str, settings: ParticipantSettings, *, protocol: str) -> list[str]:
    """One statement each, for the role that the dsn names, to be run by the owner of database and tables, and
    by whoever administers the roles; repeated, they change nothing. ``protocol`` is what transactions are
    committed by. Connects to nothing. Raises ``ParticipantRefused`` if the dsn cannot be read.
    """
    resolved = read_dsn(participant, settings.dsn).resolved
    user = resolved.get("user") or getpass.getuser()
    role, database = identifier(user), identifier(resolved.get("dbname") or user)
    statements = [
        f"GRANT CONNECT ON DATABASE {database} TO {role};",
        f"GRANT EXECUTE ON FUNCTION undoubt.history() TO {role};",
    ]
    if protocol == "3pc":
        statements += [
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON undoubt.undoubt_branch TO {role};",
            f"GRANT SELECT ON undoubt.undoubt_note, undoubt.undoubt_commit TO {role};",
        ]
    return statements + [
        f"GRANT {identifier(owner)} TO {role};" for owner in settings.owners if owner != user
    ]
