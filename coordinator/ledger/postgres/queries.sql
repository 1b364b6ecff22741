-- All statements that the PostgreSQL ledger sends.
--
-- Functions, operators, types and tables are qualified, so that each statement has the same meaning whatever the
-- search_path is and whatever objects other roles have made (see the head of participants/postgres/queries.sql).
--
-- Each statement is its own transaction, so that a process that stops or loses its connection holds no lock; only the
-- statements that drop sessions share one. Statements begin with {here}; a statement that writes without {here} has
-- {durable} among its columns.

-- name: durable
-- Whatever the database, the role or another client of the same pooler has set: the commit of this transaction waits
-- for the disk and the standbys, and the server sends a warning if it did not.
case when pg_catalog.current_setting('synchronous_commit')
          operator(pg_catalog.=) any (array['off', 'local', 'remote_write'])
     then pg_catalog.set_config('synchronous_commit', 'on', true) end as raised,
case when pg_catalog.current_setting('client_min_messages')
          operator(pg_catalog.=) any (array['error', 'fatal', 'panic'])
     then pg_catalog.set_config('client_min_messages', 'warning', true) end as audible

-- name: here
-- Whether this is the server, the timeline and the table on which the ledger was before. After a failover, a restore
-- or a copy it is not. On a standby pg_current_wal_lsn() fails with 55000.
-- A row that a statement reads may be visible here and be on no standby yet (after a cancelled wait, or a restart). A
-- commit waits for the standbys only if its transaction has written something. The logical message is the smallest
-- possible write; its position in the WAL is after everything that was read.
select l.system operator(pg_catalog.=) c.system_identifier
       and l.timeline operator(pg_catalog.=)
           pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
       and l.home operator(pg_catalog.=)
           ((select d.oid::pg_catalog.text from pg_catalog.pg_database d
              where d.datname operator(pg_catalog.=) pg_catalog.current_database())
            operator(pg_catalog.||) '/' operator(pg_catalog.||) l.tableoid::pg_catalog.text) as same,
       {durable},
       case when pg_catalog.current_setting('synchronous_standby_names') operator(pg_catalog.<>) ''
            then pg_catalog.pg_logical_emit_message(true, 'undoubt', '') end as confirmed
  from undoubt_ledger.ledger l, pg_catalog.pg_control_system() c

-- name: introduce
-- Sent once per connection. A pooler reports its own process ids.
select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('synchronous_commit'), pg_catalog.pg_backend_pid()

-- name: identity
select l.ledger_id, s.secret from undoubt_ledger.ledger l, undoubt_ledger.secret s

-- name: set_back
-- Begins a new incarnation, because a session number above the counter was issued: records were lost.
with changed as (
    update undoubt_ledger.ledger
       set incarnation = incarnation operator(pg_catalog.+) 1, next_session = %(issued)s::pg_catalog.int8 operator(pg_catalog.+) 1 operator(pg_catalog.+) %(skip)s::pg_catalog.int8
     where next_session operator(pg_catalog.<=) %(issued)s::pg_catalog.int8
    returning incarnation
),
closed as (
    update undoubt_ledger.session s set state = 'restored', closed_ms = k.time_ms
      from changed, undoubt_ledger.clock k
     where s.state operator(pg_catalog.=) 'open'
    returning s.id
)
select incarnation, (select pg_catalog.count(*) from closed), {durable} from changed

-- name: lease
-- Whether the gids of a session have tags; null if there is no such session.
with here as materialized ({here})
select h.same, s.tagged
  from here h
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8 and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
   and s.state operator(pg_catalog.<>) 'dropped'

-- name: tables
select c.relname::pg_catalog.text
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
 where n.nspname operator(pg_catalog.=) 'undoubt_ledger' and c.relkind operator(pg_catalog.=) 'r'

-- name: revoke_defaults
-- Statements that revoke what ALTER DEFAULT PRIVILEGES has granted to other roles on the tables that were just made;
-- and on the schema, if all tables were just made.
with given as (
    select 'all on undoubt_ledger.' operator(pg_catalog.||) pg_catalog.quote_ident(c.relname) as what, a.grantee
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
     cross join pg_catalog.aclexplode(c.relacl) a
     where n.nspname operator(pg_catalog.=) 'undoubt_ledger' and c.relkind operator(pg_catalog.=) 'r'
       and not (c.relname::pg_catalog.text operator(pg_catalog.=) any (%(before)s::pg_catalog.text[]))
       and a.grantee operator(pg_catalog.<>) c.relowner
    union
    select 'create on schema undoubt_ledger', a.grantee
      from pg_catalog.pg_namespace n cross join pg_catalog.aclexplode(n.nspacl) a
     where n.nspname operator(pg_catalog.=) 'undoubt_ledger'
       and a.privilege_type operator(pg_catalog.=) 'CREATE' and a.grantee operator(pg_catalog.<>) n.nspowner
       and pg_catalog.cardinality(%(before)s::pg_catalog.text[]) operator(pg_catalog.=) 0
)
select 'revoke ' operator(pg_catalog.||) given.what operator(pg_catalog.||) ' from '
       operator(pg_catalog.||) coalesce(pg_catalog.quote_ident(r.rolname), 'public') as line
  from given left join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) given.grantee

-- name: mark
-- Why the table of the ledger is missing: see moving/postgres.py.
select m.id, m.place, m.at, m.phase from undoubt_ledger.move m

-- name: revision
select version_num from undoubt_ledger.migration

