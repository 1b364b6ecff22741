"""The highest token of each lock that a branch in this database has shown: what refuses a former holder.

``guard_lock`` is called in a branch, and writes its token in the branch's own transaction: until that ends, a
later holder waits for the row; a former holder, whose token is lower, gets an error, after which its
transaction can only be rolled back. Only undoubt's own roles may call it: any other role could show a token
that is higher than all that will ever be issued."""

from __future__ import annotations

from alembic import op

revision = "p005"
down_revision = "p004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_lock (
            ledger text not null,
            name text not null,
            token bigint not null,
            guarded_at timestamptz not null,
            primary key (ledger, name)
        )
        """
    )
    op.execute(
        """
        create function undoubt.guard_lock(ledger text, name text, token bigint) returns void
            language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
            as $$
                begin
                    insert into undoubt.undoubt_lock as l (ledger, name, token, guarded_at)
                    values ($1, $2, $3, pg_catalog.clock_timestamp())
                    on conflict on constraint undoubt_lock_pkey do update
                       set token = excluded.token, guarded_at = excluded.guarded_at
                     where l.token <= excluded.token;
                    if not found then
                        raise exception using errcode = 'UL001', message = pg_catalog.format(
                            'lock %s: token %s is stale, another holder has shown %s', $2, $3,
                            (select l.token from undoubt.undoubt_lock as l
                              where l.ledger = $1 and l.name = $2));
                    end if;
                end
            $$
        """
    )
    _grant()


def _grant() -> None:
    # ALTER DEFAULT PRIVILEGES may have granted both to other roles. The roles that may draw a history are
    # undoubt's.
    op.execute("revoke execute on function undoubt.guard_lock(text, text, bigint) from public")
    op.execute(
        """
        do $$
        declare role name;
        begin
            for role in
                select r.rolname
                  from pg_catalog.pg_roles as r
                 where r.oid in (
                         select a.grantee from pg_catalog.pg_class as c
                          cross join pg_catalog.aclexplode(c.relacl) as a
                          where c.oid = 'undoubt.undoubt_lock'::pg_catalog.regclass
                            and a.grantee <> c.relowner
                         union
                         select a.grantee from pg_catalog.pg_proc as p
                          cross join pg_catalog.aclexplode(p.proacl) as a
                          where p.oid = 'undoubt.guard_lock(text, text, bigint)'::pg_catalog.regprocedure
                            and a.grantee <> p.proowner)
            loop
                execute pg_catalog.format('revoke all on undoubt.undoubt_lock from %I', role);
                execute pg_catalog.format(
                    'revoke all on function undoubt.guard_lock(text, text, bigint) from %I', role);
            end loop;
            for role in
                select r.rolname
                  from pg_catalog.pg_proc as p
                 cross join pg_catalog.aclexplode(p.proacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where p.oid = 'undoubt.history()'::pg_catalog.regprocedure and a.grantee <> p.proowner
            loop
                execute pg_catalog.format(
                    'grant execute on function undoubt.guard_lock(text, text, bigint) to %I', role);
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    op.execute("drop function undoubt.guard_lock(text, text, bigint)")
    op.execute("drop table undoubt.undoubt_lock")
