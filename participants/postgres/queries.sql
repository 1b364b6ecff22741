-- Every statement that undoubt sends to a participant, apart from BEGIN, COMMIT, ROLLBACK and their PREPARED forms.
--
-- Most are sent in sessions whose search_path the application has set or, behind a pooler, any other client: an
-- unqualified name or operator there may refer to an object that the owner of the database has created, which would
-- run with the rights of undoubt's role (CVE-2018-1058). So every function, operator, type and table is qualified, and
-- the statements use nothing that PostgreSQL looks up by an unqualified operator: IN, BETWEEN, LIKE, IS DISTINCT FROM,
-- NULLIF, JOIN … USING, CASE x WHEN. OPERATOR() has the precedence of ||, whatever operator it contains: hence the
-- parentheses. tests/house/test_qualified.py reads this file.

-- name: introduce
-- Sent once per connection. Needs no right that PUBLIC lacks by default.
select pg_catalog.pg_is_in_recovery() as standby,
       pg_catalog.current_database()::pg_catalog.text as database,
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as version,
       pg_catalog.current_setting('synchronous_commit') as synchronous_commit,
       pg_catalog.current_setting('max_prepared_transactions') operator(pg_catalog.<>) '0' as prepares,
       extract(epoch from pg_catalog.current_setting('lock_timeout')::pg_catalog.interval)::pg_catalog.float8
         as lock_timeout_s,
       extract(epoch from pg_catalog.current_setting('idle_in_transaction_session_timeout')::pg_catalog.interval)
         ::pg_catalog.float8 as idle_timeout_s,
       pg_catalog.to_regprocedure('undoubt.note_commit(pg_catalog.bytea)') is not null as notes_commits,
       pg_catalog.to_regprocedure('undoubt.current_history()') is not null as reports_history,
       pg_catalog.has_function_privilege('public', 'pg_catalog.pg_current_wal_insert_lsn()', 'execute')
         as reports_position,
       pg_catalog.to_regnamespace('undoubt')::pg_catalog.oid::pg_catalog.int8 as schema_oid,
       pg_catalog.pg_backend_pid() as pid, current_user::pg_catalog.text as role,
       session_user::pg_catalog.text as login, {owned} as role_owned,
       case when pg_catalog.current_setting('server_version_num')::pg_catalog.int4 operator(pg_catalog.>=) 160000
            then exists (select from pg_catalog.pg_roles as r
                          where pg_catalog.pg_has_role(session_user, r.oid, 'SET') and not {each_owned})
            else false end as strays,
       exists (select from pg_catalog.pg_db_role_setting as s
                 join pg_catalog.pg_database as d on d.oid operator(pg_catalog.=) s.setdatabase
                where d.datname operator(pg_catalog.=) pg_catalog.current_database()
                  and s.setrole operator(pg_catalog.=) 0
                  and ('role=' operator(pg_catalog.||) current_user::pg_catalog.text)
                      operator(pg_catalog.=) any (s.setconfig)) as role_of_database,
       (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname operator(pg_catalog.=) session_user)
         as superuser,
       (select extract(epoch from a.backend_start)::pg_catalog.text from pg_catalog.pg_stat_activity as a
         where a.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) as backend_start

-- name: schema
select pg_catalog.to_regnamespace('undoubt')::pg_catalog.oid::pg_catalog.int8 as schema_oid

-- name: take_back_defaults
-- After a migration of a database that had no schema undoubt: the statements that revoke the rights which ALTER DEFAULT
-- PRIVILEGES has granted to other roles.
with given as (
    select 'all on undoubt.' operator(pg_catalog.||) pg_catalog.quote_ident(c.relname) as what, a.grantee
      from pg_catalog.pg_class as c cross join pg_catalog.aclexplode(c.relacl) as a
     where c.relnamespace operator(pg_catalog.=) 'undoubt'::pg_catalog.regnamespace
       and a.grantee operator(pg_catalog.<>) c.relowner
    union
    select 'all on function undoubt.history()', a.grantee
      from pg_catalog.pg_proc as p cross join pg_catalog.aclexplode(p.proacl) as a
     where p.oid operator(pg_catalog.=) 'undoubt.history()'::pg_catalog.regprocedure
       and a.grantee operator(pg_catalog.<>) p.proowner
    union
    select 'all on function undoubt.guard_lock(text, text, bigint)', a.grantee
      from pg_catalog.pg_proc as p cross join pg_catalog.aclexplode(p.proacl) as a
     where p.oid operator(pg_catalog.=) 'undoubt.guard_lock(text, text, bigint)'::pg_catalog.regprocedure
       and a.grantee operator(pg_catalog.<>) p.proowner
    union
    select 'all on function undoubt.publish(text, text, text, bytea, text)', a.grantee
      from pg_catalog.pg_proc as p cross join pg_catalog.aclexplode(p.proacl) as a
     where p.oid operator(pg_catalog.=)
           'undoubt.publish(text, text, text, bytea, text)'::pg_catalog.regprocedure
       and a.grantee operator(pg_catalog.<>) p.proowner
    union
    select 'create on schema undoubt', a.grantee
      from pg_catalog.pg_namespace as n cross join pg_catalog.aclexplode(n.nspacl) as a
     where n.nspname operator(pg_catalog.=) 'undoubt' and a.privilege_type operator(pg_catalog.=) 'CREATE'
       and a.grantee operator(pg_catalog.<>) n.nspowner
)
select 'revoke ' operator(pg_catalog.||) given.what operator(pg_catalog.||) ' from '
       operator(pg_catalog.||) coalesce(pg_catalog.quote_ident(r.rolname), 'public') as line
  from given left join pg_catalog.pg_roles as r on r.oid operator(pg_catalog.=) given.grantee

-- name: same_schema
-- Fails with 22P02 and the text "undoubt schema" unless the schema is still the one that was believed. It is sent
-- before a statement that uses the schema, which the server analyses after this one has run.
select case when pg_catalog.to_regnamespace('undoubt')::pg_catalog.oid operator(pg_catalog.=) {schema}::pg_catalog.oid
            then 0
            else ('undoubt schema ' operator(pg_catalog.||)
                  coalesce(pg_catalog.to_regnamespace('undoubt')::pg_catalog.text, ''))::pg_catalog.int4 end