-- name: new_incarnation
-- Session numbers are raised by more than the number of sessions that can have been opened after a backup.
with here as (
    select c.system_identifier as system,
           pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) as timeline,
           (select d.oid::pg_catalog.text from pg_catalog.pg_database d
             where d.datname operator(pg_catalog.=) pg_catalog.current_database())
           operator(pg_catalog.||) '/' operator(pg_catalog.||)
           'undoubt_ledger.ledger'::pg_catalog.regclass::pg_catalog.oid::pg_catalog.text as home
      from pg_catalog.pg_control_system() c
),
changed as (
    update undoubt_ledger.ledger l
       set incarnation = l.incarnation operator(pg_catalog.+) 1,
           next_session = l.next_session operator(pg_catalog.+) %(skip)s::pg_catalog.int8,
           system = h.system, timeline = h.timeline, home = h.home
      from here h
     where l.system operator(pg_catalog.<>) h.system or l.timeline operator(pg_catalog.<>) h.timeline
        or l.home operator(pg_catalog.<>) h.home
    returning l.incarnation
),
unled as (
    update undoubt_ledger.clock k set leader = null, beat = k.beat operator(pg_catalog.+) 1 from changed returning 1
),
closed as (
    update undoubt_ledger.session s set state = 'restored', closed_ms = k.time_ms
      from changed, undoubt_ledger.clock k
     where s.state operator(pg_catalog.=) 'open'
    returning s.id
)
select incarnation, (select pg_catalog.count(*) from closed), (select pg_catalog.count(*) from unled), {durable}
  from changed

-- name: decide
-- FOR SHARE waits for an expiry of the same session, or makes the expiry wait; then the state that was read is final.
-- (FOR KEY SHARE would not: an UPDATE of other columns does not conflict with it.) No decision is read from a snapshot,
-- which may be older than the lock: if a decision exists already, the insertion does nothing, and the decision is read
-- by another statement afterwards. Locks are taken in the order of the keys, as in all statements.
with here as materialized ({here}),
given as materialized (
    select *
      from rows from (
             pg_catalog.unnest(%(session)s::pg_catalog.int8[]), pg_catalog.unnest(%(nonce)s::pg_catalog.text[]),
             pg_catalog.unnest(%(seq)s::pg_catalog.int8[]), pg_catalog.unnest(%(protocol)s::pg_catalog.text[]),
             pg_catalog.unnest(%(decision)s::pg_catalog.text[]), pg_catalog.unnest(%(branches)s::pg_catalog.text[]),
             pg_catalog.unnest(%(decided_at)s::pg_catalog.float8[]), pg_catalog.unnest(%(cause)s::pg_catalog.text[]))
        as g(session, nonce, seq, protocol, decision, branches, decided_at, cause)
),
lease as materialized (
    select s.id, s.nonce, s.name, s.state, s.floor
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) any(%(session)s::pg_catalog.int8[]) and (select same from here)
     order by s.id
       for share
),
written as (
    insert into undoubt_ledger.decision as d
           (session, seq, nonce, protocol, decision, branches, decided_at, coordinator, cause)
    select g.session, g.seq, g.nonce, g.protocol,
           case when g.protocol operator(pg_catalog.=) any(%(by_itself)s::pg_catalog.text[])
                or (s.state operator(pg_catalog.=) 'open' and g.seq operator(pg_catalog.>=) s.floor)
                then g.decision else 'abort' end,
           g.branches, g.decided_at, s.name, g.cause
      from given g
      join lease s on s.id operator(pg_catalog.=) g.session and s.nonce operator(pg_catalog.=) g.nonce
     where s.state operator(pg_catalog.<>) 'dropped'
       and (s.state operator(pg_catalog.<>) 'restored'
            or (g.protocol operator(pg_catalog.=) any(%(by_itself)s::pg_catalog.text[])
                and not (g.protocol operator(pg_catalog.=) any(%(by_absence)s::pg_catalog.text[])
                         and g.decision operator(pg_catalog.=) 'abort')))
     order by g.session, g.seq
        on conflict (session, seq) do nothing
    returning d.session, d.seq, d.decision
),
left_to_do as (
    insert into undoubt_ledger.unfinished (session, seq) select w.session, w.seq from written w
)
select h.same, g.session, g.nonce, g.seq, s.state, w.decision
  from given g
 cross join here h
  left join lease s on s.id operator(pg_catalog.=) g.session and s.nonce operator(pg_catalog.=) g.nonce
       and s.state operator(pg_catalog.<>) 'dropped'
  left join written w on w.session operator(pg_catalog.=) s.id and w.seq operator(pg_catalog.=) g.seq

-- name: recorded
-- Sent after decide, as a separate statement, so that it sees the row because of which decide wrote nothing.
with here as materialized ({here})
select h.same, d.decision, d.branches, d.fingerprint
  from here h
  left join undoubt_ledger.decision d
    on d.session operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and d.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8
       and d.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text

-- name: precommit
-- Takes the same lock as a decision. The row is ignored once its transaction is decided.
with here as materialized ({here}),
lease as materialized (
    select s.id, s.nonce, s.name
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text and s.state operator(pg_catalog.=) 'open'
       and s.floor operator(pg_catalog.<=) %(seq)s::pg_catalog.int8 and (select same from here)
       for share
),
noted as (
    insert into undoubt_ledger.precommitted as p (session, seq, nonce, protocol, branches, coordinator)
    select s.id, %(seq)s::pg_catalog.int8, s.nonce, %(protocol)s::pg_catalog.text, %(branches)s::pg_catalog.text,
           s.name from lease s
        on conflict (session, seq) do update set branches = excluded.branches
)
select h.same, (select id from lease) from here h

-- name: precommitted
with here as materialized ({here})
select h.same, p.protocol, p.branches, p.coordinator, s.state, s.floor
  from here h
  left join undoubt_ledger.precommitted p
    on p.session operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and p.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8
       and p.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
   and not exists (select from undoubt_ledger.decision d
                    where d.session operator(pg_catalog.=) p.session and d.seq operator(pg_catalog.=) p.seq)
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) p.session
       and s.state operator(pg_catalog.<>) 'dropped'

