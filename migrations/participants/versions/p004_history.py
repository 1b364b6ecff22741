"""The id of the history of a database: random, and drawn again on each new timeline.

System identifier and timeline do not identify a history: two standbys that were promoted independently have
both in common, and so have clones. ``undoubt.undoubt_history`` has one row, whose id is valid only as long as
system and timeline are those in the row. ``current_history`` returns the id if it is valid, to any role.
``history`` draws a new id if it is not valid. Only undoubt's own roles may call it, since a call in a
transaction that is never committed would block all other calls. The random bytes are those of
``gen_random_uuid()``, which come from the operating system (src/backend/utils/adt/uuid.c)."""

from __future__ import annotations

from alembic import op

revision = "p004"
down_revision = "p003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_history (
            one boolean primary key default true check (one),
            id text not null,
            system bigint,
            timeline text,
            drawn_at timestamptz not null default clock_timestamp()
        )
        """
    )
    op.execute("insert into undoubt.undoubt_history (id) values ('none has been drawn')")
    op.execute(
        """
        create function undoubt.current_history() returns text
            language sql stable security definer set search_path = pg_catalog, pg_temp
            as $$
                select h.id
                  from undoubt.undoubt_history as h, pg_catalog.pg_control_system() as c
                 where case when pg_catalog.pg_is_in_recovery() then false
                            else h.system = c.system_identifier
                                 and h.timeline = pg_catalog.substr(
                                       pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) end
            $$
        """
    )
    op.execute(
        """
        create function undoubt.history() returns void
            language sql volatile security definer set search_path = pg_catalog, pg_temp
            as $$
                update undoubt.undoubt_history as h
                   set id = pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(
                              pg_catalog.uuid_send(pg_catalog.gen_random_uuid())), 1, 9), 'base64'),
                       system = now.system, timeline = now.timeline, drawn_at = pg_catalog.clock_timestamp()
                  from (select c.system_identifier as system,
                               pg_catalog.substr(
                                 pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8
                               ) as timeline
                          from pg_catalog.pg_control_system() as c) as now
                 where (h.system, h.timeline) is distinct from (now.system, now.timeline)
            $$
        """
    )
    _grant_and_draw()


def _grant_and_draw() -> None:
    op.execute("revoke execute on function undoubt.history() from public")
    op.execute("grant execute on function undoubt.current_history() to public")
    # The roles that can write the rows of three-phase commit are undoubt's. The first id is drawn
    # immediately, if the owner may read system identifier and timeline.
    op.execute(
        """
        do $$
        declare writer name;
        begin
            for writer in
                select r.rolname
                  from pg_catalog.pg_class as c
                 cross join pg_catalog.aclexplode(c.relacl) as a
                  join pg_catalog.pg_roles as r on r.oid = a.grantee
                 where c.oid = 'undoubt.undoubt_branch'::pg_catalog.regclass and a.privilege_type = 'INSERT'
                   and a.grantee <> c.relowner
            loop
                execute pg_catalog.format('grant execute on function undoubt.history() to %I', writer);
            end loop;
            if not exists (
                select from unnest(array['pg_control_system()', 'pg_current_wal_lsn()',
                                         'pg_walfile_name(pg_lsn)']) as f
                 where not has_function_privilege('pg_catalog.' || f, 'execute'))
            then
                perform undoubt.history();
            end if;
        end $$
        """
    )


def downgrade() -> None:
    op.execute("drop function undoubt.history()")
    op.execute("drop function undoubt.current_history()")
    op.execute("drop table undoubt.undoubt_history")
