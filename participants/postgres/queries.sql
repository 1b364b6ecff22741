-- Every statement that undoubt sends to a participant, apart from BEGIN, COMMIT, ROLLBACK and their PREPARED forms.

-- name: introduce
-- Once per connection. Needs no right that PUBLIC lacks by default.
select pg_is_in_recovery() as standby,
       current_database()::text as database,
       current_setting('server_version_num')::int as version,
       current_setting('synchronous_commit') as synchronous_commit,
       extract(epoch from current_setting('lock_timeout')::interval)::float8 as lock_timeout_s,
       extract(epoch from current_setting('idle_in_transaction_session_timeout')::interval)::float8 as idle_timeout_s,
       to_regprocedure('undoubt.note_commit(text,text)') is not null as notes_commits,
       pg_backend_pid() as pid, current_user::text as role,
       (select rolsuper from pg_roles where rolname = session_user) as superuser,
       (select extract(epoch from backend_start)::text from pg_stat_activity
         where pid = pg_backend_pid()) as backend_start

-- name: whereabouts
-- The timeline is in the name of the WAL file of this moment; pg_control_checkpoint() lags behind a promotion.
select system_identifier as system,
       substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline
  from pg_control_system()

-- name: reset
-- What a branch may have left behind in its session. RESET ALL keeps the role; RESET SESSION AUTHORIZATION does not.
reset all; reset session authorization; select pg_advisory_unlock_all(); unlisten *; close all; discard temp

-- name: poll
select coalesce(current_setting('undoubt.tx', true), '') as marker,
       pg_current_xact_id_if_assigned()::text as xid,
       current_setting('transaction_isolation') as isolation

-- name: poll_pooled
-- The same with the whereabouts of the server that the branch is in.
select coalesce(current_setting('undoubt.tx', true), '') as marker,
       pg_current_xact_id_if_assigned()::text as xid,
       current_setting('transaction_isolation') as isolation,
       system_identifier as system,
       substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline
  from pg_control_system()

-- name: guard_prepare
-- Fails with 22P02 and the text "undoubt marker …" unless the marker is still there; the cast cannot be done at
-- plan time, because current_setting() is not immutable, nor be dropped, because set_config() is volatile.
-- application_name is the only parameter of ours whose new value the server reports by itself.
select set_config('application_name',
         case when current_setting('undoubt.tx', true) = {marker}
              then {report} || to_hex(pg_current_xact_id()::text::bigint) || '.'
              else (('undoubt marker ' || coalesce(current_setting('undoubt.tx', true), ''))::int)::text end,
         false),
       case when current_setting('synchronous_commit') in ('off', 'local', 'remote_write')
            then set_config('synchronous_commit', 'on', true) end

-- name: guard_prepare_pooled
-- The same behind a pooler, where the server may be another one than at the last statement.
select set_config('application_name',
         case when current_setting('undoubt.tx', true) = {marker}
              then {report} || to_hex(pg_current_xact_id()::text::bigint) || '.' || system_identifier::text
                   || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
              else (('undoubt marker ' || coalesce(current_setting('undoubt.tx', true), ''))::int)::text end,
         false),
       case when current_setting('synchronous_commit') in ('off', 'local', 'remote_write')
            then set_config('synchronous_commit', 'on', true) end
  from pg_control_system()

-- name: guard_role
-- Before the guard of PREPARE behind a pooler: fails with 22P02 and the text "undoubt role <…>" if the branch ends in
-- another role than sessions there begin with. Who owns it then could only be become by SET ROLE, and that and COMMIT
-- PREPARED would be sent to two servers.
select case when current_user = {role} then 0 else ('undoubt role <' || current_user || '>')::int end

-- name: guard_commit
-- As above, before a plain COMMIT, which needs no transaction id of its own.
select case when current_setting('undoubt.tx', true) = {marker} then 0
            else ('undoubt marker ' || coalesce(current_setting('undoubt.tx', true), ''))::int end,
       case when current_setting('synchronous_commit') in ('off', 'local', 'remote_write')
            then set_config('synchronous_commit', 'on', true) end

-- name: note_commit
-- A row that is visible exactly if the branch committed; nothing for a branch that writes nothing.
select undoubt.note_commit({txid}, {participant})
 where pg_current_xact_id_if_assigned() is not null
   and current_setting('transaction_read_only') = 'off'

-- name: noted
select exists (select from undoubt.undoubt_commit where txid = $1 and participant = $2) as noted