-- name: outcomes
-- One statement, one snapshot, no lock: a snapshot that contains the expiry of a session contains all decisions that
-- were recorded under the session before. A lock on the session would read its newest state together with the
-- decisions of an older snapshot, and a committed transaction could be taken for an aborted one.
with here as materialized ({here}),
given as materialized (
    select * from rows from (
             pg_catalog.unnest(%(session)s::pg_catalog.int8[]), pg_catalog.unnest(%(nonce)s::pg_catalog.text[]),
             pg_catalog.unnest(%(seq)s::pg_catalog.int8[])) as g(session, nonce, seq)
)
select h.same, g.session, g.nonce, g.seq, s.state, s.floor, s.tagged, d.decision,
       (select l.next_session from undoubt_ledger.ledger l) as next_session
  from given g
 cross join here h
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) g.session
       and s.nonce operator(pg_catalog.=) g.nonce and s.state operator(pg_catalog.<>) 'dropped'
  left join undoubt_ledger.decision d on d.session operator(pg_catalog.=) s.id
       and d.seq operator(pg_catalog.=) g.seq

-- name: unfinished
with here as materialized ({here})
select h.same, d.session, d.nonce, d.seq, d.protocol, d.decision, d.branches, d.decided_at, d.coordinator, d.cause
  from here h
  left join (
       (select u.session, u.seq
          from undoubt_ledger.unfinished u
         where (u.session, u.seq) operator(pg_catalog.>)
               (%(session)s::pg_catalog.int8, %(seq)s::pg_catalog.int8)
         order by u.session, u.seq
         limit %(limit)s::pg_catalog.int8) page
       join undoubt_ledger.decision d
       on d.session operator(pg_catalog.=) page.session and d.seq operator(pg_catalog.=) page.seq) on true
 order by d.session, d.seq

-- name: finish
with here as materialized ({here}),
due as (
    select u.session, u.seq
      from rows from (
             pg_catalog.unnest(%(session)s::pg_catalog.int8[]), pg_catalog.unnest(%(nonce)s::pg_catalog.text[]),
             pg_catalog.unnest(%(seq)s::pg_catalog.int8[])) as g(session, nonce, seq)
      join undoubt_ledger.decision d on d.session operator(pg_catalog.=) g.session
           and d.seq operator(pg_catalog.=) g.seq and d.nonce operator(pg_catalog.=) g.nonce
      join undoubt_ledger.unfinished u on u.session operator(pg_catalog.=) g.session
           and u.seq operator(pg_catalog.=) g.seq
     where (select same from here)
     order by u.session, u.seq
       for update of u
),
gone as (
    delete from undoubt_ledger.unfinished u using due
     where u.session operator(pg_catalog.=) due.session and u.seq operator(pg_catalog.=) due.seq
),
overtaken as (
    delete from undoubt_ledger.precommitted p using due
     where p.session operator(pg_catalog.=) due.session and p.seq operator(pg_catalog.=) due.seq
)
select same from here

-- name: claimed
-- The nonces of sessions whose gids have tags.
with here as materialized ({here})
select h.same, s.id, s.nonce
  from here h
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) any(%(session)s::pg_catalog.int8[]) and s.tagged and s.state operator(pg_catalog.<>) 'dropped'

-- name: agents
-- The agents of sessions whose gids have tags.
with here as materialized ({here})
select h.same, s.id, s.nonce, s.agent
  from here h
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) any(%(session)s::pg_catalog.int8[])
       and s.tagged and s.agent is not null and s.state operator(pg_catalog.<>) 'dropped'

-- name: doom
-- Has no effect on a transaction that is decided.
with here as materialized ({here}),
doomed as (
    insert into undoubt_ledger.doomed as k (session, seq, cause)
    select s.id, %(seq)s::pg_catalog.int8, %(cause)s::pg_catalog.text
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8 and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text and s.state operator(pg_catalog.=) 'open'
       and s.floor operator(pg_catalog.<=) %(seq)s::pg_catalog.int8 and (select same from here)
       and not exists (select from undoubt_ledger.decision d where d.session operator(pg_catalog.=) s.id and d.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8)
        on conflict (session, seq) do nothing
)
select same from here

-- name: doomed
with here as materialized ({here})
select h.same, k.cause
  from here h
  left join (undoubt_ledger.doomed k join undoubt_ledger.session s on s.id operator(pg_catalog.=) k.session)
    on k.session operator(pg_catalog.=) %(session)s::pg_catalog.int8 and k.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8 and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
   and s.state operator(pg_catalog.=) 'open' and s.floor operator(pg_catalog.<=) k.seq
   and not exists (select from undoubt_ledger.decision d where d.session operator(pg_catalog.=) k.session and d.seq operator(pg_catalog.=) k.seq)

-- name: drop_doomed
-- Deletes the causes of transactions that can no longer be undecided.
with here as materialized ({here}),
gone as (
    delete from undoubt_ledger.doomed k
     where (select same from here)
       and not exists (select from undoubt_ledger.session s
                        where s.id operator(pg_catalog.=) k.session and s.state operator(pg_catalog.=) 'open' and s.floor operator(pg_catalog.<=) k.seq)
)
select same from here

-- name: aborted
-- Whether the transaction of key k, which is not committed, is aborted. What a snapshot shows of this is final: decisions
-- and ended sessions do not change, and floors only rise. A session of which nothing is known any more ends its keys.
(exists (select from undoubt_ledger.decision d
          where d.session operator(pg_catalog.=) k.session and d.seq operator(pg_catalog.=) k.seq and d.decision operator(pg_catalog.=) 'abort')
 or (not exists (select from undoubt_ledger.decision d where d.session operator(pg_catalog.=) k.session and d.seq operator(pg_catalog.=) k.seq)
     and not exists (select from undoubt_ledger.session s
                      where s.id operator(pg_catalog.=) k.session and s.state operator(pg_catalog.=) any (array['open', 'restored'])
                        and s.floor operator(pg_catalog.<=) k.seq)))

