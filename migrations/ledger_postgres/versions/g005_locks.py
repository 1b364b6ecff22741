"""Distributed locks: one row for each lock that is held.

Revision ID: g005
Revises: g004
"""

from __future__ import annotations

from alembic import op

revision = "g005"
down_revision = "g004"
branch_labels = None
depends_on = None

TABLES = (
    "alter table undoubt_ledger.ledger add column next_token bigint not null default 1",
    "alter table undoubt_ledger.ledger add column token_incarnation bigint not null default 1",
    """
    create table undoubt_ledger.lock (
        name text collate "C" primary key,
        version bigint not null,                -- drawn from next_token for each change: never twice
        sessions bigint[] not null,             -- one element for each request
        entries text not null                   -- the requests as JSON: see postgres/locks.py
    )
    """,
    "create index lock_sessions on undoubt_ledger.lock using gin (sessions)",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