-- name: backend_gone
-- True once the session that $1 (pid) and $2 (its start) name is over, and its transaction with it.
select not exists (select from pg_stat_activity
                    where pid = $1
                      and (backend_start is null or extract(epoch from backend_start)::text = $2::text)) as gone

-- name: in_doubt
-- One row at least: a standby's list is empty, and only the flag tells it from a clean database. {whereabouts} are the
-- two columns of the next query, or nulls where the role may not ask.
select pg_is_in_recovery() as standby, {whereabouts},
       pg_snapshot_xmax(pg_current_snapshot())::text as next_xid,
       p.gid, p.owner::text as owner, p.database::text as database,
       p.transaction::text as xid, age(p.transaction) as age_xids,
       extract(epoch from p.prepared)::float8 as prepared_at,
       greatest(extract(epoch from clock_timestamp() - p.prepared), 0)::float8 as age_s
  from (select) as one
  left join pg_prepared_xacts as p on p.database = current_database()
 order by p.prepared, p.gid

-- name: in_doubt_whereabouts
(select system_identifier from pg_control_system()) as system,
case when not pg_is_in_recovery() then substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end as timeline

-- name: owner
select pg_is_in_recovery() as standby, current_user::text as me, session_user::text as login,
       current_setting('server_version_num')::int as version,
       p.owner::text as owner, p.database::text as database, current_database()::text as here
  from (select) as one
  left join pg_prepared_xacts as p on p.gid = $1

-- name: owners
-- $1 how the names of this ledger's branches begin, $2 how the application_name of its sessions does. Other roles
-- whose branches a session of ours may have to finish: prepared already, or in the making.
with seen as (
  select owner as role, 1 as prepared, 0 as sessions from pg_prepared_xacts
   where database = current_database() and starts_with(gid, $1)
  union all
  select usename, 0, 1 from pg_stat_activity
   where datname = current_database() and starts_with(application_name, $2)
)
select r.rolname::text as role, r.rolsuper as superuser,
       pg_has_role(session_user, r.oid, '{membership}') as becomes,
       pg_has_role(r.oid, 'USAGE') or pg_has_role('pg_signal_backend', 'USAGE') as cancels,
       sum(seen.prepared)::int as prepared, sum(seen.sessions)::int as sessions
  from seen join pg_roles as r on r.rolname = seen.role
 where r.rolname <> current_user
 group by r.rolname, r.rolsuper, r.oid
 order by r.rolname

-- name: health
-- Needs no right that PUBLIC lacks by default.
select current_setting('server_version') as version,
       current_user::text as me, session_user::text as login,
       (select rolsuper from pg_roles where rolname = session_user) as superuser,
       current_setting('max_prepared_transactions')::int as prepared_max,
       (select count(*) from pg_prepared_xacts)::int as prepared,
       current_setting('max_connections')::int
         - current_setting('superuser_reserved_connections')::int as connections_max,
       current_database()::text as here,
       current_setting('synchronous_commit') as synchronous_commit,
       (select source from pg_settings where name = 'synchronous_commit') as synchronous_commit_source,
       current_setting('fsync') as fsync,
       current_setting('full_page_writes') as full_page_writes,
       array(select f from unnest(array['pg_control_system()', 'pg_current_wal_lsn()', 'pg_walfile_name(pg_lsn)']) as f
              where not has_function_privilege(f, 'execute')) as untold,
       to_regclass('undoubt.undoubt_branch') is not null as has_states,
       array(select p from unnest(array['select', 'insert', 'update', 'delete']) as p
              where not has_table_privilege(to_regclass('undoubt.undoubt_branch'), p)) as states_denied,
       (select age(datfrozenxid) from pg_database where datname = current_database()) as frozen_age,
       current_setting('autovacuum_freeze_max_age')::int as freeze_max_age,
       (select max(age(transaction)) from pg_prepared_xacts) as prepared_age

-- name: evidence
-- $1 xid8, $2 system identifier, $3 timeline. CASE keeps an id that another history gave out from being looked up.
select pg_is_in_recovery() as standby,
       case when w.here then pg_xact_status($1::text::xid8) end as status
  from (select case when pg_is_in_recovery() then false
                    else system_identifier = $2::text::bigint
                         and substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) = $3::text end as here
          from pg_control_system()) as w