-- name: claim_key
-- Takes the same lock on its session as a decision. A key whose transaction is aborted is taken over.
with here as materialized ({here}),
lease as materialized (
    select s.id, s.nonce
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text and s.state operator(pg_catalog.=) 'open'
       and s.floor operator(pg_catalog.<=) %(seq)s::pg_catalog.int8 and (select same from here)
       and not exists (select from undoubt_ledger.decision d
                        where d.session operator(pg_catalog.=) %(session)s::pg_catalog.int8 and d.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8)
       for share
),
other as materialized (
    select o.key
      from undoubt_ledger.key o
     where o.session operator(pg_catalog.=) %(session)s::pg_catalog.int8 and o.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8
       and o.key operator(pg_catalog.<>) %(key)s::pg_catalog.text
     limit 1
),
claimed as (
    insert into undoubt_ledger.key as k (key, session, nonce, seq)
    select %(key)s::pg_catalog.text, l.id, l.nonce, %(seq)s::pg_catalog.int8
      from lease l where not exists (select from other)
        on conflict (key) do update
           set session = excluded.session, nonce = excluded.nonce, seq = excluded.seq
         where not k.committed and {aborted}
    returning k.key
)
select h.same, (select id from lease), (select key from other), (select key from claimed) from here h

-- name: key_holder
with here as materialized ({here})
select h.same, k.session, k.nonce, k.seq, k.result,
       k.committed or exists (select from undoubt_ledger.decision d
                               where d.session operator(pg_catalog.=) k.session and d.seq operator(pg_catalog.=) k.seq and d.decision operator(pg_catalog.=) 'commit') as committed,
       exists (select from undoubt_ledger.session s where s.id operator(pg_catalog.=) k.session and s.state operator(pg_catalog.=) 'open') as running
  from here h
  left join undoubt_ledger.key k
    on k.key operator(pg_catalog.=) %(key)s::pg_catalog.text and (k.committed or not {aborted})

-- name: commit_key
-- A decision, as in the statement decide, and its key in one transaction. The row of the key is locked, so that no
-- other transaction can take it over meanwhile.
with here as materialized ({here}),
lease as materialized (
    select s.id, s.nonce, s.name, s.state, s.floor
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8 and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
       and s.state operator(pg_catalog.<>) 'dropped' and (select same from here)
       for share
),
mine as materialized (
    select k.key
      from undoubt_ledger.key k join lease l on l.id operator(pg_catalog.=) k.session and l.nonce operator(pg_catalog.=) k.nonce
     where k.key operator(pg_catalog.=) %(key)s::pg_catalog.text and k.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8
       for update of k
),
written as (
    insert into undoubt_ledger.decision as d
           (session, seq, nonce, protocol, decision, branches, decided_at, coordinator, cause)
    select l.id, %(seq)s::pg_catalog.int8, l.nonce, '2',
           case when l.state operator(pg_catalog.=) 'open' and l.floor operator(pg_catalog.<=) %(seq)s::pg_catalog.int8
                 and exists (select from mine) then 'commit' else 'abort' end,
           %(branches)s::pg_catalog.text, %(decided_at)s::pg_catalog.float8, l.name, ''
      from lease l
     where l.state operator(pg_catalog.<>) 'restored'
        on conflict (session, seq) do nothing
    returning d.session, d.seq, d.decision
),
left_to_do as (
    insert into undoubt_ledger.unfinished (session, seq)
    select w.session, w.seq from written w where %(branches)s::pg_catalog.text operator(pg_catalog.<>) '[]'
),
kept as (
    update undoubt_ledger.key k set committed = true, result = %(result)s::pg_catalog.bytea, kept_ms = c.time_ms
      from written w, undoubt_ledger.clock c
     where k.key operator(pg_catalog.=) %(key)s::pg_catalog.text and k.session operator(pg_catalog.=) w.session and k.seq operator(pg_catalog.=) w.seq and w.decision operator(pg_catalog.=) 'commit'
)
select h.same, (select state from lease), (select decision from written) from here h

-- name: free_key
-- Locks in the same order as commit_key.
with here as materialized ({here}),
lease as materialized (
    select s.id, s.nonce, s.name, s.state
      from undoubt_ledger.session s
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8 and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
       and s.state operator(pg_catalog.<>) 'dropped' and (select same from here)
       for share
),
mine as materialized (
    select k.key
      from undoubt_ledger.key k join lease l on l.id operator(pg_catalog.=) k.session and l.nonce operator(pg_catalog.=) k.nonce
     where k.key operator(pg_catalog.=) %(key)s::pg_catalog.text and k.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8 and not k.committed
       for update of k
),
written as (
    insert into undoubt_ledger.decision as d
           (session, seq, nonce, protocol, decision, branches, decided_at, coordinator, cause)
    select l.id, %(seq)s::pg_catalog.int8, l.nonce, '2', 'abort', '[]', %(decided_at)s::pg_catalog.float8, l.name, ''
      from lease l
     where l.state operator(pg_catalog.<>) 'restored' and exists (select from mine)
        on conflict (session, seq) do nothing
    returning d.session, d.seq, d.decision
),
freed as (
    delete from undoubt_ledger.key k using written w
     where k.key operator(pg_catalog.=) %(key)s::pg_catalog.text and k.session operator(pg_catalog.=) w.session and k.seq operator(pg_catalog.=) w.seq
)
select h.same, (select state from lease), (select decision from written) from here h