-- name: history
-- Only if reports_history: the id of this server's history, null if it has to be drawn, and whether this role may draw.
select undoubt.current_history() as history,
       pg_catalog.has_function_privilege('undoubt.history()', 'execute') as may_draw

-- name: current_history
undoubt.current_history()

-- name: draw_history
select undoubt.history()

-- name: draw_durably
set local synchronous_commit to on

-- name: forget_history
update undoubt.undoubt_history set system = null, timeline = null

-- name: drawn_history
select undoubt.current_history()

-- name: whereabouts
-- The timeline is in the name of the current WAL file; pg_control_checkpoint() is out of date after a promotion.
select c.system_identifier as system,
       pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) as timeline
  from pg_catalog.pg_control_system() as c

-- name: reset
-- Removes what a branch may have left in its session. RESET ALL keeps the role; RESET SESSION AUTHORIZATION does not.
-- Fails with 22P02 if a statement is left that was prepared by SQL, even inside a function: DEALLOCATE ALL would remove
-- the driver's statements as well, and only the end of the session removes the others alone. That check is last, so
-- that all the rest is done.
reset all; reset session authorization; select pg_catalog.pg_advisory_unlock_all(); unlisten *; close all; discard temp;
discard sequences; select ('undoubt left ' operator(pg_catalog.||) p.name)::pg_catalog.int4
  from pg_catalog.pg_prepared_statement() as p where p.from_sql

-- name: prepared_by_sql
select p.name from pg_catalog.pg_prepared_statement() as p where p.from_sql

-- name: poll
select coalesce(pg_catalog.current_setting('undoubt.tx', true), '') as marker,
       pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text as xid,
       pg_catalog.current_setting('transaction_isolation') as isolation,
       pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' as read_only

-- name: poll_pooled
-- Like poll, with the identity of the server that the branch is in.
select coalesce(pg_catalog.current_setting('undoubt.tx', true), '') as marker,
       pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text as xid,
       pg_catalog.current_setting('transaction_isolation') as isolation,
       pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'on' as read_only, {whereabouts}

-- name: guard_deferred
-- Sent before any guard: deferred constraints of the application then run before its session is checked. Otherwise they
-- would run in PREPARE or COMMIT itself, where they could undo what a guard has set, or change what a guard reports.
set constraints all immediate

-- name: guard_durable
-- Columns of both guards: the server waits for its synchronous standbys, and sends a warning if it did not. {local} is
-- true for this transaction only; it is false in a session that undoubt has opened, so that COMMIT PREPARED runs with
-- the same settings.
case when pg_catalog.current_setting('synchronous_commit')
          operator(pg_catalog.=) any (array['off', 'local', 'remote_write'])
     then pg_catalog.set_config('synchronous_commit', 'on', {local}) end,
case when pg_catalog.current_setting('client_min_messages')
          operator(pg_catalog.=) any (array['error', 'fatal', 'panic'])
     then pg_catalog.set_config('client_min_messages', 'warning', {local}) end

-- name: confirm
-- Sent after a COMMIT PREPARED through a pooler, which cannot share a script with a SET, and whose server process may
-- hide the warning that no standby confirmed it, or may not wait for a standby. This message is written behind it in
-- the same WAL.
select {durable},
       case when pg_catalog.current_setting('synchronous_standby_names') operator(pg_catalog.<>) ''
            then pg_catalog.pg_logical_emit_message(true, 'undoubt', '') end

-- name: guard_prepare
-- Fails with 22P02 and the text "undoubt marker …" unless the marker is still set. The cast cannot be evaluated at plan
-- time, because current_setting() is not immutable, and cannot be dropped, because set_config() is volatile.
-- application_name is the only parameter of ours whose new value the server reports by itself. It has 63 bytes: six of
-- the transaction id, six of the position in the WAL divided by 256, and {place}, all in base64.
select pg_catalog.set_config('application_name',
         case when pg_catalog.current_setting('undoubt.tx', true) operator(pg_catalog.=) {marker}
              then {report} operator(pg_catalog.||)
                   pg_catalog.encode(
                     pg_catalog.substr(pg_catalog.xid8send(pg_catalog.pg_current_xact_id()), 3)
                     operator(pg_catalog.||) pg_catalog.substr({position}, 2, 6), 'base64')
                   operator(pg_catalog.||) '.' operator(pg_catalog.||) {place}
              else (('undoubt marker ' operator(pg_catalog.||)
                     coalesce(pg_catalog.current_setting('undoubt.tx', true), ''))::pg_catalog.int4)
                   ::pg_catalog.text end,
         false),
       {durable}

-- name: guard_row
-- Like guard_prepare, in a pipeline, where the transaction id and the position in the WAL can be a row.
select case when pg_catalog.current_setting('undoubt.tx', true) operator(pg_catalog.=) {marker}
            then pg_catalog.pg_current_xact_id()::pg_catalog.text
            else (('undoubt marker ' operator(pg_catalog.||)
                     coalesce(pg_catalog.current_setting('undoubt.tx', true), ''))::pg_catalog.int4)
                   ::pg_catalog.text end,
       {position}, {durable}

-- name: guard_position
pg_catalog.pg_lsn_send(pg_catalog.pg_current_wal_insert_lsn())

-- name: guard_no_position
pg_catalog.int8send(0)

-- name: guard_place_history
-- Behind a pooler, where the server may be another one than at the last statement.
(coalesce(undoubt.current_history(), '') operator(pg_catalog.||) '.')

-- name: guard_place_system
-- Like guard_place_history, if the database draws no history ids.
(select pg_catalog.encode(
          pg_catalog.int8send(c.system_identifier) operator(pg_catalog.||)
          pg_catalog.decode(
            pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8), 'hex'), 'base64')
        operator(pg_catalog.||) '.' from pg_catalog.pg_control_system() as c)

-- name: guard_role
-- Sent before the guard of PREPARE: fails with 22P02 and the text "undoubt role <…>" if the branch ends in a role that
-- prepares no branches of ours. Behind a pooler it also fails in any role other than the one in which sessions begin
-- there: that role needs SET ROLE, and SET ROLE and COMMIT PREPARED could be sent to two servers.
select case when current_user operator(pg_catalog.=) {role} then 0 when {allowed} then 0
            else ('undoubt role <' operator(pg_catalog.||) current_user::pg_catalog.text operator(pg_catalog.||) '>')
                 ::pg_catalog.int4 end

