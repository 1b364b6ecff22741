"""The outbox: messages that a branch publishes, which are visible exactly if the branch has committed.

``publish`` is called in a branch, and writes in the branch's own transaction. With a key it first takes an
advisory lock that lasts until that transaction has ended, prepared or not: so the ids of one key, which are
drawn under the lock, have the order in which their transactions commit. Only undoubt's own roles may call it:
any other role could send messages in the application's name. The relay reads and deletes the rows as one of
these roles."""

from __future__ import annotations

from alembic import op

revision = "p006"
down_revision = "p005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_outbox (
            id bigint generated always as identity primary key,
            dedupe_id text not null unique,
            topic text not null,
            key text,
            payload bytea not null,
            headers jsonb not null,
            published_at timestamptz not null default clock_timestamp()
        )
        """
    )
    op.execute("create index undoubt_outbox_topic on undoubt.undoubt_outbox (topic, id)")
    op.execute(
        """
        create function undoubt.publish(dedupe_id text, topic text, key text, payload bytea, headers text)
            returns bigint
            language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
            as $$
                declare drawn bigint;
                begin
                    if $3 is not null then
                        perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(
                            pg_catalog.format('undoubt outbox %L %L', $2, $3), 0));
                    end if;
                    insert into undoubt.undoubt_outbox as o (dedupe_id, topic, key, payload, headers)
                    values ($1, $2, $3, $4, $5::pg_catalog.jsonb) returning o.id into drawn;
                    return drawn;
                end
            $$
        """
    )
    _grant()


def _grant() -> None:
    # ALTER DEFAULT PRIVILEGES may have granted all three to other roles. The roles that may draw a history
    # are undoubt's.
    op.execute("revoke execute on function undoubt.publish(text, text, text, bytea, text) from public")
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
                          where c.oid in ('undoubt.undoubt_outbox'::pg_catalog.regclass,
                                          'undoubt.undoubt_outbox_id_seq'::pg_catalog.regclass)
                            and a.grantee <> c.relowner
                         union
                         select a.grantee from pg_catalog.pg_proc as p
                          cross join pg_catalog.aclexplode(p.proacl) as a
                          where p.oid = 'undoubt.publish(text, text, text, bytea, text)'
                                          ::pg_catalog.regprocedure
                            and a.grantee <> p.proowner)
            loop
                execute pg_catalog.format('revoke all on undoubt.undoubt_outbox from %I', role);
                execute pg_catalog.format(
                    'revoke all on sequence undoubt.undoubt_outbox_id_seq from %I', role);
                execute pg_catalog.format(
                    'revoke all on function undoubt.publish(text, text, text, bytea, text) from %I', role);
            end loop;
            for role in
                select r.rolname
                  from pg_catalog.pg_proc as p
                 cross join pg_catalog.aclexplode(p.proacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where p.oid = 'undoubt.history()'::pg_catalog.regprocedure and a.grantee <> p.proowner
            loop
                execute pg_catalog.format(
                    'grant execute on function undoubt.publish(text, text, text, bytea, text) to %I', role);
                execute pg_catalog.format('grant select, delete on undoubt.undoubt_outbox to %I', role);
            end loop;
        end $$
        """
    )


def downgrade() -> None:
    op.execute("drop function undoubt.publish(text, text, text, bytea, text)")
    op.execute("drop table undoubt.undoubt_outbox")