-- name: waits
-- pg_blocking_pids() says 0 for a prepared blocker: the second half finds it by the lock that it holds. Such locks
-- have no pid; which transaction they belong to is told by the one that each transaction holds on its own id.
with waiter as materialized (
  select l.*, a.application_name, a.backend_xid::text as xid,
         {since_column} as since, pg_blocking_pids(l.pid) as blockers
    from pg_locks as l join pg_stat_activity as a on a.pid = l.pid
   where not l.granted and a.datname = current_database()
)
select w.pid, w.application_name as name, w.xid, extract(epoch from w.since)::text as since, w.mode,
       b.pid as holder_pid, b.application_name as holder_name,
       null as holder_gid, null as holder_mode
  from waiter as w cross join unnest(w.blockers) as blocker(pid) join pg_stat_activity as b on b.pid = blocker.pid
 where w.since is not null
union
select w.pid, w.application_name, w.xid, extract(epoch from w.since)::text, w.mode, null, null, p.gid, h.mode
  from waiter as w
  join pg_locks as h on h.pid is null and h.granted
       and (h.locktype, h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid,
            h.classid, h.objid, h.objsubid)
           is not distinct from
           (w.locktype, w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid,
            w.classid, w.objid, w.objsubid)
  join pg_locks as own on own.pid is null and own.granted and own.locktype = 'transactionid'
       and own.virtualtransaction = h.virtualtransaction
  join pg_prepared_xacts as p on p.transaction = own.transactionid
 where 0 = any (w.blockers) and w.since is not null

-- name: cancel_waiter
-- $1 pid, $2 since when it waits, $3 its 32-bit transaction id or null, $4 its application_name up to a '#', or null for any.
select pg_cancel_backend(a.pid) as sent
  from pg_stat_activity as a join pg_locks as l on l.pid = a.pid and not l.granted
 where a.pid = $1 and a.datname = current_database()
   and extract(epoch from {since_column})::text = $2::text
   and a.backend_xid::text is not distinct from $3::text
   and ($4::text is null or split_part(a.application_name, '#', 1) = $4::text)

-- name: prune
-- A note that stands beside a row of three-phase commit is proof until the row is forgotten.
delete from undoubt.undoubt_commit as c
 where c.noted_at < clock_timestamp() - make_interval(secs => $1)
   and not exists (select from undoubt.undoubt_branch as b
                    where b.txid = c.txid and b.participant = c.participant)

-- name: durable
-- A condition that is always true, and makes the commit of this statement wait for the disk and the standby.
set_config('synchronous_commit', case when current_setting('synchronous_commit') in ('off', 'local', 'remote_write')
           then 'on' else current_setting('synchronous_commit') end, true) <> ''

-- name: state_enlist
-- Three-phase commit's rows. The tag tells whether one was changed.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt)
select {gid}, {txid}, {participant}, {members}, {rule}, 'w', 1, 0
 where {durable}
on conflict (gid) do nothing

-- name: state_elect
-- No row changes if it has taken part in an election as high.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt)
select {gid}, {txid}, {participant}, {members}, {rule}, 'q', {election}::text::bigint, 0
 where {durable}
on conflict (gid) do update set last_elected = excluded.last_elected, changed_at = clock_timestamp()
 where b.last_elected < excluded.last_elected

-- name: state_attempt
update undoubt.undoubt_branch
   set state = {after}, last_attempt = last_elected, changed_at = clock_timestamp()
 where gid = {gid} and last_elected = {election}::text::bigint and position(state::text in {before}) > 0
   and {durable}

-- name: state_bury
-- No row changes if the branch has committed.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt)
select {gid}, {txid}, {participant}, {members}, {rule}, 'a', 1, 0
 where not exists (select from undoubt.undoubt_commit where txid = {txid} and participant = {participant})
   and {durable}
on conflict (gid) do update set state = 'a', changed_at = clock_timestamp()

-- name: state_read
-- $1 gid. What has committed is so whatever the row says.
select pg_is_in_recovery() as standby, b.state::text as state, b.last_elected, b.last_attempt, b.members, b.rule,
       exists (select from undoubt.undoubt_commit as c
                where c.txid = b.txid and c.participant = b.participant) as committed
  from (select) as one left join undoubt.undoubt_branch as b on b.gid = $1

-- name: state_unfinished
select b.gid, b.state::text as state, b.last_elected, b.last_attempt, b.members, b.rule, false as committed
  from undoubt.undoubt_branch as b
 where b.state <> 'a'
   and not exists (select from undoubt.undoubt_commit as c
                    where c.txid = b.txid and c.participant = b.participant)

-- name: state_stale
select gid from undoubt.undoubt_branch
 where changed_at < clock_timestamp() - make_interval(secs => case state when 'a' then $2::float8 else $1::float8 end)

-- name: state_forget
delete from undoubt.undoubt_branch where gid = any ($1::text[])
