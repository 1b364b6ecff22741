"""The rows of last-agent commit: one for each COMMIT until the ledger has it, and tombstones.

``note_agent`` is called in the branch that commits, together with its COMMIT. Any role may call it, since a
branch may end in any role; the row's key is the hash of a proof, which only the coordinator and the ledger
can make, so that no other process can write the row of a transaction. Tombstones are written, and rows are
read and deleted, as one of undoubt's own roles."""

from __future__ import annotations

from alembic import op

revision = "p007"
down_revision = "p006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_agent (
            key bytea primary key,
            decision text not null check (decision in ('commit', 'abort')),
            ledger text not null,
            txid text not null,
            branches bytea not null,
            written_at timestamptz not null default clock_timestamp()
        )
        """
    )
    # Without ON CONFLICT: under a tombstone it fails, and the COMMIT with it.
    op.execute(
        """
        create function undoubt.note_agent(proof bytea, ledger text, txid text, branches bytea) returns void
            language sql volatile security definer set search_path = pg_catalog, pg_temp
            as $$
                insert into undoubt.undoubt_agent (key, decision, ledger, txid, branches)
                values (pg_catalog.sha256($1), 'commit', $2, $3, $4)
            $$
        """
    )
    op.execute("grant execute on function undoubt.note_agent(bytea, text, text, bytea) to public")
    _grant()


def _grant() -> None:
    # ALTER DEFAULT PRIVILEGES may have granted the table to other roles. The roles that may draw a history
    # are undoubt's.
    op.execute(
        """
        do $$
        declare role name;
        begin
            for role in
                select r.rolname
                  from pg_catalog.pg_class as c
                 cross join pg_catalog.aclexplode(c.relacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where c.oid = 'undoubt.undoubt_agent'::pg_catalog.regclass and a.grantee <> c.relowner
            loop
                execute pg_catalog.format('revoke all on undoubt.undoubt_agent from %I', role);
            end loop;
            for role in
                select r.rolname
                  from pg_catalog.pg_proc as p
                 cross join pg_catalog.aclexplode(p.proacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where p.oid = 'undoubt.history()'::pg_catalog.regprocedure and a.grantee <> p.proowner
            loop
                execute pg_catalog.format(
                    'grant select, insert, delete on undoubt.undoubt_agent to %I', role);
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    op.execute("drop function undoubt.note_agent(bytea, text, text, bytea)")
    op.execute("drop table undoubt.undoubt_agent")