-- name: guard_commit
-- Like guard_prepare, before a plain COMMIT, which needs no transaction id.
select case when pg_catalog.current_setting('undoubt.tx', true) operator(pg_catalog.=) {marker} then 0
            else ('undoubt marker ' operator(pg_catalog.||)
                     coalesce(pg_catalog.current_setting('undoubt.tx', true), ''))::pg_catalog.int4 end,
       {durable}

-- name: note_commit
-- Writes a row that is visible exactly if the branch has committed; it writes nothing in a branch that has written
-- nothing, or has become read only since. The proof is a constant: it is sent with PREPARE or COMMIT in one simple
-- query, which takes no parameters.
select undoubt.note_commit({proof}::pg_catalog.bytea)
 where pg_catalog.pg_current_xact_id_if_assigned() is not null
   and pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'off'

-- name: note_agent
-- Writes the row of last-agent commit, whether or not the branch has written anything. Fails with 23505 under a
-- tombstone.
select undoubt.note_agent({proof}::pg_catalog.bytea, {ledger}::pg_catalog.text, {txid}::pg_catalog.text,
                          {branches}::pg_catalog.bytea)

-- name: agent_place
select pg_catalog.pg_is_in_recovery() as standby, undoubt.current_history() as history,
       array(select needed.p from pg_catalog.unnest(array['select', 'insert', 'delete']) as needed(p)
              where not pg_catalog.has_table_privilege('undoubt.undoubt_agent'::pg_catalog.regclass, needed.p))
         as denied, session_user::pg_catalog.text as login

-- name: agent_self
select pg_catalog.pg_is_in_recovery() as standby, pg_catalog.pg_backend_pid() as pid

-- name: agent_bury
-- The tombstone, in READ COMMITTED: waits for a transaction that has inserted the same key. In another history nothing
-- is written: the row may have been lost with the former one.
insert into undoubt.undoubt_agent as a (key, decision, ledger, txid, branches)
select {key}::pg_catalog.bytea, 'abort', {ledger}, {txid}, ''
 where undoubt.current_history() operator(pg_catalog.=) {history}
on conflict (key) do nothing

-- name: agent_row
-- $1 key, $2 history: sent after agent_bury, in another statement, since a statement that meets a key does not see its
-- row.
select a.decision, a.branches,
       coalesce(undoubt.current_history() operator(pg_catalog.=) $2::pg_catalog.text, false) as here
  from (select) as one
  left join undoubt.undoubt_agent as a on a.key operator(pg_catalog.=) $1::pg_catalog.bytea

-- name: agent_holder
-- $1 the pid of a session that waits for a transaction that has inserted the same key: the session of that
-- transaction. A session that waits for a lock of the table, as another one changes it, waits for no COMMIT.
select coalesce(h.pid, 0) as pid, coalesce(extract(epoch from a.backend_start)::pg_catalog.text, '') as started,
       coalesce(a.usename::pg_catalog.text, '') as role, coalesce(a.application_name, '') as application,
       coalesce(case when a.wait_event is null then a.state
                     else a.state operator(pg_catalog.||) ', ' operator(pg_catalog.||) a.wait_event end, '') as state
  from pg_catalog.pg_locks as w
  join pg_catalog.pg_locks as h on h.locktype operator(pg_catalog.=) 'transactionid' and h.granted
       and h.transactionid operator(pg_catalog.=) w.transactionid
  left join pg_catalog.pg_stat_activity as a on a.pid operator(pg_catalog.=) h.pid
 where w.pid operator(pg_catalog.=) $1 and not w.granted and w.locktype operator(pg_catalog.=) 'transactionid'
 limit 1

-- name: agent_terminate
-- $1 pid, $2 when it started, so that a later session with the same pid is not ended.
select pg_catalog.pg_terminate_backend(a.pid) as sent
  from pg_catalog.pg_stat_activity as a
 where a.pid operator(pg_catalog.=) $1 and a.datname operator(pg_catalog.=) pg_catalog.current_database()
   and extract(epoch from a.backend_start)::pg_catalog.text operator(pg_catalog.=) $2::pg_catalog.text

-- name: agent_find
-- $1 keys.
select a.key, a.decision, a.branches
  from undoubt.undoubt_agent as a where a.key operator(pg_catalog.=) any ($1::pg_catalog.bytea[])

-- name: agent_stored
-- $1 ledger, $2 the last key of the page before, $3 the most rows. Every role can write a row, of any size: the list is
-- without the branches, and no text in it is long.
select a.key, a.decision, pg_catalog.left(a.txid, 100) as txid,
       extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) a.written_at)::pg_catalog.float8 as age_s
  from undoubt.undoubt_agent as a
 where a.ledger operator(pg_catalog.=) $1::pg_catalog.text and a.key operator(pg_catalog.>) $2::pg_catalog.bytea
 order by a.key limit $3::pg_catalog.int8

-- name: agent_forget
-- $1 keys, $2 the decision of the rows that may be deleted.
delete from undoubt.undoubt_agent as a
 where a.key operator(pg_catalog.=) any ($1::pg_catalog.bytea[])
   and a.decision operator(pg_catalog.=) $2::pg_catalog.text

-- name: guard_lock
-- Shows the token of a lock. Fails with UL001 if this database has seen a higher one; the branch can only be rolled back
-- then. The row stays locked until the branch ends, so that the next holder waits for it.
select undoubt.guard_lock({ledger}::pg_catalog.text, {lock}::pg_catalog.text, {token}::pg_catalog.int8)

-- name: guard_locked
-- Behind guard_lock: what undoes the one, a savepoint that is rolled back, undoes the other.
select pg_catalog.set_config({setting}, {marker}, true)

-- name: still_locked
-- Sent before the end of a branch for each of its guard_lock: fails with 22P02 and the text "undoubt lock" unless the row
-- of the lock has been locked since, or the branch has been ended, which the guard behind it tells.
select case when (pg_catalog.current_setting({setting}, true) operator(pg_catalog.=) {marker})
                 or (coalesce(pg_catalog.current_setting('undoubt.tx', true), '') operator(pg_catalog.<>) {marker})
            then 0
            else ('undoubt lock ' operator(pg_catalog.||)
                     coalesce(pg_catalog.current_setting({setting}, true), ''))::pg_catalog.int4 end

