"""Finds the roles that could change the meaning of the tables and functions in a schema of undoubt.

The owner of a database can create a schema ``undoubt`` before undoubt does, with a view in place of a table,
or a function that does something else: a session that reads or calls them runs foreign code with its own
rights. So a schema is believed, and used, only if its owner and the owners of its objects are trusted, and no
other role can create objects there or put a trigger on its tables.
https://www.postgresql.org/docs/current/ddl-priv.html.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from undoubt.participants.plural import plural
from undoubt.participants.sql import identifier, literal, names


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema of undoubt, with those of its objects that statements of undoubt use."""

    name: str
    tables: tuple[str, ...]
    functions: tuple[str, ...] = ()
    precious: bool = False
    """Its data exists nowhere else: an operator is never advised to drop it."""


PARTICIPANT = Schema(
    "undoubt",
    (
        "participant_migration",
        "undoubt_agent",
        "undoubt_branch",
        "undoubt_commit",
        "undoubt_history",
        "undoubt_lock",
        "undoubt_note",
        "undoubt_outbox",
    ),
    ("current_history", "guard_lock", "history", "is_noted", "note_agent", "note_commit", "publish"),
)
LEDGER = Schema(
    "undoubt_ledger",
    (
        "act",
        "clock",
        "decision",
        "doomed",
        "heuristic",
        "key",
        "ledger",
        "lock",
        "migration",
        "move",
        "precommitted",
        "secret",
        "session",
        "unfinished",
    ),
    precious=True,
)

_FAULTS = """
with ours as (
    select n.oid, n.nspname::pg_catalog.text as name, n.nspowner, n.nspacl
      from pg_catalog.pg_namespace as n where n.nspname operator(pg_catalog.=) {schema}
),
held as (
    select c.oid, c.relowner, c.relacl, c.relkind, c.relpersistence,
           ours.name operator(pg_catalog.||) '.' operator(pg_catalog.||) c.relname::pg_catalog.text as name
      from ours
      join pg_catalog.pg_class as c on c.relnamespace operator(pg_catalog.=) ours.oid
           and c.relname operator(pg_catalog.=) any ({tables})
),
power as (
    select 'owner' as kind, ours.name, ours.nspowner as role from ours
    union all
    select 'create', ours.name, a.grantee
      from ours cross join pg_catalog.aclexplode(ours.nspacl) as a
     where a.privilege_type operator(pg_catalog.=) 'CREATE'
    union all
    select 'object', held.name, held.relowner from held
    union all
    select 'trigger', held.name, a.grantee
      from held cross join pg_catalog.aclexplode(held.relacl) as a
     where a.privilege_type operator(pg_catalog.=) 'TRIGGER'
    union all
    select 'reference', held.name, a.grantee
      from held cross join pg_catalog.aclexplode(held.relacl) as a
     where a.privilege_type operator(pg_catalog.=) 'REFERENCES'
    union all
    select 'reference', held.name, a.grantee
      from held
      join pg_catalog.pg_attribute as t on t.attrelid operator(pg_catalog.=) held.oid
     cross join pg_catalog.aclexplode(t.attacl) as a
     where a.privilege_type operator(pg_catalog.=) 'REFERENCES'
    union all
    select 'referenced', held.name, c.relowner
      from held
      join pg_catalog.pg_constraint as k on k.confrelid operator(pg_catalog.=) held.oid
           and k.contype operator(pg_catalog.=) 'f'
      join pg_catalog.pg_class as c on c.oid operator(pg_catalog.=) k.conrelid
    union all
    select 'triggered', held.name, p.proowner
      from held
      join pg_catalog.pg_trigger as t on t.tgrelid operator(pg_catalog.=) held.oid and not t.tgisinternal
      join pg_catalog.pg_proc as p on p.oid operator(pg_catalog.=) t.tgfoid
    union all
    select 'object',
           ours.name operator(pg_catalog.||) '.' operator(pg_catalog.||) p.proname::pg_catalog.text,
           p.proowner
      from ours
      join pg_catalog.pg_proc as p on p.pronamespace operator(pg_catalog.=) ours.oid
           and p.proname operator(pg_catalog.=) any ({functions})
)
select distinct power.kind, power.name,
       case when power.role operator(pg_catalog.=) 0 then 'PUBLIC'
            else pg_catalog.pg_get_userbyid(power.role)::pg_catalog.text end as role
  from power
 where not exists (select from pg_catalog.pg_roles as r
                    where r.oid operator(pg_catalog.=) power.role
                      and (r.rolsuper or r.rolname operator(pg_catalog.=) session_user
                           or r.rolname operator(pg_catalog.=) any ({owners})))
union all
select 'shape', held.name, ''
  from held
 where held.relkind operator(pg_catalog.<>) 'r' or held.relpersistence operator(pg_catalog.<>) 'p'
    or exists (select from pg_catalog.pg_trigger as t
                where t.tgrelid operator(pg_catalog.=) held.oid and not t.tgisinternal
                  and (t.tgtype::pg_catalog.int4 operator(pg_catalog.&) 2) operator(pg_catalog.=) 2)
    or exists (select from pg_catalog.pg_rewrite as w where w.ev_class operator(pg_catalog.=) held.oid)
 order by 1, 2, 3
"""


def faults_query(schema: Schema, owners: Sequence[str]) -> str:
    """A query for the untrusted roles that could change the meaning of ``schema``: one row each (kind, name,
    role), no row if the schema is to be believed or does not exist. Trusted are superusers, the login role of
    the session, and ``owners``."""
    return (
        _FAULTS.replace("{schema}", literal(schema.name))
        .replace("{tables}", names(schema.tables))
        .replace("{functions}", names(schema.functions))
        .replace("{owners}", names(owners))
        .strip()
    )


