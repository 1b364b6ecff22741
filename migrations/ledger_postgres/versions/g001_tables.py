"""The tables of the PostgreSQL ledger: one row for each session, one row for each decision.

The row of a decision is written once and never changed. Unfinished decisions have a row in another table, so
that finishing one is a deletion there, and leaves no dead row in the large table. The values that change each
second (``clock``) are not in the row that all statements read (``ledger``).

Revision ID: g001
Revises:
"""

from __future__ import annotations

from alembic import op

revision = "g001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    create table undoubt_ledger.ledger (
        only_row boolean primary key default true check (only_row),
        ledger_id text not null,
        incarnation bigint not null default 1,
        next_session bigint not null default 1,
        -- Where the ledger was last. If this differs, the ledger was restored, copied or failed over.
        system bigint not null,
        timeline text not null,
        home text not null  -- database and table, by oid
    )
    """,
    """
    create table undoubt_ledger.clock (
        only_row boolean primary key default true check (only_row),
        time_ms bigint not null default 0,      -- ledger time: advances only while a process leads
        leader text,                            -- the process that advances it and expires sessions
        beat bigint not null default 0,         -- incremented by each change of this row
        led_from_ms bigint not null default 0   -- ledger time at which the leader began
    ) with (fillfactor = 10)
    """,
    """
    create table undoubt_ledger.session (
        id bigint primary key,
        nonce text not null,
        name text not null,
        ttl_ms bigint not null,
        state text not null check (state in ('open', 'closed', 'expired', 'restored', 'dropped')),
        floor bigint not null default 1,
        renewed_ms bigint not null,
        closed_ms bigint,
        check ((state = 'open') = (closed_ms is null))
    ) with (fillfactor = 50)
    """,
    "create index session_open on undoubt_ledger.session (id) where state = 'open'",
    """
    create table undoubt_ledger.decision (
        session bigint,
        seq bigint,
        nonce text not null,
        protocol text not null,
        decision text not null check (decision in ('commit', 'abort')),
        branches text not null,                 -- JSON: [[number, participant, xid, system, timeline], …]
        decided_at float8 not null,             -- seconds since 1970, clock of the deciding process
        coordinator text not null,
        primary key (session, seq)
    )
    """,
    "create index decision_newest on undoubt_ledger.decision (decided_at, session, seq)",
    """
    create table undoubt_ledger.unfinished (
        session bigint,
        seq bigint,
        primary key (session, seq)
    )
    """,
    """
    create table undoubt_ledger.precommitted (  -- used until there is a decision
        session bigint,
        seq bigint,
        nonce text not null,
        protocol text not null,
        branches text not null,
        coordinator text not null,
        primary key (session, seq)
    )
    """,
    """
    create table undoubt_ledger.heuristic (
        gid text primary key,
        session bigint not null,
        seq bigint not null,
        kind text not null,
        decision text,
        found_at float8 not null,
        note text not null,
        forgotten boolean not null default false,
        forgotten_by text not null default ''
    )
    """,
    "create index heuristic_transaction on undoubt_ledger.heuristic (session, seq)",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