-- name: publish
-- Fails with 22P02 and the text "undoubt marker" outside the transaction of the branch: the message would be visible
-- although the branch may abort. The text of the error cannot be computed before the marker has been compared.
select case when pg_catalog.current_setting('undoubt.tx', true) operator(pg_catalog.=) {marker}
            then undoubt.publish({dedupe_id}::pg_catalog.text, {topic}::pg_catalog.text, {key}::pg_catalog.text,
                                 {payload}::pg_catalog.bytea, {headers}::pg_catalog.text)
            else ('undoubt marker ' operator(pg_catalog.||)
                     coalesce(pg_catalog.current_setting('undoubt.tx', true), ''))::pg_catalog.int8 end

-- name: note_certain
-- Sent before the note, if a missing note has to prove that the branch has not committed. Fails with 22P02 and the text
-- "undoubt note" if no note can be written: what the branch has changed is in other databases, so that it has no
-- transaction id here, or the transaction has been made read only since. The savepoint lets it commit without a note
-- then; it is released before the note is written, which would otherwise need a transaction id of its own.
savepoint undoubt_note;
select case when pg_catalog.pg_current_xact_id_if_assigned() is not null
                 and pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'off' then 0
            else ('undoubt note ' operator(pg_catalog.||)
                  pg_catalog.current_setting('transaction_read_only'))::pg_catalog.int4 end;
release savepoint undoubt_note

-- name: note_given_up
rollback to savepoint undoubt_note; release savepoint undoubt_note

-- name: note_of_changes
-- Sent before the guard of PREPARE, which assigns a transaction id. Fails with 22P02 and the text "undoubt note" if the
-- branch has changed something and can write no note, because it has been made read only since.
select case when pg_catalog.pg_current_xact_id_if_assigned() is null
                 or pg_catalog.current_setting('transaction_read_only') operator(pg_catalog.=) 'off' then 0
            else ('undoubt note ' operator(pg_catalog.||)
                  pg_catalog.current_setting('transaction_read_only'))::pg_catalog.int4 end

-- name: noted
-- With the place of the server, in the same statement: a note may be missing because another server was asked.
select undoubt.is_noted($1::pg_catalog.bytea) as noted, {whereabouts}

-- name: backend_gone
-- True if the session that $1 (pid) and $2 (its start) identify has ended, and its transaction with it. With the place
-- of the server, as in noted: the session never was on another server.
select not exists (select from pg_catalog.pg_stat_activity as a
                    where a.pid operator(pg_catalog.=) $1
                      and (a.backend_start is null
                           or extract(epoch from a.backend_start)::pg_catalog.text
                              operator(pg_catalog.=) $2::pg_catalog.text)) as gone, {whereabouts}

-- name: owned
-- Whether {owner} is a role that prepares branches of ours: the login role, a role that was granted to it, or a role of
-- {owners}. pg_has_role() would be true for every role if the login role is a superuser. Before version 15 a role may
-- grant itself to any other role; then it is the grantor, and such a grant does not count. A membership without the
-- option SET, a column since version 16, does not count either, since it does not let a session finish that role's
-- branches. Since version 16 the grant must come from a superuser, from the member, or from a role that may become the
-- member or administers it: any other role could grant a role that it administers to a member without that member's
-- consent. Before, a role that may create roles can also change the member's password.
(({owner})::pg_catalog.text operator(pg_catalog.=) any (
   {owners}::pg_catalog.text[] operator(pg_catalog.||)
   array(with recursive granted as (
           select r.oid from pg_catalog.pg_roles as r where r.rolname operator(pg_catalog.=) session_user
           union
           select m.roleid
             from pg_catalog.pg_auth_members as m join granted on granted.oid operator(pg_catalog.=) m.member
            where m.grantor operator(pg_catalog.<>) m.roleid
              and case when pg_catalog.to_jsonb(m) operator(pg_catalog.->>) 'set_option' operator(pg_catalog.=) 'true'
                       then pg_catalog.pg_has_role(m.grantor, m.member, 'SET, MEMBER WITH ADMIN OPTION')
                       else pg_catalog.to_jsonb(m) operator(pg_catalog.->>) 'set_option' is null end)
         select r.rolname::pg_catalog.text
           from granted join pg_catalog.pg_roles as r on r.oid operator(pg_catalog.=) granted.oid)))

-- name: strange
-- Whether roles administer {role} other than superusers, the login role, and roles that administer or may become the
-- login role. Since version 16 a role that may create roles administers those that it has created, and may grant them
-- to any role.
exists (select from pg_catalog.pg_auth_members as m
          join pg_catalog.pg_roles as made on made.oid operator(pg_catalog.=) m.roleid
         where made.rolname operator(pg_catalog.=) {role} and m.admin_option
           and not pg_catalog.pg_has_role(m.member, session_user, 'MEMBER, MEMBER WITH ADMIN OPTION'))

-- name: in_doubt
-- At least one row: the list of a standby is empty, and only the flag distinguishes it from a database without prepared
-- transactions. {whereabouts} are columns of the server's history, or nulls if the role has no right to read them. The
-- bytes of a gid from another client need not be convertible to UTF-8 (bytes that SQL_ASCII accepts, or that WIN1252
-- has no character for), which would make the whole query fail: so in a database of another encoding all bytes that are
-- not ASCII are shown as \nnn. Our own gids are ASCII.
select pg_catalog.pg_is_in_recovery() as standby, {whereabouts},
       pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text as next_xid,
       case when pg_catalog.getdatabaseencoding() operator(pg_catalog.=) 'UTF8' then p.gid
            else pg_catalog.encode(pg_catalog.convert_to(p.gid, pg_catalog.getdatabaseencoding()), 'escape')
            end as gid,
       coalesce(p.owner::pg_catalog.text, '(dropped)') as owner,
       p.owner is null as gone, p.owner is not null and {owned} as owned, {strange} as strange,
       session_user::pg_catalog.text as login, p.database::pg_catalog.text as database, p.transaction::pg_catalog.text as xid,
       pg_catalog.age(p.transaction) as age_xids,
       extract(epoch from p.prepared)::pg_catalog.float8 as prepared_at,
       greatest(extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) p.prepared), 0)
         ::pg_catalog.float8 as age_s
  from (select) as one
  left join pg_catalog.pg_prepared_xacts as p on p.database operator(pg_catalog.=) pg_catalog.current_database()
 order by p.prepared, p.gid

