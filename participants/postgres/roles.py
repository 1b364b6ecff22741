"""Who may finish whose branches.

Only the role that prepared a branch may finish it, or a superuser: the role that was in force at PREPARE,
which after ``SET LOCAL ROLE`` is not the one that logged in. A member of that role may become it with SET
ROLE; since version 16 only if the membership has the option SET, while INHERIT does not matter for it
(https://www.postgresql.org/docs/current/sql-grant.html, "GRANT on Roles").

Whose branches are ours is another question than who may finish them: a superuser may finish everybody's. Ours
are those of the role that logs in, of roles that were granted to it, and of those that the settings name."""

from __future__ import annotations

import functools
import getpass
import json
from collections.abc import Sequence
from dataclasses import replace

from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Protocol
from undoubt.participants.postgres.dsn import read_dsn
from undoubt.participants.postgres.session import ServerParameters
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.sql import identifier, literal

SET_OPTION_SINCE_VERSION = 160000
ADMIN_OF_ITSELF_BEFORE_VERSION = 150000
"""Before it, a role might grant itself to others: being granted to somebody proves nothing about it."""


def membership(version: int) -> str:
    """What ``pg_has_role`` has to be asked to learn whether SET ROLE would be allowed."""
    return "SET" if version >= SET_OPTION_SINCE_VERSION else "MEMBER"


def signal_grant(login: str, version: int) -> str:
    """The statement after which ``login`` may cancel statements of other roles. Here INHERIT does matter."""
    option = " WITH INHERIT TRUE" if version >= SET_OPTION_SINCE_VERSION else ""
    return f"GRANT pg_signal_backend TO {identifier(login)}{option};"


def missing_grant(owner: str, login: str, version: int) -> str:
    """The statement after which a session of ``login`` may become ``owner``.

    A membership that is there already keeps the options that a new GRANT does not name: so SET is named, and
    INHERIT, which somebody may rely on, is not.
    """
    option = " WITH SET TRUE" if version >= SET_OPTION_SINCE_VERSION else ""
    return f"GRANT {identifier(owner)} TO {identifier(login)}{option};"


def owning(owner: str, login: str, version: int, *, superuser: bool, owners: Sequence[str]) -> str:
    """What makes ``owner`` a role whose branches are ours: a GRANT or, for a ``superuser``, who may end
    everybody's anyway, the line of the configuration with it and all the ``owners`` of now."""
    if superuser:
        return f"owners = {json.dumps([*owners, owner], ensure_ascii=False)}"
    return missing_grant(owner, login, version)


def owned(statement: str, owner: str, owners: str) -> str:
    """The query ``statement`` with its ``{owned}``: whether ``owner`` prepares branches of ours, and
    ``{strange}``: whether strangers may grant it. ``owner`` and ``owners``, the settings', are SQL
    expressions of types name and text[]."""
    strange = query("strange").replace("{role}", owner)
    return query(statement).replace("{owned}", is_owned(owner, owners)).replace("{strange}", strange)


def reset_role(database: str | None, login: str | None) -> str:
    """The statement that takes back ``ALTER … SET role``: of ``database``, of ``login``, of that in this, or
    of all."""
    if login is None:
        return f"ALTER {'ROLE ALL' if database is None else 'DATABASE ' + identifier(database)} RESET role;"
    where = "" if database is None else f" IN DATABASE {identifier(database)}"
    return f"ALTER ROLE {identifier(login)}{where} RESET role;"


@functools.lru_cache(maxsize=64)
def guard_role(role: str, owners: tuple[str, ...], *, pooled: bool, superuser: bool) -> str:
    """The statement that fails unless the branch ends in ``role``, that of its session, or in another one
    whose branches can be finished. Behind a pooler only a superuser can finish another role's, without
    becoming it."""
    named = f"array[{', '.join(map(literal, owners))}]"
    if not pooled:
        allowed = is_owned("current_user", named)
    elif superuser:
        allowed = f"current_user::pg_catalog.text operator(pg_catalog.=) any ({named}::pg_catalog.text[])"
    else:
        allowed = "false"
    return fill("guard_role", role=role).replace("{allowed}", allowed)


def beginning(participant: str, intro: ServerParameters, owners: Sequence[str]) -> ServerParameters:
    """``intro`` with the role that branches of its session begin with: what the session was set to, if that
    role prepares branches of ours.

    Else the one that logs in, if the database's setting chose the other: whoever owns a database decides what
    a superuser begins with there. Raises ``ParticipantRefused`` if the dsn or the login role's own setting
    chose it, since that one was wanted; and behind a pooler, where COMMIT PREPARED runs as what its server
    began with."""
    if intro.role_owned:
        return intro
    if intro.role_of_database and not intro.pooled:
        return replace(intro, role=intro.login, role_owned=True, as_login=True)
    if intro.role_of_database:
        mend = reset_role(intro.database, None)
    else:
        mend = owning(intro.role, intro.login, intro.version, superuser=intro.superuser, owners=owners)
    raise ParticipantRefused(
        participant,
        f"its sessions begin as role {intro.role!r}, which prepares no branches of ours: recovery would not"
        f" touch them. Run or set: {mend}",
    )


def is_owned(owner: str, owners: str) -> str:
    """The condition that ``{owned}`` stands for in :func:`owned`."""
    return query("owned").replace("{owners}", owners).replace("{owner}", owner)


def grants(participant: str, settings: ParticipantSettings, *, protocol: Protocol) -> list[str]:
    """The smallest set of rights with which a role can do undoubt's part in a database: everything else that
    undoubt asks of a server is given to PUBLIC, and the rights of the application on its own tables are the
    application's affair. One statement each, for the role that the dsn names, to be run by the owner of
    database and tables, and by whoever administers the roles; repeated, they change nothing. ``protocol`` is
    what transactions are committed by. Connects to nothing. Raises ``ParticipantRefused`` if the dsn cannot
    be read."""
    resolved = read_dsn(participant, settings.dsn).resolved
    user = resolved.get("user") or getpass.getuser()
    role, database = identifier(user), identifier(resolved.get("dbname") or user)
    statements = [
        f"GRANT CONNECT ON DATABASE {database} TO {role};",
        f"GRANT EXECUTE ON FUNCTION undoubt.history() TO {role};",
    ]
    if protocol is Protocol.THREE_PHASE:
        statements += [
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON undoubt.undoubt_branch TO {role};",
            f"GRANT SELECT ON undoubt.undoubt_note, undoubt.undoubt_commit TO {role};",
        ]
    return statements + [
        f"GRANT {identifier(owner)} TO {role};" for owner in settings.owners if owner != user
    ]