class Power(enum.StrEnum):
    """A power over a schema, or over an object in it."""

    OWNER = "owner"
    OBJECT = "object"
    """The role owns a table or a function in it."""
    CREATE = "create"
    TRIGGER = "trigger"
    REFERENCE = "reference"
    """The role may create foreign keys that refer to a table in it. The server looks up each value with the
    rights of that table's owner, and an implicit cast from a type of the role runs with these rights
    (src/backend/utils/adt/ri_triggers.c)."""
    REFERENCED = "referenced"
    """The role owns a table with such a foreign key."""
    TRIGGERED = "triggered"
    """The role owns the function of a trigger on a table in it."""
    SHAPE = "shape"
    """No role's power: a view or an unlogged table is in place of a table, or a table has a rule or a BEFORE
    trigger, which may suppress its rows."""


OWNING = frozenset({Power.OWNER, Power.OBJECT, Power.TRIGGERED})
OF_OWNERS = frozenset({Power.CREATE, Power.TRIGGER, Power.REFERENCE})
"""Powers that an owner has anyway."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason not to believe a schema: ``role`` (PUBLIC: every role) has ``power`` over ``name``."""

    power: Power
    name: str
    role: str

    @property
    def what(self) -> str:  # noqa: PLR0911 - a line per power
        who = "every role" if self.role == "PUBLIC" else f"role {self.role}"
        match self.power:
            case Power.OWNER:
                return f"schema {self.name} belongs to {who}"
            case Power.OBJECT:
                return f"{self.name} belongs to {who}"
            case Power.CREATE:
                return f"{who} may create in schema {self.name}"
            case Power.TRIGGER:
                return f"{who} may put triggers on {self.name}"
            case Power.REFERENCE:
                return f"{who} may put foreign keys on {self.name}"
            case Power.REFERENCED:
                return f"a foreign key of a table that belongs to {who} refers to {self.name}"
            case Power.TRIGGERED:
                return f"{self.name} has a trigger whose function belongs to {who}"
            case Power.SHAPE:
                return f"{self.name} is not a plain logged table, or has rules or BEFORE triggers"


def faults_of(rows: Iterable[tuple[str, str, str]]) -> tuple[Fault, ...]:
    """The faults from the rows of :func:`faults_query`, those of the schema's owner first. Powers that follow
    from ownership are left out: an owner may create objects, triggers and foreign keys, and may have granted
    these rights to itself."""
    found = [Fault(Power(kind), name, role) for kind, name, role in rows]
    owning = {(fault.name, fault.role) for fault in found if fault.power in {Power.OWNER, Power.OBJECT}}
    left = [
        fault for fault in found if fault.power not in OF_OWNERS or (fault.name, fault.role) not in owning
    ]
    return tuple(sorted(left, key=lambda fault: fault.power is not Power.OWNER))


@dataclass(frozen=True, slots=True)
class Mend:
    """What is wrong with a schema, what to do about it, and the line that does it; empty if no line does."""

    what: str
    how: str
    line: str


def mends(schema: Schema, faults: Sequence[Fault], owners: Sequence[str], setting: str) -> list[Mend]:
    """What an operator has to do about each of ``faults``. ``setting`` is the configuration key of
    ``owners``."""
    drop = f"DROP SCHEMA {schema.name} CASCADE;"
    found = []
    anew = (
        "then drop the schema, if nothing was ever decided there, or restore a backup of its database"
        if schema.precious
        else f"then {drop} and migrate"
    )
    if owning := [fault for fault in faults if fault.power in OWNING]:
        roles = sorted({*owners, *(fault.role for fault in owning)})
        how = (
            "put the line into the configuration if this role runs the migrations; if you do not know the"
            f" role, look at what it has created there, {anew}"
        )
        line = f"{setting} = [{', '.join(map(_quoted, roles))}]"
        found.append(Mend("; ".join(fault.what for fault in owning), how, line))
    for fault in faults:
        grantee = fault.role if fault.role == "PUBLIC" else identifier(fault.role)
        if fault.power is Power.CREATE:
            line = f"REVOKE CREATE ON SCHEMA {schema.name} FROM {grantee};"
            found.append(Mend(fault.what, "take that right away", line))
        elif fault.power is Power.TRIGGER:
            line = f"REVOKE TRIGGER ON {fault.name} FROM {grantee};"
            found.append(Mend(fault.what, "take that right away", line))
        elif fault.power is Power.REFERENCE:
            line = f"REVOKE REFERENCES ON {fault.name} FROM {grantee};"
            found.append(Mend(fault.what, "take that right away", line))
        elif fault.power is Power.REFERENCED:
            found.append(Mend(fault.what, "undoubt did not create it: look at it, and drop it", ""))
        elif fault.power is Power.SHAPE:
            line = "" if schema.precious else drop
            then = anew if schema.precious else "then drop and migrate"
            found.append(Mend(fault.what, f"undoubt did not create it: look at it, {then}", line))
    return found


def refusal(schema: Schema, faults: Sequence[Fault]) -> str:
    """The message of an error: the first of ``faults``, and the number of the others."""
    more = f", and {plural(len(faults) - 1, 'more reason')}" if len(faults) > 1 else ""
    return (
        f"schema {schema.name} is not trusted: {faults[0].what}{more}; its code would run with undoubt's"
        " rights"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