-- name: system_and_timeline
(select c.system_identifier from pg_catalog.pg_control_system() as c) as system,
case when not pg_catalog.pg_is_in_recovery()
     then pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) end as timeline

-- name: who_prepared
-- The columns of holder and holders.
pg_catalog.pg_is_in_recovery() as standby, current_user::pg_catalog.text as me,
       session_user::pg_catalog.text as login,
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as version,
       p.gid, coalesce(p.owner::pg_catalog.text, '(dropped)') as owner,
       p.owner is null as gone, p.owner is not null and {owned} as owned,
       (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname operator(pg_catalog.=) p.owner)
         as superuser,
       (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname operator(pg_catalog.=) session_user)
         as login_is_superuser,
       p.transaction::pg_catalog.text as xid, p.database::pg_catalog.text as database,
       pg_catalog.current_database()::pg_catalog.text as here

-- name: holder
-- $1 gid, $2 the settings' owners: who has prepared it. The owner is null if the role has been dropped.
select {who_prepared}
  from (select) as one
  left join pg_catalog.pg_prepared_xacts as p on p.gid operator(pg_catalog.=) $1

-- name: holders
-- $1 gids, $2 the settings' owners: like holder, one row for each gid under which a transaction is prepared; one row
-- without a gid if there is none.
select {who_prepared}
  from (select) as one
  left join pg_catalog.pg_prepared_xacts as p on p.gid operator(pg_catalog.=) any ($1::pg_catalog.text[])

-- name: announced
-- $1 gid, $2 the settings' owners: the transaction that is prepared under the gid, and its database, all read at the
-- same moment. {position} is a position that the WAL has reached on disk.
select pg_catalog.pg_is_in_recovery() as standby, {whereabouts}, {position} as position,
       pg_catalog.current_setting('synchronous_standby_names') operator(pg_catalog.<>) '' as synchronous,
       pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text as next_xid,
       p.gid, coalesce(p.owner::pg_catalog.text, '(dropped)') as owner,
       p.owner is not null and {owned} as owned,
       p.transaction::pg_catalog.text as xid, p.database::pg_catalog.text as database,
       pg_catalog.current_database()::pg_catalog.text as here
  from (select) as one
  left join pg_catalog.pg_prepared_xacts as p on p.gid operator(pg_catalog.=) $1

-- name: flushed_position
case when not pg_catalog.pg_is_in_recovery()
     then pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), '0/0'::pg_catalog.pg_lsn)
          ::pg_catalog.text end

-- name: no_position
null::pg_catalog.text

-- name: in_branch
-- $1 application_name of a branch: whether a session of this database shows it.
select exists (select from pg_catalog.pg_stat_activity as a
                where a.datname operator(pg_catalog.=) pg_catalog.current_database()
                  and a.application_name operator(pg_catalog.=) $1) as there

-- name: prepares
-- $1 a role, $2 the settings' owners: whether the role prepares branches of ours.
select {owned} as owned, session_user::pg_catalog.text as login,
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4 as version

-- name: seen_roles
-- $1 the prefix of the gids of this ledger's branches, $2 the prefix of the application_name of its sessions, $3 the
-- settings' owners. Other roles whose branches a session of ours may have to finish: they have prepared branches, or
-- have sessions that may prepare some. becomes is null if the role has been dropped.
with seen as (
  select coalesce(p.owner, '(dropped)') as role, 1 as prepared, 0 as sessions
    from pg_catalog.pg_prepared_xacts as p
   where p.database operator(pg_catalog.=) pg_catalog.current_database() and pg_catalog.starts_with(p.gid, $1)
  union all
  select a.usename, 0, 1 from pg_catalog.pg_stat_activity as a
   where a.datname operator(pg_catalog.=) pg_catalog.current_database()
     and pg_catalog.starts_with(a.application_name, $2)
)
select seen.role::pg_catalog.text as role, r.rolsuper as superuser, {owned} as owned,
       {strange} as strange,
       pg_catalog.pg_has_role(session_user, r.oid, '{membership}') as becomes,
       pg_catalog.pg_has_role(r.oid, 'USAGE') or pg_catalog.pg_has_role('pg_signal_backend', 'USAGE') as cancels,
       pg_catalog.sum(seen.prepared)::pg_catalog.int4 as prepared,
       pg_catalog.sum(seen.sessions)::pg_catalog.int4 as sessions
  from seen left join pg_catalog.pg_roles as r on r.rolname operator(pg_catalog.=) seen.role
 where seen.role operator(pg_catalog.<>) current_user
 group by seen.role, r.rolsuper, r.oid
 order by seen.role

-- name: set_roles
-- $1 the settings' owners: the roles in which sessions of this login role would begin, as the database or the login
-- role sets it; the effective one is first.
select chosen.role, {owned} as owned, chosen.of_database, chosen.of_login, session_user::pg_catalog.text as login
  from (select pg_catalog.substr(entry, 6) as role, s.setdatabase operator(pg_catalog.<>) 0 as of_database,
               s.setrole operator(pg_catalog.<>) 0 as of_login
          from pg_catalog.pg_db_role_setting as s cross join pg_catalog.unnest(s.setconfig) as entry
         where pg_catalog.starts_with(entry, 'role=') and entry operator(pg_catalog.<>) 'role=none'
           and (s.setdatabase operator(pg_catalog.=) 0
                or s.setdatabase operator(pg_catalog.=) (select d.oid from pg_catalog.pg_database as d
                     where d.datname operator(pg_catalog.=) pg_catalog.current_database()))
           and (s.setrole operator(pg_catalog.=) 0
                or s.setrole operator(pg_catalog.=) (select r.oid from pg_catalog.pg_roles as r
                     where r.rolname operator(pg_catalog.=) session_user))) as chosen
 order by chosen.of_login desc, chosen.of_database desc

