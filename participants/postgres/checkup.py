"""Checks what keeps a database from taking part in transactions, or could; each finding comes from its
answers.

https://www.postgresql.org/docs/current/runtime-config-resource.html (max_prepared_transactions),
runtime-config-wal.html (fsync, full_page_writes, synchronous_commit), routine-vacuuming.html (the age of a
database's oldest transaction id). Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from undoubt.participants.errors import ParticipantError, ParticipantUnavailable
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Protocol
from undoubt.participants.postgres.admin_pool import SESSIONS_MAX, AdminPool
from undoubt.participants.postgres.roles import (
    membership,
    missing_grant,
    owned,
    owning,
    reset_role,
    signal_grant,
)
from undoubt.participants.postgres.session import NoAnswer, NotSent, Row, ServerError, ServerParameters
from undoubt.participants.postgres.session_setup import ledger_name
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import (
    CHECK_BY_SQLSTATE,
    NO_RIGHT,
    participant_error,
    pooler_refusal,
)
from undoubt.participants.schema_trust import PARTICIPANT, Fault, mends
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.sql import identifier

FULL = 0.8
"""The share of ``max_prepared_transactions`` in use from which there is no room for a burst."""

_SYNCHRONOUS = frozenset({"on", "remote_apply"})


class Checkup:
    """Checks one participant. ``ledger_id`` is the ledger whose branches and sessions count as our own."""

    def __init__(self, admin_pool: AdminPool, settings: ParticipantSettings, ledger_id: str) -> None:
        self._admin_pool = admin_pool
        self._settings = settings
        self._ledger_id = ledger_id

    async def findings(self, protocol: Protocol) -> Sequence[Finding]:
        """The results of all checks, see :meth:`undoubt.participants.contract.Participant.check`."""
        try:
            [row] = await self._admin_pool.read(query("health"))  # first, since it replaces lost sessions
            intro = await self._open_a_transaction()
            roles = await self._admin_pool.read(
                owned("seen_roles", "seen.role", "$3").replace("{membership}", membership(intro.version)),
                f"undoubt:{self._ledger_id}:",
                ledger_name(self._ledger_id),
                list(self._settings.owners),
            )
            chosen = await self._admin_pool.read(
                owned("set_roles", "chosen.role", "$1"), list(self._settings.owners)
            )
            faults = await self._admin_pool.faults()
            history = await self._read_history() if row["reports_history"] and not faults else None
        except ParticipantError as error:
            return [self._not_reached(error)]
        return [
            self._ok("reach", f"PostgreSQL {row['version']}, a primary, as role {row['me']}"),
            self._pooler(intro),
            self._connections(row, intro),
            self._prepared_max(row, protocol),
            *self._durability(row),
            *self._schema(faults, row),
            self._evidence(row, history),
            *([] if faults else [self._history(row, history)]),
            self._vacuum(row),
            self._superuser(row),
            self._set_role(row, chosen, intro),
            *self._roles(row, roles, intro),
            self._cancelling(row, roles, intro),
            *([] if faults else self._tables(row, protocol)),
            *([] if faults else [self._last_agent(row, history, protocol)]),
        ]

    async def _read_history(self) -> Row | None:
        """The row of query ``history``; None if this role, or the owner of undoubt's tables, has no right to
        read it."""
        try:
            [row] = await self._admin_pool.ask(query("history"))
        except ServerError as error:
            if error.sqlstate != NO_RIGHT:
                raise participant_error(self._admin_pool.participant, error) from error
            return None
        return row

    async def _open_a_transaction(self) -> ServerParameters:
        """Begin and end a transaction, which fails behind a pooler in statement mode; returns the session's
        parameters."""
        timeout_s = self._admin_pool.timeout_s
        async with self._admin_pool.session() as session:
            try:
                await session.script("begin", timeout_s=timeout_s)
                await session.script("rollback", timeout_s=timeout_s)
            except (ServerError, NoAnswer, NotSent) as error:
                name = self._admin_pool.participant
                raise pooler_refusal(name, str(error)) or participant_error(name, error) from error
            return session.intro

    def _not_reached(self, error: ParticipantError) -> Finding:
        what = str(error).removeprefix(f"participant {self._admin_pool.participant!r}: ")
        if isinstance(error, ParticipantUnavailable):
            return self._found(
                "reach",
                Severity.UNREACHABLE,
                what,
                "branches that are prepared there wait until it answers; no other participant is delayed",
            )
        return self._found(CHECK_BY_SQLSTATE.get(error.sqlstate or "", "reach"), Severity.PROBLEM, what)

    def _schema(self, faults: Sequence[Fault], row: Row) -> Iterator[Finding]:
        """The findings about schema ``undoubt``: a role with power over it could run any code with the rights
        of this role."""
        rights = "a superuser's rights" if row["superuser"] else f"the rights of {row['login']}"
        for mend in mends(PARTICIPANT, faults, self._settings.schema_owners, "schema_owners"):
            yield self._found(
                "schema",
                Severity.PROBLEM,
                mend.what,
                f"code in it would run with {rights}, so nothing in schema {PARTICIPANT.name} is used:"
                " three-phase commit is refused, and a COMMIT whose answer is lost is more often"
                f" OutcomeUnknown. {mend.how[0].upper()}{mend.how[1:]}",
                mend.line or None,
            )
        if not faults:
            there = "belongs to roles that are trusted" if row["has_schema"] else "is not there"
            yield self._ok("schema", f"schema {PARTICIPANT.name} {there}")

    def _pooler(self, intro: ServerParameters) -> Finding:
        if intro.pooler and not self._settings.pooler:
            return self._found(
                "pooler",
                Severity.WARNING,
                "a connection pooler is in front of the server, but pooler is not set",
                "undoubt has detected it, and keeps no settings beyond a transaction there. Put the line into"
                " the configuration, and read in docs/roles-and-poolers.md what a pooler costs",
                "pooler = true",
            )
        if intro.pooler:
            most = self._settings.connections_max + SESSIONS_MAX
            return self._ok(
                "pooler",
                "a connection pooler is in front of the server, as the settings say; its pool must have more"
                f" than {most} servers for each process like this one",
            )
        if self._settings.pooler:
            return self._ok(
                "pooler", "no pooler is detected, but pooler is set: branches cost more than necessary"
            )
        return self._ok("pooler", "the server itself answers")

    def _connections(self, row: Row, intro: ServerParameters) -> Finding:
        if intro.pooler:
            return self._ok("connections", "the pooler limits them")
        most, wanted = row["connections_max"], self._settings.connections_max
        room = most - SESSIONS_MAX
        what = f"connections_max = {wanted}, and {SESSIONS_MAX} for undoubt itself, of the server's {most}"
        if wanted <= room:
            return self._ok("connections", what)
        return self._found(
            "connections",
            Severity.WARNING,
            what,
            "every process may open this many: a burst would be refused. Lower it in the participant's table,"
            " or raise the server's max_connections",
            f"connections_max = {max(room, 1)}",
        )

    def _prepared_max(self, row: Row, protocol: Protocol) -> Finding:
        most, used, wanted = row["prepared_max"], row["prepared"], self._settings.connections_max
        line = f"max_prepared_transactions = {max(row['connections_max'], 2 * used)}"
        how = "put the line into postgresql.conf and restart the server"
        if most == 0 and protocol is Protocol.LAST:
            return self._ok(
                "max_prepared_transactions",
                "max_prepared_transactions is 0: it takes part as the agent of last-agent commit only",
            )
        if most == 0:
            return self._found(
                "max_prepared_transactions",
                Severity.PROBLEM,
                "max_prepared_transactions is 0",
                f"nothing can be prepared: every transaction over several databases aborts; {how}. Without"
                " a restart: the agent of last-agent commit need not prepare (docs/last-agent.md)",
                line,
            )
        what = f"{used} of max_prepared_transactions = {most} in use"
        if used >= FULL * most:
            why = f"when all are in use, PREPARE fails and transactions abort; {how}"
            return self._found("max_prepared_transactions", Severity.PROBLEM, what, why, line)
        if most < wanted:
            why = f"fewer than connections_max = {wanted}: transactions of a burst would abort; {how}"
            return self._found("max_prepared_transactions", Severity.WARNING, what, why, line)
        return self._ok("max_prepared_transactions", what)

    def _durability(self, row: Row) -> Iterator[Finding]:
        for name in ("fsync", "full_page_writes"):
            if row[name] == "off" and self._settings.temporary:
                yield self._ok(
                    name, f"{name} is off: temporary = true allows that a crash of the machine loses data"
                )
            elif row[name] == "off":
                yield self._found(
                    name,
                    Severity.PROBLEM,
                    f"{name} is off",
                    "after a crash of the machine prepared or committed data may be lost or damaged",
                    f"ALTER SYSTEM SET {name} = on; SELECT pg_catalog.pg_reload_conf();",
                )
            else:
                yield self._ok(name, f"{name} is on")
        level = row["synchronous_commit"]
        if level in _SYNCHRONOUS:
            yield self._ok("synchronous_commit", f"synchronous_commit is {level}")
        else:
            yield self._found(
                "synchronous_commit",
                Severity.WARNING,
                f"synchronous_commit is {level}",
                "undoubt raises it for its own branches; other commits of the application may be lost in a"
                " crash or a failover",
                _reset(row),
            )

    def _evidence(self, row: Row, history: Row | None) -> Finding:
        missing = ", ".join(row["unreported"])
        if not missing:
            return self._ok("evidence", "the server reports its system identifier and timeline")
        if history is not None and history["history"] is not None:
            return self._ok("evidence", "its database reports its history")
        return self._found(
            "evidence",
            Severity.WARNING,
            f"role {row['login']} may not execute {missing}",
            "so prepared branches have no evidence: a branch that disappears is a heuristic hazard, although"
            " its outcome could be known",
            f"GRANT EXECUTE ON FUNCTION {missing} TO {identifier(row['login'])};",
        )

    def _history(self, row: Row, history: Row | None) -> Finding:
        if history is None:
            what = "its database draws no history ids"
            if row["reports_history"]:
                what = (
                    f"{row['me']} may not execute undoubt.current_history(), or the owner of that function"
                    " has no right to read the server's system identifier and timeline"
                )
            return self._found(
                "history",
                Severity.WARNING,
                what,
                "two standbys that are promoted independently, or a clone of the server, cannot be"
                " distinguished from it: they would be asked for the outcome of a branch that has"
                " disappeared",
                None
                if row["reports_history"]
                else f"undoubt participants migrate {self._admin_pool.participant}",
            )
        if history["may_draw"]:
            drawn = "is drawn with the next connection" if history["history"] is None else "is known"
            return self._ok("history", f"the history id of its database {drawn}")
        return self._found(
            "history",
            Severity.PROBLEM if history["history"] is None else Severity.WARNING,
            f"{row['me']} may not draw a history id",
            "after a failover or a restore it is not known to which server a transaction id belongs: a branch"
            " that disappears is a heuristic hazard, although its outcome could be known",
            f"GRANT EXECUTE ON FUNCTION undoubt.history() TO {identifier(row['login'])};",
        )

    def _vacuum(self, row: Row) -> Finding:
        age, limit, prepared = row["frozen_age"], row["freeze_max_age"], row["prepared_age"]
        what = f"the oldest transaction id is {age:,} transactions old"
        if prepared is None or prepared < limit:
            return self._ok("vacuum", what)
        return self._found(
            "vacuum",
            Severity.PROBLEM,
            what,
            f"a prepared transaction of this server has held vacuum back for {prepared:,} transactions, more"
            f" than autovacuum_freeze_max_age = {limit:,}: finish it before the server refuses writes",
            "SELECT gid, prepared, owner, database FROM pg_catalog.pg_prepared_xacts"
            " ORDER BY pg_catalog.age(transaction) DESC;",
        )

    def _superuser(self, row: Row) -> Finding:
        if not row["superuser"]:
            return self._ok("owners", f"role {row['login']} is not a superuser")
        named = ", ".join(self._settings.owners)
        if named:
            return self._ok("owners", f"superuser {row['login']} finishes the branches of {named}")
        return self._found(
            "owners",
            Severity.PROBLEM,
            f"undoubt works there as superuser {row['login']}, and owners is not set",
            "PostgreSQL lets a superuser end the prepared transactions of every role, whatever their names."
            f" Give undoubt an ordinary role (undoubt participants grants {self._admin_pool.participant}"
            " prints its rights), or name the roles that prepare its branches in the participant's table",
            'owners = ["app"]',
        )

    def _set_role(self, row: Row, chosen: Sequence[Row], intro: ServerParameters) -> Finding:
        if not chosen:
            return self._ok("set_role", "no setting of the database, or of the role, chooses another role")
        [first, *_] = chosen
        database, login = row["here"] if first["of_database"] else None, row["login"]
        what = f"sessions of {login} begin as role {first['role']}, which a setting chooses"
        if first["of_login"] and first["owned"]:
            return self._ok("set_role", what)
        mend = reset_role(database, login if first["of_login"] else None)
        if first["owned"]:
            why = "the owner of the database can change it: branches are prepared as that role"
        elif first["of_login"] or database is None or intro.pooled:
            why = "it prepares no branches of ours, so every branch that would begin there is refused"
            return self._found("set_role", Severity.PROBLEM, what, why, mend)
        else:
            why = (
                "the owner of the database can change it. Branches begin as the login role in any case;"
                " sessions that the application opens itself do not, and undoubt refuses to adopt them"
            )
        return self._found("set_role", Severity.WARNING, what, why, mend)

    def _roles(self, row: Row, roles: Sequence[Row], intro: ServerParameters) -> Iterator[Finding]:
        me, login = row["me"], row["login"]
        if dropped := sum(role["prepared"] for role in roles if role["becomes"] is None):
            yield self._found(
                "roles",
                Severity.PROBLEM,
                f"the role that prepared {dropped} of the branches that are in doubt has been dropped",
                "only a superuser can finish them",
            )
        known = [role for role in roles if role["becomes"] is not None]
        finished = [role for role in known if self._finishes(role, row, intro)]
        for role in known:
            if role in finished:
                continue
            seen = []
            if role["prepared"]:
                seen.append(f"prepared {role['prepared']} of the branches that are in doubt")
            if role["sessions"]:
                seen.append(f"has {role['sessions']} sessions that may prepare branches")
            finding = self._found(
                "roles",
                Severity.PROBLEM,
                f"{login} does not finish the branches of role {role['role']}, which {' and '.join(seen)}",
                *self._way_out(role, row, intro),
            )
            yield replace(finding, unproved=not role["owned"])
        if len(finished) == len(roles):
            others = ", ".join(role["role"] for role in finished)
            finishes = f" and those of {others}" if others else ""
            yield self._ok("roles", f"{me} can finish its own branches{finishes}")

    @staticmethod
    def _finishes(role: Row, row: Row, intro: ServerParameters) -> bool:
        if row["superuser"] or not role["owned"]:
            return bool(role["owned"])
        return bool(role["becomes"]) and not intro.pooled

    def _cancelling(self, row: Row, roles: Sequence[Row], intro: ServerParameters) -> Finding:
        mute = [role["role"] for role in roles if role["owned"] and role["sessions"] and not role["cancels"]]
        if not mute or row["superuser"]:
            return self._ok("cancelling", "waiting statements of this ledger's sessions can be cancelled")
        return self._found(
            "cancelling",
            Severity.WARNING,
            f"{row['me']} may not cancel statements of {', '.join(mute)}",
            "the coordinator of a transaction ends its deadlocks across databases; if that process cannot, no"
            " other process can in this role, and they last until lock_timeout",
            signal_grant(row["login"], intro.version),
        )

    def _tables(self, row: Row, protocol: Protocol) -> Iterator[Finding]:
        """The findings about undoubt's tables. Three-phase commit keeps its states in the participant, and
        cannot begin without them; the other protocols use the tables if they exist."""
        name = self._admin_pool.participant
        if row["old_tables"]:
            yield self._found(
                "tables",
                Severity.PROBLEM if protocol is Protocol.THREE_PHASE else Severity.WARNING,
                "undoubt's tables in its database are those of version 0.1.0",
                "notes of commits in these tables could be forged by every role, and are no longer written: a"
                " COMMIT of a single database whose answer is lost stays unknown, and three-phase commit"
                " cannot begin",
                f"undoubt participants migrate {name}",
            )
        elif protocol is Protocol.THREE_PHASE:
            yield self._states(row)

    def _last_agent(self, row: Row, history: Row | None, protocol: Protocol) -> Finding:
        """Whether it could be the agent of last-agent commit. Only a participant that cannot prepare has to
        be."""
        why, line = self._no_agent(row, history)
        if not why:
            return self._ok("last_agent", "it can be the agent of last-agent commit")
        what = f"it cannot be the agent of last-agent commit: {why}"
        if protocol is not Protocol.LAST:
            return self._ok("last_agent", what)
        return self._found(
            "last_agent",
            Severity.WARNING,
            what,
            "transactions that name it as their agent cannot begin",
            line,
        )

    def _no_agent(self, row: Row, history: Row | None) -> tuple[str, str | None]:
        if not row["has_agent"]:
            line = f"undoubt participants migrate {self._admin_pool.participant}"
            return "its database has no table for the decisions", line
        if denied := row["agent_denied"]:
            rights = ", ".join(denied).upper()
            return (
                f"{row['me']} may not {rights} there",
                f"GRANT {rights} ON undoubt.undoubt_agent TO {identifier(row['login'])};",
            )
        if history is None or history["history"] is None:
            return "its database has drawn no history id, so a failover could not be noticed", None
        return "", None

    def _states(self, row: Row) -> Finding:
        name = self._admin_pool.participant
        if not row["has_states"]:
            return self._found(
                "tables",
                Severity.PROBLEM,
                "its database has no tables for three-phase commit",
                "no transaction can be committed by that protocol there",
                f"undoubt participants migrate {name}",
            )
        if not row["states_denied"]:
            return self._ok("tables", f"{row['me']} may write the states of three-phase commit")
        missing = ", ".join(row["states_denied"])
        return self._found(
            "tables",
            Severity.PROBLEM,
            f"{row['me']} may not {missing}",
            "it can neither begin a three-phase commit nor finish one that was interrupted",
            " ".join(_grants(row["states_denied"], row["login"])),
        )

    def _way_out(self, role: Row, row: Row, intro: ServerParameters) -> tuple[str, str | None]:
        unknown = (
            f"it may be an unrelated role that uses the names of this ledger. If {role['role']} does prepare"
            " branches of yours, say so: otherwise they stay in doubt after a crash, and keep their locks"
        )
        if role["strange"] and not role["owned"]:
            return (
                f"roles that are not superusers administer {role['role']}, and may grant it to any role: do"
                " not trust it. Prepare your branches in a role that a superuser has created",
                None,
            )
        if row["superuser"]:
            known = self._settings.owners
            return unknown, owning(role["role"], row["login"], intro.version, superuser=True, owners=known)
        if intro.pooled:
            return (
                "behind a pooler SET ROLE and COMMIT PREPARED could be sent to two servers: run recovery with"
                " a dsn that leads to the server itself, or as that role",
                None,
            )
        why = "after a crash they stay in doubt and keep their locks" if role["owned"] else unknown
        if role["superuser"]:
            why += (
                f". {role['role']} is a superuser, and so would be {row['login']}: better run recovery as"
                f" {role['role']}"
            )
        return why, missing_grant(role["role"], row["login"], intro.version)

    def _ok(self, check: str, what: str) -> Finding:
        return self._found(check, Severity.OK, what)

    def _found(
        self, check: str, severity: Severity, what: str, why: str = "", fix: str | None = None
    ) -> Finding:
        return Finding(self._admin_pool.participant, check, severity, what, why, fix)


def _grants(denied: Sequence[str], login: str) -> Iterator[str]:
    """The statements that give ``login`` what it lacks, each ``<privilege> on <table>``."""
    by_table: dict[str, list[str]] = {}
    for each in denied:
        privilege, _, table = each.partition(" on ")
        by_table.setdefault(table, []).append(privilege.upper())
    for table, privileges in by_table.items():
        yield f"GRANT {', '.join(privileges)} ON {table} TO {identifier(login)};"


def _reset(row: Row) -> str:
    """The statement that undoes a low synchronous_commit, by the place where it was set."""
    role, database = f"ROLE {identifier(row['login'])}", f"DATABASE {identifier(row['here'])}"
    match row["synchronous_commit_source"]:
        case "user":
            return f"ALTER {role} RESET synchronous_commit;"
        case "database":
            return f"ALTER {database} RESET synchronous_commit;"
        case "database user":
            return f"ALTER {role} IN {database} RESET synchronous_commit;"
        case _:
            return "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_catalog.pg_reload_conf();"