-- name: drop_keys
-- Deletes the results that are older than the retention, and claims of aborted transactions.
with here as materialized ({here}),
gone as (
    delete from undoubt_ledger.key k using undoubt_ledger.clock c
     where (select same from here)
       and case when k.committed then k.kept_ms operator(pg_catalog.+) %(retention_ms)s::pg_catalog.int8 operator(pg_catalog.<=) c.time_ms else {aborted} end
)
select same from here
-- name: ended
-- Those of the sessions of lock l that have ended. A session that has ended never opens again.
array(select u from pg_catalog.unnest(l.sessions) u
       where not exists (select from undoubt_ledger.session e
                          where e.id operator(pg_catalog.=) u and e.state operator(pg_catalog.=) 'open')) as ended

-- name: lock
-- One lock, and about the session that asks for it: whether it is open, and the number of its requests for all locks.
with here as materialized ({here})
select h.same, l.version, l.entries, {ended},
       exists (select from undoubt_ledger.session s
                where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
                  and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
                  and s.state operator(pg_catalog.=) 'open'),
       (select pg_catalog.count(*)
          from undoubt_ledger.lock k cross join pg_catalog.unnest(k.sessions) u
         where k.sessions operator(pg_catalog.@>) array[%(session)s::pg_catalog.int8]
           and u operator(pg_catalog.=) %(session)s::pg_catalog.int8)
  from here h
  left join undoubt_ledger.lock l on l.name operator(pg_catalog.=) %(name)s::pg_catalog.text

-- name: locks_named
with here as materialized ({here})
select h.same, l.name, l.version, l.entries, {ended}
  from here h
  left join undoubt_ledger.lock l on l.name operator(pg_catalog.=) any (%(names)s::pg_catalog.text[])

-- name: locks_of
with here as materialized ({here})
select h.same, l.name, l.version, l.entries, {ended}
  from here h
  left join (undoubt_ledger.lock l
             join undoubt_ledger.session s on s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
                  and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text)
    on l.sessions operator(pg_catalog.@>) array[%(session)s::pg_catalog.int8]
 order by l.name

-- name: locks
with here as materialized ({here})
select h.same, l.name, l.version, l.entries, {ended}
  from here h
  left join (select * from undoubt_ledger.lock k where k.name operator(pg_catalog.>) %(after)s::pg_catalog.text
              order by k.name limit %(limit)s::pg_catalog.int4) l on true
 order by l.name

-- name: locks_contended
-- The locks with more than one request.
with here as materialized ({here})
select h.same, l.name, l.version, l.entries, {ended}
  from here h
  left join undoubt_ledger.lock l on pg_catalog.cardinality(l.sessions) operator(pg_catalog.>) 1
 order by l.name

-- name: stale_locks
with here as materialized ({here})
select h.same, k.name
  from here h
  left join (select l.name from undoubt_ledger.lock l
              where exists (select from pg_catalog.unnest(l.sessions) u
                             where not exists (select from undoubt_ledger.session e
                                                where e.id operator(pg_catalog.=) u
                                                  and e.state operator(pg_catalog.=) 'open'))
              order by l.name limit %(limit)s::pg_catalog.int4) k on true

-- name: write_lock
-- Compare and set: nothing is written if the row has another version than the one that was read; 0 is: no row. Each
-- write draws at least one token, and the row of the counter is locked until the end of the statement: so tokens
-- increase in the order of the writes. After a restore the counter begins above all tokens that may have been issued
-- since the backup, and above the microseconds of the clock, which are above them if the backup is restored twice.
with here as materialized ({here}),
drawn as (
    update undoubt_ledger.ledger l
       set next_token = greatest(
               l.next_token operator(pg_catalog.+)
               ((l.incarnation operator(pg_catalog.-) l.token_incarnation)
                operator(pg_catalog.*) %(skip)s::pg_catalog.int8),
               least((pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
                      operator(pg_catalog.*) 1000000::pg_catalog.float8)::pg_catalog.int8,
                     %(clock_max)s::pg_catalog.int8))
               operator(pg_catalog.+) %(tokens)s::pg_catalog.int8,
           token_incarnation = l.incarnation
     where (select same from here)
    returning l.next_token operator(pg_catalog.-) %(tokens)s::pg_catalog.int8 as version
),
made as (
    insert into undoubt_ledger.lock as l (name, version, sessions, entries)
    select %(name)s::pg_catalog.text, d.version, %(sessions)s::pg_catalog.int8[], %(entries)s::pg_catalog.text
      from drawn d
     where %(version)s::pg_catalog.int8 operator(pg_catalog.=) 0
       and %(entries)s::pg_catalog.text operator(pg_catalog.<>) ''
        on conflict (name) do nothing
    returning l.version
),
changed as (
    update undoubt_ledger.lock l
       set version = d.version, sessions = %(sessions)s::pg_catalog.int8[], entries = %(entries)s::pg_catalog.text
      from drawn d
     where l.name operator(pg_catalog.=) %(name)s::pg_catalog.text
       and l.version operator(pg_catalog.=) %(version)s::pg_catalog.int8
       and %(entries)s::pg_catalog.text operator(pg_catalog.<>) ''
    returning l.version
),
gone as (
    delete from undoubt_ledger.lock l using drawn d
     where l.name operator(pg_catalog.=) %(name)s::pg_catalog.text
       and l.version operator(pg_catalog.=) %(version)s::pg_catalog.int8
       and %(entries)s::pg_catalog.text operator(pg_catalog.=) ''
    returning d.version
)
select h.same, coalesce((select version from made), (select version from changed), (select version from gone))
  from here h