-- name: health
-- Needs no right that PUBLIC lacks by default.
select pg_catalog.current_setting('server_version') as version,
       current_user::pg_catalog.text as me, session_user::pg_catalog.text as login,
       (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname operator(pg_catalog.=) session_user)
         as superuser,
       pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4 as prepared_max,
       (select pg_catalog.count(*) from pg_catalog.pg_prepared_xacts)::pg_catalog.int4 as prepared,
       pg_catalog.current_setting('max_connections')::pg_catalog.int4 operator(pg_catalog.-)
         pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int4 as connections_max,
       pg_catalog.current_database()::pg_catalog.text as here,
       pg_catalog.current_setting('synchronous_commit') as synchronous_commit,
       (select s.source from pg_catalog.pg_settings as s where s.name operator(pg_catalog.=) 'synchronous_commit')
         as synchronous_commit_source,
       pg_catalog.current_setting('fsync') as fsync,
       pg_catalog.current_setting('full_page_writes') as full_page_writes,
       array(select f
               from pg_catalog.unnest(array['pg_catalog.pg_control_system()', 'pg_catalog.pg_current_wal_lsn()',
                                            'pg_catalog.pg_walfile_name(pg_catalog.pg_lsn)']) as f
              where not pg_catalog.has_function_privilege(f, 'execute')) as unreported,
       pg_catalog.to_regnamespace('undoubt') is not null as has_schema,
       pg_catalog.to_regclass('undoubt.undoubt_branch') is not null as has_states,
       pg_catalog.to_regprocedure('undoubt.current_history()') is not null as reports_history,
       pg_catalog.to_regclass('undoubt.undoubt_commit') is not null
         and pg_catalog.to_regclass('undoubt.undoubt_note') is null as old_tables,
       array(select needed.p operator(pg_catalog.||) ' on undoubt.' operator(pg_catalog.||) needed.t
               from (values ('undoubt_branch', 'select'), ('undoubt_branch', 'insert'), ('undoubt_branch', 'update'),
                            ('undoubt_branch', 'delete'), ('undoubt_note', 'select'), ('undoubt_commit', 'select'))
                    as needed(t, p)
              where not pg_catalog.has_table_privilege(
                          pg_catalog.to_regclass('undoubt.' operator(pg_catalog.||) needed.t), needed.p))
         as states_denied,
       pg_catalog.to_regclass('undoubt.undoubt_agent') is not null as has_agent,
       array(select needed.p from pg_catalog.unnest(array['select', 'insert', 'delete']) as needed(p)
              where not pg_catalog.has_table_privilege(
                          pg_catalog.to_regclass('undoubt.undoubt_agent'), needed.p)) as agent_denied,
       (select pg_catalog.age(d.datfrozenxid) from pg_catalog.pg_database as d
         where d.datname operator(pg_catalog.=) pg_catalog.current_database()) as frozen_age,
       pg_catalog.current_setting('autovacuum_freeze_max_age')::pg_catalog.int4 as freeze_max_age,
       (select pg_catalog.max(pg_catalog.age(p.transaction)) from pg_catalog.pg_prepared_xacts as p) as prepared_age

-- name: evidence
-- $1 xid8, $2 system identifier, $3 timeline, $4 a position in the WAL or null. CASE prevents the lookup of an id that
-- another history has assigned.
select pg_catalog.pg_is_in_recovery() as standby, w.here, w.behind,
       case when w.here and not w.behind
            then {status} end as status
  from (select case when pg_catalog.pg_is_in_recovery() then false
                    else c.system_identifier operator(pg_catalog.=) $2::pg_catalog.text::pg_catalog.int8
                         and pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
                             operator(pg_catalog.=) $3::pg_catalog.text end as here,
               {behind} as behind
          from pg_catalog.pg_control_system() as c) as w

-- name: evidence_of_history
-- Like evidence, with $2 the history id, $3 a position in the WAL or null.
select pg_catalog.pg_is_in_recovery() as standby, w.here, w.behind,
       case when w.here and not w.behind
            then {status} end as status
  from (select coalesce(undoubt.current_history() operator(pg_catalog.=) $2::pg_catalog.text, false) as here,
               {behind} as behind) as w

-- name: timeline
select pg_catalog.pg_is_in_recovery() as standby, {place}

-- name: timeline_history
-- The history file of the timeline on which the server writes: for each ancestor its number and the position at which
-- it was left. Null if there is no such file: the first timeline has none.
select pg_catalog.pg_is_in_recovery() as standby, w.system, w.timeline,
       pg_catalog.pg_read_file('pg_wal/' operator(pg_catalog.||) w.timeline operator(pg_catalog.||) '.history',
                               0, 1048576, true) as ancestors
  from (select {place}) as w

-- name: status
pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8)

-- name: status_each
-- $1 text[]: the statuses of many transaction ids, in their order.
array(select pg_catalog.pg_xact_status(asked.xid::pg_catalog.xid8)
        from pg_catalog.unnest($1::pg_catalog.text[]) with ordinality as asked(xid, n) order by asked.n)

-- name: behind
case when pg_catalog.pg_is_in_recovery() or {position}::pg_catalog.text is null then false
     else {position}::pg_catalog.text::pg_catalog.pg_lsn operator(pg_catalog.>)
          pg_catalog.pg_current_wal_insert_lsn() end

-- name: waits
-- $1 the settings' owners.
-- pg_blocking_pids() returns 0 for a prepared blocker: the second half finds it by the lock that it holds. Such locks
-- have no pid; the transaction that holds them is found by the lock that each transaction holds on its own id. Parallel
-- workers of one statement wait for each other for a moment: such waits are left out. A gid of another database need
-- not be valid in the encoding of this one; for other gids see in_doubt.
with waiter as materialized (
  select l.*, a.application_name, a.usename, a.backend_xid::pg_catalog.text as xid,
         coalesce(a.leader_pid, a.pid) as backend,
         {since_column} as since, pg_catalog.pg_blocking_pids(l.pid) as blockers
    from pg_catalog.pg_locks as l join pg_catalog.pg_stat_activity as a on a.pid operator(pg_catalog.=) l.pid
   where not l.granted and a.datname operator(pg_catalog.=) pg_catalog.current_database()
)
select w.pid, w.application_name as name, w.xid, extract(epoch from w.since)::pg_catalog.text as since, w.mode,
       {waiter_owned} as ours,
       b.pid as holder_pid, b.application_name as holder_name,
       {holder_owned} as holder_ours,
       null as holder_gid, null as holder_mode
  from waiter as w cross join pg_catalog.unnest(w.blockers) as blocker(pid)
  join pg_catalog.pg_stat_activity as b on b.pid operator(pg_catalog.=) blocker.pid
 where w.since is not null and b.pid operator(pg_catalog.<>) w.backend
