"""The secret from which the keys of sessions are derived, which sessions have one, and why something was
aborted.

Sessions of before have no keys: their gids carry no tags, and they end as such.

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
    create table undoubt_ledger.secret (        -- for the ledger's own role alone
        only_row boolean primary key default true check (only_row),
        secret bytea not null check (octet_length(secret) = 32)
    )
    """,
    "revoke all on undoubt_ledger.secret from public",
    "alter table undoubt_ledger.session add column tagged boolean not null default false",
    "alter table undoubt_ledger.decision add column cause text not null default ''",
    """
    create table undoubt_ledger.doomed (        -- of interest while there is no decision
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
