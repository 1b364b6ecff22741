"""Who may finish whose branches.

Only the role that prepared a branch may finish it, or a superuser: the role that was in force at PREPARE,
which after ``SET LOCAL ROLE`` is not the one that logged in. A member of that role may become it with SET
ROLE; since version 16 only if the membership has the option SET, while INHERIT does not matter for it
(https://www.postgresql.org/docs/current/sql-grant.html, "GRANT on Roles").
"""

from __future__ import annotations

from participants.postgres.sql import identifier

SET_OPTION_SINCE_VERSION = 160000


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