union
select w.pid, w.application_name, w.xid, extract(epoch from w.since)::pg_catalog.text, w.mode,
       {waiter_owned}, null, null,
       p.database operator(pg_catalog.=) pg_catalog.current_database()
         and p.owner is not null and {prepared_owned},
       case when p.database operator(pg_catalog.<>) pg_catalog.current_database()
            then 'transaction ' operator(pg_catalog.||) p.transaction::pg_catalog.text
                 operator(pg_catalog.||) ' of another database'
            when pg_catalog.getdatabaseencoding() operator(pg_catalog.=) 'UTF8' then p.gid
            else pg_catalog.encode(pg_catalog.convert_to(p.gid, pg_catalog.getdatabaseencoding()), 'escape') end,
       h.mode
  from waiter as w
  join pg_catalog.pg_locks as h on h.pid is null and h.granted
       and array[h.locktype, h.database::pg_catalog.text, h.relation::pg_catalog.text, h.page::pg_catalog.text,
                  h.tuple::pg_catalog.text, h.virtualxid, h.transactionid::pg_catalog.text,
                  h.classid::pg_catalog.text, h.objid::pg_catalog.text, h.objsubid::pg_catalog.text]
           operator(pg_catalog.=)
           array[w.locktype, w.database::pg_catalog.text, w.relation::pg_catalog.text, w.page::pg_catalog.text,
                  w.tuple::pg_catalog.text, w.virtualxid, w.transactionid::pg_catalog.text,
                  w.classid::pg_catalog.text, w.objid::pg_catalog.text, w.objsubid::pg_catalog.text]
  join pg_catalog.pg_locks as own on own.pid is null and own.granted
       and own.locktype operator(pg_catalog.=) 'transactionid'
       and own.virtualtransaction operator(pg_catalog.=) h.virtualtransaction
  join pg_catalog.pg_prepared_xacts as p on p.transaction operator(pg_catalog.=) own.transactionid
 where 0 operator(pg_catalog.=) any (w.blockers) and w.since is not null

-- name: cancel_waiter
-- $1 pid, $2 since when it waits, $3 its 32-bit transaction id or null, $4 its application_name up to a '#', or null
-- for any.
select pg_catalog.pg_cancel_backend(a.pid) as sent
  from pg_catalog.pg_stat_activity as a
  join pg_catalog.pg_locks as l on l.pid operator(pg_catalog.=) a.pid and not l.granted
 where a.pid operator(pg_catalog.=) $1 and a.datname operator(pg_catalog.=) pg_catalog.current_database()
   and extract(epoch from {since_column})::pg_catalog.text operator(pg_catalog.=) $2::pg_catalog.text
   and array[a.backend_xid::pg_catalog.text] operator(pg_catalog.=) array[$3::pg_catalog.text]
   and ($4::pg_catalog.text is null
        or pg_catalog.split_part(a.application_name, '#', 1) operator(pg_catalog.=) $4::pg_catalog.text)

-- name: prune
-- A note that belongs to a row of three-phase commit is proof until the row is deleted. A note that is younger than an
-- hour may still be looked for: without it a commit whose answer was lost would be taken for a rollback.
delete from undoubt.undoubt_note as n
 where n.noted_at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-)
                                          pg_catalog.make_interval(secs => greatest($1, 3600)))
   and not exists (select from undoubt.undoubt_branch as b where b.note operator(pg_catalog.=) n.hash)

-- name: prune_old
-- Like prune, for notes of version 0.1.0.
delete from undoubt.undoubt_commit as c
 where c.noted_at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-)
                                          pg_catalog.make_interval(secs => $1))
   and not exists (select from undoubt.undoubt_branch as b
                    where b.txid operator(pg_catalog.=) c.txid
                      and b.participant operator(pg_catalog.=) c.participant)

-- name: prune_locks
-- Without its row a lock is guarded as if for the first time: a former holder that has been stopped for so long would be
-- let in.
delete from undoubt.undoubt_lock as l
 where l.guarded_at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-)
                                            pg_catalog.make_interval(secs => greatest($1, 604800)))

-- name: agent_ledgers
-- Every role can write a row that names any ledger: the list is short, and no text in it is long.
select pg_catalog.left(a.ledger, 100) as ledger, pg_catalog.count(*) as rows
  from undoubt.undoubt_agent as a group by 1 order by 1 limit 100

-- name: prune_agent
-- $1 age in seconds, $2 a ledger that is lost. A younger tombstone may still keep a coordinator that was stopped from its
-- COMMIT.
delete from undoubt.undoubt_agent as a
 where a.written_at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-)
                                            pg_catalog.make_interval(secs => greatest($1, 604800)))
   and a.ledger operator(pg_catalog.=) $2

-- name: outbox_topics
-- The topics that have messages; one step in the index for each.
with recursive there as (
  (select o.topic from undoubt.undoubt_outbox as o order by o.topic limit 1)
  union all
  select (select o.topic from undoubt.undoubt_outbox as o
           where o.topic operator(pg_catalog.>) t.topic order by o.topic limit 1)
    from there as t where t.topic is not null
)
select t.topic from there as t where t.topic is not null

-- name: outbox_claim
-- $1 a topic. Until this session ends, no other relay claims it.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(
         'undoubt relay ' operator(pg_catalog.||) $1::pg_catalog.text, 0)) as claimed

-- name: outbox_claimant
-- $1 a topic. Who has claimed it: another relay, or whoever else holds that lock, which any role can take. pg_locks has a
-- key of 64 bits in two halves: https://www.postgresql.org/docs/current/view-pg-locks.html
select a.pid, coalesce(a.usename::pg_catalog.text, '?') as role
  from pg_catalog.pg_locks as l
  join pg_catalog.pg_stat_activity as a on a.pid operator(pg_catalog.=) l.pid
  join pg_catalog.pg_database as d on d.oid operator(pg_catalog.=) l.database
 where l.locktype operator(pg_catalog.=) 'advisory' and l.granted and l.objsubid operator(pg_catalog.=) 1
   and d.datname operator(pg_catalog.=) pg_catalog.current_database()
   and ((l.classid::pg_catalog.int8 operator(pg_catalog.<<) 32) operator(pg_catalog.|) l.objid::pg_catalog.int8)
       operator(pg_catalog.=) pg_catalog.hashtextextended(
         'undoubt relay ' operator(pg_catalog.||) $1::pg_catalog.text, 0)
 limit 1

