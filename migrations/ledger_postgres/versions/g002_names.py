"""The secret from which the keys of sessions are derived, a mark of sessions with keys, and the causes of
aborts.

Existing sessions have no keys: their gids have no tags, as long as these sessions last.

Revision ID: g002
Revises: g001
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "g002"
down_revision = "g001"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table undoubt_ledger.secret (        -- only for the ledger's own role
        only_row boolean primary key default true check (only_row),
        secret bytea not null check (octet_length(secret) = 32)
    )
    """,
    "revoke all on undoubt_ledger.secret from public",
    "alter table undoubt_ledger.session add column tagged boolean not null default false",
    "alter table undoubt_ledger.decision add column cause text not null default ''",
    """
    create table undoubt_ledger.doomed (        -- used until there is a decision
        session bigint,
        seq bigint,
        cause text not null,
        primary key (session, seq)
    )
    """,
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    op.get_bind().execute(
        sa.text("insert into undoubt_ledger.secret (secret) values (:secret)"),
        {"secret": secrets.token_bytes(32)},
    )


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