-- name: open_session
with here as materialized ({here}),
numbered as (
    update undoubt_ledger.ledger set next_session = next_session operator(pg_catalog.+) 1
     where (select same from here)
    returning next_session operator(pg_catalog.-) 1 as id
),
opened as (
    insert into undoubt_ledger.session (id, nonce, name, ttl_ms, state, renewed_ms, tagged, agent)
    select n.id, %(nonce)s::pg_catalog.text, %(name)s::pg_catalog.text, %(ttl_ms)s::pg_catalog.int8, 'open',
           k.time_ms, true, %(agent)s::pg_catalog.text
      from numbered n, undoubt_ledger.clock k
    returning id
)
select h.same, (select id from opened) from here h

-- name: keep_alive
with here as materialized ({here}),
kept as (
    update undoubt_ledger.session s
       set floor = greatest(s.floor, %(floor)s::pg_catalog.int8), renewed_ms = greatest(s.renewed_ms, k.time_ms)
      from undoubt_ledger.clock k
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text and s.state operator(pg_catalog.=) 'open'
       and (select same from here)
    returning s.id
)
select h.same, (select id from kept) from here h

-- name: close_session
with here as materialized ({here}),
closed as (
    update undoubt_ledger.session s set state = 'closed', closed_ms = k.time_ms
      from undoubt_ledger.clock k
     where s.id operator(pg_catalog.=) %(session)s::pg_catalog.int8
       and s.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text and s.state operator(pg_catalog.=) 'open'
       and (select same from here)
    returning s.id
)
select h.same, (select id from closed) from here h

-- name: sessions
with here as materialized ({here})
select h.same, s.id, s.nonce, s.name, s.state, s.floor, s.ttl_ms
  from here h
  left join undoubt_ledger.session s on s.state operator(pg_catalog.<>) 'dropped'
 order by s.id

-- name: record_heuristic
-- A forgotten heuristic stays forgotten, whatever is recorded later.
with here as materialized ({here}),
noted as (
    insert into undoubt_ledger.heuristic as k (gid, session, seq, kind, decision, found_at, note, forgotten)
    select %(gid)s::pg_catalog.text, %(session)s::pg_catalog.int8, %(seq)s::pg_catalog.int8,
           %(kind)s::pg_catalog.text, %(decision)s::pg_catalog.text,
           %(found_at)s::pg_catalog.float8, %(note)s::pg_catalog.text, false
      from here where same
        on conflict (gid) do update
       set kind = excluded.kind, decision = excluded.decision, found_at = excluded.found_at, note = excluded.note
     where k.kind operator(pg_catalog.=) 'heuristic_hazard'
       and excluded.kind operator(pg_catalog.<>) 'heuristic_hazard'
)
select same from here

-- name: forget_heuristic
-- A request that is repeated because its answer was lost gets the same answer.
with here as materialized ({here}),
forgotten as (
    update undoubt_ledger.heuristic set forgotten = true, forgotten_by = %(request)s::pg_catalog.text
     where gid operator(pg_catalog.=) %(gid)s::pg_catalog.text
       and (not forgotten or forgotten_by operator(pg_catalog.=) %(request)s::pg_catalog.text)
       and (select same from here)
    returning gid
)
select h.same, (select gid from forgotten) from here h

-- name: heuristics
with here as materialized ({here})
select h.same, k.gid, k.kind, k.decision, k.found_at, k.note, k.forgotten, k.forgotten_by
  from here h
  left join undoubt_ledger.heuristic k on %(all)s::pg_catalog.bool or not k.forgotten
 order by k.found_at, k.gid

-- name: record_act
-- A second call with the same id records the result; the last one counts. Only the newest acts are kept.
with here as materialized ({here}),
noted as (
    insert into undoubt_ledger.act as k (id, verb, subject, at, who, note, result)
    select %(id)s::pg_catalog.text, %(verb)s::pg_catalog.text, %(subject)s::pg_catalog.text,
           %(at)s::pg_catalog.float8, %(who)s::pg_catalog.text, %(note)s::pg_catalog.text,
           %(result)s::pg_catalog.text
      from here where same
        on conflict (id) do update set result = excluded.result where excluded.result operator(pg_catalog.<>) ''
),
gone as (
    delete from undoubt_ledger.act
     where number operator(pg_catalog.<)
           (select pg_catalog.min(k.number)
              from (select a.number from undoubt_ledger.act a
                     order by a.number desc limit %(keep)s::pg_catalog.int4) k)
       and (select same from here)
)
select same from here

-- name: acts
with here as materialized ({here})
select h.same, k.id, k.verb, k.subject, k.at, k.who, k.note, k.result
  from here h
  left join (select * from undoubt_ledger.act order by number desc limit %(limit)s::pg_catalog.int4) k on true
 order by k.number desc

-- name: transactions
-- The given transaction, or those older than a time of decision and an id, newest first.
with here as materialized ({here}),
chosen as (
    select d.*
      from undoubt_ledger.decision d
     where %(only)s::pg_catalog.int8 is null and d.fingerprint is null
       and (%(at)s::pg_catalog.float8 is null
            or (d.decided_at, d.session, d.seq) operator(pg_catalog.<)
               (%(at)s::pg_catalog.float8, %(session)s::pg_catalog.int8, %(seq)s::pg_catalog.int8))
     order by d.decided_at desc, d.session desc, d.seq desc
     limit %(limit)s::pg_catalog.int4
),
one as (
    select d.*
      from undoubt_ledger.decision d
     where d.session operator(pg_catalog.=) %(only)s::pg_catalog.int8
       and d.seq operator(pg_catalog.=) %(seq)s::pg_catalog.int8
       and d.nonce operator(pg_catalog.=) %(nonce)s::pg_catalog.text
)
select h.same, d.session, d.nonce, d.seq, d.protocol, d.decision, d.branches, d.decided_at, d.coordinator, d.cause,
       s.state, s.floor, u.seq is null as finished, k.key, d.fingerprint
  from here h
  left join (select * from chosen union all select * from one) d on true
  left join undoubt_ledger.session s on s.id operator(pg_catalog.=) d.session
       and s.state operator(pg_catalog.<>) 'dropped'
  left join undoubt_ledger.unfinished u on u.session operator(pg_catalog.=) d.session
       and u.seq operator(pg_catalog.=) d.seq
  left join undoubt_ledger.key k on k.session operator(pg_catalog.=) d.session
       and k.seq operator(pg_catalog.=) d.seq and k.committed
 order by d.decided_at desc, d.session desc, d.seq desc

