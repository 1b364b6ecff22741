"""Computes which role may finish which branches, and the rights that undoubt's role needs.

A branch can be finished only by a superuser or by the role that prepared it: the current role at PREPARE,
which after ``SET LOCAL ROLE`` is not the login role. A member of that role may change to it with SET ROLE;
since version 16 only if the membership has the option SET, while INHERIT does not matter for it
(https://www.postgresql.org/docs/current/sql-grant.html, "GRANT on Roles").

Whether a branch is ours is a separate question, since a superuser may finish the branches of every role. Ours
are the branches of the login role, of roles that were granted to it, and of roles that the settings name."""

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
"""Before this version a role could grant itself to others: such a grant proves nothing about the role."""


def membership(version: int) -> str:
    """The privilege for ``pg_has_role`` that shows whether SET ROLE would be allowed."""
    return "SET" if version >= SET_OPTION_SINCE_VERSION else "MEMBER"


def signal_grant(login: str, version: int) -> str:
    """The statement after which ``login`` may cancel statements of other roles. For this right INHERIT
    matters."""
    option = " WITH INHERIT TRUE" if version >= SET_OPTION_SINCE_VERSION else ""
    return f"GRANT pg_signal_backend TO {identifier(login)}{option};"


def missing_grant(owner: str, login: str, version: int) -> str:
    """The statement after which a session of ``login`` may change to role ``owner``.

    An existing membership keeps the options that a new GRANT does not name: so the statement names SET, but
    not INHERIT, on which other programs may rely.
    """
    option = " WITH SET TRUE" if version >= SET_OPTION_SINCE_VERSION else ""
    return f"GRANT {identifier(owner)} TO {identifier(login)}{option};"


def owning(owner: str, login: str, version: int, *, superuser: bool, owners: Sequence[str]) -> str:
    """The line that makes ``owner`` a role whose branches are ours: a GRANT or, if the login role is a
    ``superuser``, which may end all branches anyway, the line of the configuration with ``owner`` and the
    current ``owners``."""
    if superuser:
        return f"owners = {json.dumps([*owners, owner], ensure_ascii=False)}"
    return missing_grant(owner, login, version)


def owned(statement: str, owner: str, owners: str) -> str:
    """The query ``statement`` with its placeholders filled: ``{owned}``, whether ``owner`` prepares branches
    of ours, and ``{strange}``, whether untrusted roles may grant ``owner``. ``owner`` and ``owners`` (from
    the settings) are SQL expressions of types name and text[]."""
    strange = query("strange").replace("{role}", owner)
    return query(statement).replace("{owned}", is_owned(owner, owners)).replace("{strange}", strange)


def reset_role(database: str | None, login: str | None) -> str:
    """The statement that undoes ``ALTER … SET role``: for ``database``, for ``login``, for ``login`` in
    ``database``, or, if both are None, for all roles."""
    if login is None:
        return f"ALTER {'ROLE ALL' if database is None else 'DATABASE ' + identifier(database)} RESET role;"
    where = "" if database is None else f" IN DATABASE {identifier(database)}"
    return f"ALTER ROLE {identifier(login)}{where} RESET role;"


@functools.lru_cache(maxsize=64)
def guard_role(role: str, owners: tuple[str, ...], *, pooled: bool, superuser: bool) -> str:
    """The statement that fails unless the branch ends in ``role``, the role of its session, or in another
    role whose branches can be finished. Behind a pooler only a superuser, which needs no SET ROLE, can finish
    the branches of another role."""
    named = f"array[{', '.join(map(literal, owners))}]"
    if not pooled:
        allowed = is_owned("current_user", named)
    elif superuser:
        allowed = f"current_user::pg_catalog.text operator(pg_catalog.=) any ({named}::pg_catalog.text[])"
    else:
        allowed = "false"
    return fill("guard_role", role=role).replace("{allowed}", allowed)


def beginning(participant: str, intro: ServerParameters, owners: Sequence[str]) -> ServerParameters:
    """``intro`` with the role in which branches of its session begin: the role that was set for the session,
    if that role prepares branches of ours.

    Otherwise it is the login role, if a setting of the database chose the other role: the owner of a database
    can choose the role in which even a superuser's sessions begin there. Raises ``ParticipantRefused`` if the
    dsn or a setting of the login role chose the role, since that was intended; and behind a pooler, where
    COMMIT PREPARED runs in the role in which its server session began."""
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
        f" finish them. Run or set: {mend}",
    )


def is_owned(owner: str, owners: str) -> str:
    """The SQL condition that replaces ``{owned}`` in :func:`owned`."""
    return query("owned").replace("{owners}", owners).replace("{owner}", owner)


def grants(participant: str, settings: ParticipantSettings, *, protocol: Protocol) -> list[str]:
    """The statements that grant the smallest set of rights that undoubt's role needs in a database: all other
    rights that undoubt uses belong to PUBLIC, and rights on the application's tables are not included. The
    statements grant to the role that the dsn names. The owner of database and tables, and an administrator of
    the roles, have to run them; repeating them changes nothing. ``protocol`` is the commit protocol of the
    transactions. Opens no connection. Raises ``ParticipantRefused`` if the dsn cannot be read."""
    resolved = read_dsn(participant, settings.dsn).resolved
    user = resolved.get("user") or getpass.getuser()
    role, database = identifier(user), identifier(resolved.get("dbname") or user)
    statements = [
        f"GRANT CONNECT ON DATABASE {database} TO {role};",
        f"GRANT EXECUTE ON FUNCTION undoubt.history() TO {role};",
        f"GRANT EXECUTE ON FUNCTION undoubt.guard_lock(text, text, bigint) TO {role};",
        f"GRANT EXECUTE ON FUNCTION undoubt.publish(text, text, text, bytea, text) TO {role};",
        f"GRANT SELECT, DELETE ON undoubt.undoubt_outbox TO {role};",
        f"GRANT SELECT, INSERT, DELETE ON undoubt.undoubt_agent TO {role};",
    ]
    if protocol is Protocol.THREE_PHASE:
        statements += [
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON undoubt.undoubt_branch TO {role};",
            f"GRANT SELECT ON undoubt.undoubt_note, undoubt.undoubt_commit TO {role};",
        ]
    return statements + [
        f"GRANT {identifier(owner)} TO {role};" for owner in settings.owners if owner != user
    ]