-- name: outbox_read
-- $1 topics, $2 and $3 the topics and keys of lanes that are left out, $4 ids that are left out, $5 the most rows.
-- There is no high-water mark: a row may become visible after rows of other keys with higher ids.
select o.id, o.dedupe_id, o.topic, o.key, o.payload, o.headers::pg_catalog.text as headers,
       extract(epoch from o.published_at)::pg_catalog.float8 as published_at
  from undoubt.undoubt_outbox as o
 where o.topic operator(pg_catalog.=) any ($1::pg_catalog.text[])
   and not o.id operator(pg_catalog.=) any ($4::pg_catalog.int8[])
   and not exists (select from rows from (pg_catalog.unnest($2::pg_catalog.text[]),
                                          pg_catalog.unnest($3::pg_catalog.text[])) as w(topic, key)
                    where w.topic operator(pg_catalog.=) o.topic and w.key operator(pg_catalog.=) o.key)
 order by o.id limit $5::pg_catalog.int8

-- name: outbox_backlog
-- $1 topics, of all topics if it is empty, $2 the most rows that are counted.
select pg_catalog.count(*) as messages,
       coalesce(extract(epoch from pg_catalog.clock_timestamp()
                                   operator(pg_catalog.-) pg_catalog.min(o.published_at)), 0)::pg_catalog.float8 as oldest_s
  from (select published_at from undoubt.undoubt_outbox
         where pg_catalog.cardinality($1::pg_catalog.text[]) operator(pg_catalog.=) 0
            or topic operator(pg_catalog.=) any ($1::pg_catalog.text[])
         order by id limit $2::pg_catalog.int8) as o

-- name: outbox_remove
-- By what is never used again: after a failover that lost messages, ids are.
delete from undoubt.undoubt_outbox as o where o.dedupe_id operator(pg_catalog.=) any ({dedupe_ids})

-- name: durable
-- A condition that is always true. It makes the commit of this statement wait for the disk and the standby, and makes
-- the server send a warning if it did not wait.
pg_catalog.concat(
  pg_catalog.set_config('synchronous_commit',
    case when pg_catalog.current_setting('synchronous_commit')
              operator(pg_catalog.=) any (array['off', 'local', 'remote_write'])
         then 'on' else pg_catalog.current_setting('synchronous_commit') end, true),
  pg_catalog.set_config('client_min_messages',
    case when pg_catalog.current_setting('client_min_messages')
              operator(pg_catalog.=) any (array['error', 'fatal', 'panic'])
         then 'warning' else pg_catalog.current_setting('client_min_messages') end, true)) operator(pg_catalog.<>) ''

-- name: committed
-- For row b: whether its branch has committed. A row without a hash is from version 0.1.0, whose notes have no hash; a
-- row that termination has made has an empty hash, and its branch was never prepared.
(exists (select from undoubt.undoubt_note as n where n.hash operator(pg_catalog.=) b.note)
 or (b.note is null
     and exists (select from undoubt.undoubt_commit as c
                  where c.txid operator(pg_catalog.=) b.txid
                    and c.participant operator(pg_catalog.=) b.participant)))

-- name: state_enlist
-- The rows of three-phase commit. The command tag shows whether a row was changed.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt, note)
select {gid}, {txid}, {participant}, {members}, {rule}, 'w', 1, 0, {note}::pg_catalog.bytea
 where {durable}
on conflict (gid) do nothing

-- name: state_elect
-- No row changes if it has taken part in this election or a higher one.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt, note)
select {gid}, {txid}, {participant}, {members}, {rule}, 'q', {election}::pg_catalog.text::pg_catalog.int8, 0, ''
 where {durable}
on conflict (gid) do update set last_elected = excluded.last_elected, changed_at = pg_catalog.clock_timestamp()
 where b.last_elected operator(pg_catalog.<) excluded.last_elected

-- name: state_attempt
update undoubt.undoubt_branch
   set state = {after}, last_attempt = last_elected, changed_at = pg_catalog.clock_timestamp()
 where gid operator(pg_catalog.=) {gid}
   and last_elected operator(pg_catalog.=) {election}::pg_catalog.text::pg_catalog.int8
   and pg_catalog.strpos({before}, state::pg_catalog.text) operator(pg_catalog.>) 0
   and {durable}

-- name: state_bury
-- No row changes if the branch has committed.
insert into undoubt.undoubt_branch as b
       (gid, txid, participant, members, rule, state, last_elected, last_attempt, note)
select {gid}, {txid}, {participant}, {members}, {rule}, 'a', 1, 0, ''
 where not exists (select from undoubt.undoubt_branch as b
                    where b.gid operator(pg_catalog.=) {gid} and {committed})
   and {durable}
on conflict (gid) do update set state = 'a', changed_at = pg_catalog.clock_timestamp()

-- name: state_read
-- $1 gid. A branch that has committed counts as committed whatever state the row has.
select pg_catalog.pg_is_in_recovery() as standby, b.state::pg_catalog.text as state, b.last_elected, b.last_attempt,
       b.members, b.rule,
       {committed} as committed
  from (select) as one left join undoubt.undoubt_branch as b on b.gid operator(pg_catalog.=) $1

-- name: state_unfinished
select b.gid, b.state::pg_catalog.text as state, b.last_elected, b.last_attempt, b.members, b.rule,
       false as committed
  from undoubt.undoubt_branch as b
 where b.state operator(pg_catalog.<>) 'a'
   and not {committed}

-- name: state_stale
select b.gid from undoubt.undoubt_branch as b
 where b.changed_at operator(pg_catalog.<)
       (pg_catalog.clock_timestamp() operator(pg_catalog.-)
        pg_catalog.make_interval(secs => case when b.state operator(pg_catalog.=) 'a'
                                              then $2::pg_catalog.float8 else $1::pg_catalog.float8 end))

-- name: state_forget
delete from undoubt.undoubt_branch where gid operator(pg_catalog.=) any ($1::pg_catalog.text[])