-- name: heuristics_of
select k.gid, k.kind, k.decision, k.found_at, k.note, k.forgotten, k.forgotten_by
  from undoubt_ledger.heuristic k
 where (k.session, k.seq) operator(pg_catalog.=) any (
       select * from rows from (
             pg_catalog.unnest(%(session)s::pg_catalog.int8[]), pg_catalog.unnest(%(seq)s::pg_catalog.int8[])))
 order by k.found_at, k.gid

-- name: info
-- Decisions are counted up to a number; above it, the estimate of vacuum is returned.
with here as materialized ({here}),
counted as (
    select pg_catalog.count(*) as exact
      from (select 1 from undoubt_ledger.decision d
              join undoubt_ledger.session s on s.id operator(pg_catalog.=) d.session
                   and s.state operator(pg_catalog.<>) 'dropped'
             limit 100001) few
)
select h.same, l.ledger_id, l.incarnation, k.time_ms,
       (select pg_catalog.count(*) from undoubt_ledger.session where state operator(pg_catalog.=) 'open'),
       (select pg_catalog.count(*) from undoubt_ledger.session where state operator(pg_catalog.<>) 'dropped'),
       (select pg_catalog.count(*) from undoubt_ledger.unfinished),
       case when c.exact operator(pg_catalog.<=) 100000 then c.exact
            else greatest(c.exact,
                          (select r.reltuples::pg_catalog.int8 from pg_catalog.pg_class r
                            where r.oid operator(pg_catalog.=) 'undoubt_ledger.decision'::pg_catalog.regclass)) end,
       (select pg_catalog.count(*) from undoubt_ledger.heuristic where not forgotten)
  from here h, counted c, undoubt_ledger.ledger l, undoubt_ledger.clock k

-- name: leader
with here as materialized ({here})
select h.same, k.leader, k.beat from here h, undoubt_ledger.clock k

-- name: take_the_lead
-- A full lifetime of each session begins here.
with here as materialized ({here}),
taken as (
    update undoubt_ledger.clock set leader = %(me)s::pg_catalog.text, beat = beat operator(pg_catalog.+) 1,
           led_from_ms = time_ms
     where array[leader] operator(pg_catalog.=) array[%(leader)s::pg_catalog.text]
       and beat operator(pg_catalog.=) %(beat)s::pg_catalog.int8 and (select same from here)
    returning beat
)
select h.same, (select beat from taken) from here h

-- name: tick
with here as materialized ({here}),
ticked as (
    update undoubt_ledger.clock set time_ms = time_ms operator(pg_catalog.+) %(elapsed_ms)s::pg_catalog.int8,
           beat = beat operator(pg_catalog.+) 1
     where leader operator(pg_catalog.=) %(me)s::pg_catalog.text and (select same from here)
    returning time_ms
)
select h.same, (select time_ms from ticked) from here h

-- name: resign
update undoubt_ledger.clock set leader = null, beat = beat operator(pg_catalog.+) 1
 where leader operator(pg_catalog.=) %(me)s::pg_catalog.text
returning beat, {durable}

-- name: expire
-- A row that was renewed while this statement waited for its lock is evaluated again, and not expired.
with here as materialized ({here}),
due as (
    select s.id
      from undoubt_ledger.session s, undoubt_ledger.clock k
     where s.state operator(pg_catalog.=) 'open' and k.leader operator(pg_catalog.=) %(me)s::pg_catalog.text
       and (select same from here)
       and greatest(s.renewed_ms, k.led_from_ms) operator(pg_catalog.+) s.ttl_ms operator(pg_catalog.<) k.time_ms
     order by s.id
       for no key update of s
),
expired as (
    update undoubt_ledger.session s set state = 'expired', closed_ms = k.time_ms
      from due, undoubt_ledger.clock k
     where s.id operator(pg_catalog.=) due.id and s.state operator(pg_catalog.=) 'open'
    returning s.id
)
select h.same, array(select id from expired order by id) from here h

-- name: held
-- The rows because of which session s is kept, however old it is.
select from undoubt_ledger.unfinished u where u.session operator(pg_catalog.=) s.id
union all
select from undoubt_ledger.heuristic h where h.session operator(pg_catalog.=) s.id and not h.forgotten
union all
select from undoubt_ledger.precommitted p
 where p.session operator(pg_catalog.=) s.id
   and not exists (select from undoubt_ledger.decision d
                    where d.session operator(pg_catalog.=) p.session and d.seq operator(pg_catalog.=) p.seq)

-- name: lock_droppable
-- The rows are locked first and checked again afterwards, in drop_sessions: a decision may be recorded under a closed
-- session in between.
select s.id, {durable}
  from undoubt_ledger.session s, undoubt_ledger.clock k
 where s.state operator(pg_catalog.=) any (array['closed', 'expired', 'restored'])
   and s.closed_ms operator(pg_catalog.+) %(retention_ms)s::pg_catalog.int8 operator(pg_catalog.<=) k.time_ms
   and not exists ({held})
 order by s.id
 limit 1000
   for update of s

-- name: drop_sessions
with dropped as (
    update undoubt_ledger.session s set state = 'dropped'
     where s.id operator(pg_catalog.=) any(%(ids)s::pg_catalog.int8[])
       and not exists ({held})
    returning s.id
),
settled as (
    delete from undoubt_ledger.heuristic h using dropped d where h.session operator(pg_catalog.=) d.id
),
overtaken as (
    delete from undoubt_ledger.precommitted p using dropped d where p.session operator(pg_catalog.=) d.id
)
select id from dropped order by id

