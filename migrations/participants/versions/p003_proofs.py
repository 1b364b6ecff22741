"""Notes that prove a commit: each contains the hash of a proof that only the branch's coordinator knows.

Any role that may connect can call the function that writes a note, since a branch may end in any role. So a
note proves only that its caller knew the proof. It counts if a row of three-phase commit contains the same
hash, or for the coordinator that asks with the proof itself.

Version 0.1.0 wrote transaction id and participant instead, which any role can make up. Its notes still count
for its own rows, which have no hash. Its function is dropped, so that no such note is added."""

from __future__ import annotations

from alembic import op

revision = "p003"
down_revision = "p002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("drop function undoubt.note_commit(text, text)")
    op.execute("revoke select on undoubt.undoubt_commit from public")
    op.execute("alter table undoubt.undoubt_branch add column note bytea")
    op.execute(
        """
        create table undoubt.undoubt_note (
            hash bytea primary key,
            noted_at timestamptz not null default clock_timestamp()
        )
        """
    )
    op.execute("create index undoubt_note_noted_at on undoubt.undoubt_note (noted_at)")
    op.execute(
        """
        create function undoubt.note_commit(proof bytea) returns void
            language sql volatile security definer set search_path = pg_catalog, pg_temp
            as $$
                insert into undoubt.undoubt_note (hash) values (pg_catalog.sha256($1)) on conflict do nothing
            $$
        """
    )
    op.execute(
        """
        create function undoubt.is_noted(proof bytea) returns boolean
            language sql stable security definer set search_path = pg_catalog, pg_temp
            as $$ select exists (select from undoubt.undoubt_note where hash = pg_catalog.sha256($1)) $$
        """
    )
    op.execute("grant execute on function undoubt.note_commit(bytea), undoubt.is_noted(bytea) to public")
    # The roles that can read the rows of three-phase commit have to read the notes as well.
    op.execute(
        """
        do $$
        declare reader name;
        begin
            for reader in
                select r.rolname
                  from pg_catalog.pg_class as c
                 cross join pg_catalog.aclexplode(c.relacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where c.oid = 'undoubt.undoubt_branch'::pg_catalog.regclass and a.privilege_type = 'SELECT'
                   and a.grantee <> c.relowner
            loop
                execute pg_catalog.format(
                    'grant select on undoubt.undoubt_note, undoubt.undoubt_commit to %I', reader);
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    op.execute("drop function undoubt.is_noted(bytea)")
    op.execute("drop function undoubt.note_commit(bytea)")
    op.execute("drop table undoubt.undoubt_note")
    op.execute("alter table undoubt.undoubt_branch drop column note")
    op.execute("grant select on undoubt.undoubt_commit to public")
    op.execute(
        """
        create function undoubt.note_commit(txid text, participant text) returns void
            language sql security definer set search_path = pg_catalog, pg_temp
            as $$ insert into undoubt.undoubt_commit (txid, participant) values ($1, $2) $$
        """
    )