-- name: purge
-- Deletes old decisions of dropped sessions, a limited number at a time; a session is deleted with its last decision.
with old as materialized (
    select s.id
      from undoubt_ledger.session s, undoubt_ledger.clock k
     where s.state operator(pg_catalog.=) 'dropped'
       and s.closed_ms operator(pg_catalog.+) %(history_ms)s::pg_catalog.int8 operator(pg_catalog.<=) k.time_ms
     order by s.id
     limit 1000
),
few as materialized (
    select d.session, d.seq from old join undoubt_ledger.decision d on d.session operator(pg_catalog.=) old.id
           limit 10000
),
purged as (
    delete from undoubt_ledger.decision d using few
     where d.session operator(pg_catalog.=) few.session and d.seq operator(pg_catalog.=) few.seq
),
emptied as (
    delete from undoubt_ledger.session s using old
     where s.id operator(pg_catalog.=) old.id and (select pg_catalog.count(*) from few) operator(pg_catalog.<) 10000
)
select pg_catalog.count(*), {durable} from few

-- name: problems
-- For `undoubt ledger check`: inconsistent rows, and settings with which the server may lose what it has answered.
select 'the server runs with fsync off: a crash of its machine can lose decisions'
 where pg_catalog.current_setting('fsync') operator(pg_catalog.=) 'off'
union all
select 'the server runs with full_page_writes off: a crash of its machine can damage the ledger'
 where pg_catalog.current_setting('full_page_writes') operator(pg_catalog.=) 'off'
union all
select 'the ledger has lost its own row; restore it from a backup'
 where not exists (select from undoubt_ledger.ledger) or not exists (select from undoubt_ledger.clock)
union all
select pg_catalog.format('transaction %%s.%%s is unfinished, and its decision is missing', u.session, u.seq)
  from undoubt_ledger.unfinished u
 where not exists (select from undoubt_ledger.decision d
                    where d.session operator(pg_catalog.=) u.session and d.seq operator(pg_catalog.=) u.seq)
union all
select pg_catalog.format('transaction %%s.%%s is unfinished, and its session is missing', u.session, u.seq)
  from undoubt_ledger.unfinished u
 where not exists (select from undoubt_ledger.session s
                    where s.id operator(pg_catalog.=) u.session and s.state operator(pg_catalog.<>) 'dropped')
union all
select pg_catalog.format('transaction %%s.%%s has a decision, and its session is missing', d.session,
       pg_catalog.min(d.seq))
  from undoubt_ledger.decision d
 where not exists (select from undoubt_ledger.session s where s.id operator(pg_catalog.=) d.session)
 group by d.session
union all
select pg_catalog.format('transaction %%s.%%s has another nonce than its session', d.session, pg_catalog.min(d.seq))
  from undoubt_ledger.decision d
  join undoubt_ledger.session s on s.id operator(pg_catalog.=) d.session and s.nonce operator(pg_catalog.<>) d.nonce
 group by d.session
union all
select pg_catalog.format('session %%s is not below the next number, %%s', s.id, l.next_session)
  from undoubt_ledger.session s, undoubt_ledger.ledger l
 where s.id operator(pg_catalog.>=) l.next_session

-- name: rights
-- The other roles that may read the secret or change rows: by grants, and as members of the predefined roles that may
-- read or write everything. {owners} are trusted, as for the schema (participants/schema_trust.py).
with ours as (
    select c.oid, c.relname::pg_catalog.text as name, c.relowner, c.relacl
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
     where n.nspname operator(pg_catalog.=) 'undoubt_ledger' and c.relkind operator(pg_catalog.=) 'r'
),
granted as (
    select ours.name, ours.relowner, a.grantee, a.privilege_type
      from ours cross join pg_catalog.aclexplode(ours.relacl) a
    union
    select ours.name, ours.relowner, a.grantee, a.privilege_type
      from ours
      join pg_catalog.pg_attribute t on t.attrelid operator(pg_catalog.=) ours.oid
     cross join pg_catalog.aclexplode(t.attacl) a
),
able as (
    select g.name, coalesce(r.rolname::pg_catalog.text, '') as role, g.privilege_type as what
      from granted g left join pg_catalog.pg_roles r on r.oid operator(pg_catalog.=) g.grantee
     where g.grantee operator(pg_catalog.<>) g.relowner
       and (g.name operator(pg_catalog.=) 'secret'
            or g.privilege_type operator(pg_catalog.=) any (array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']))
    union
    select '', r.rolname::pg_catalog.text, every.rolname::pg_catalog.text
      from pg_catalog.pg_roles r
      join pg_catalog.pg_roles every
        on every.rolname operator(pg_catalog.=) any (array['pg_read_all_data', 'pg_write_all_data'])
           and every.oid operator(pg_catalog.<>) r.oid and pg_catalog.pg_has_role(r.oid, every.oid, 'MEMBER')
)
select able.name, able.role, pg_catalog.string_agg(able.what, ', ' order by able.what)
  from able
 where not exists (select from pg_catalog.pg_roles r
                    where r.rolname operator(pg_catalog.=) able.role
                      and (r.rolsuper or r.rolname operator(pg_catalog.=) session_user
                           or r.rolname::pg_catalog.text
                              operator(pg_catalog.=) any (%(owners)s::pg_catalog.text[])))
 group by able.name, able.role
 order by able.name, able.role

-- name: branch_lists
select d.session, d.seq, d.branches
  from undoubt_ledger.unfinished u
  join undoubt_ledger.decision d on d.session operator(pg_catalog.=) u.session
       and d.seq operator(pg_catalog.=) u.seq
