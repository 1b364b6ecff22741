-- Every statement that the PostgreSQL ledger sends. Each is one transaction of its own, so that no process that
-- stops or loses its connection holds a lock; only the three of dropping share one. {here} is the first of them.

-- name: here
-- Is this the server, the timeline and the table that the ledger last knew as its own? After a failover, a restore
-- or a copy it is not. And whatever this session's setting: a commit of ours waits for the disk and the standbys.
-- On a standby pg_current_wal_lsn() fails with 55000.
-- What a statement reads may be visible here and on no standby yet (a wait that was broken off, a restart). A commit
-- waits for the standbys only if its transaction wrote something, and this message is the least that there is to
-- write; it stands later in the WAL than everything that was read.
select l.system = c.system_identifier
       and l.timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
       and l.home = (select d.oid from pg_database d where d.datname = current_database()) || '/' || l.tableoid as same,
       case when current_setting('synchronous_commit') in ('off', 'local', 'remote_write')
            then set_config('synchronous_commit', 'on', true) end as raised,
       case when current_setting('synchronous_standby_names') <> ''
            then pg_logical_emit_message(true, 'undoubt', '') end as confirmed
  from undoubt_ledger.ledger l, pg_control_system() c

-- name: introduce
-- Once per connection. A pooler hands out process ids of its own.
select pg_is_in_recovery(), current_setting('synchronous_commit'), pg_backend_pid()

-- name: identity
select ledger_id from undoubt_ledger.ledger

-- name: revision
select version_num from undoubt_ledger.migration

-- name: new_incarnation
-- Session numbers go up by more than can have been opened between a backup and its loss.
with here as (
    select c.system_identifier as system, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) as timeline,
           (select d.oid from pg_database d where d.datname = current_database())
           || '/' || 'undoubt_ledger.ledger'::regclass::oid as home
      from pg_control_system() c
),
changed as (
    update undoubt_ledger.ledger l
       set incarnation = l.incarnation + 1, next_session = l.next_session + %(skip)s::bigint,
           system = h.system, timeline = h.timeline, home = h.home
      from here h
     where (l.system, l.timeline, l.home) <> (h.system, h.timeline, h.home)
    returning l.incarnation
),
unled as (
    update undoubt_ledger.clock k set leader = null, beat = k.beat + 1 from changed returning 1
),
closed as (
    update undoubt_ledger.session s set state = 'restored', closed_ms = k.time_ms
      from changed, undoubt_ledger.clock k
     where s.state = 'open'
    returning s.id
)
select incarnation, (select count(*) from closed), (select count(*) from unled) from changed

-- name: decide
-- FOR SHARE waits for an expiry of the same session, or makes it wait; then the state that counts is in hand.
-- (FOR KEY SHARE would not: an UPDATE of other columns goes on beside it.) Nothing is read from a snapshot that may
-- be older than that: a decision that is there already makes the insertion do nothing, and is read afterwards.
-- The order of locks is that of the keys, here and everywhere.
with here as materialized ({here}),
given as materialized (
    select *
      from unnest(%(session)s::bigint[], %(nonce)s::text[], %(seq)s::bigint[], %(protocol)s::text[],
                  %(decision)s::text[], %(branches)s::text[], %(decided_at)s::float8[])
        as g(session, nonce, seq, protocol, decision, branches, decided_at)
),
lease as materialized (
    select s.id, s.nonce, s.name, s.state, s.floor
      from undoubt_ledger.session s
     where s.id = any(%(session)s::bigint[]) and (select same from here)
     order by s.id
       for share
),
written as (
    insert into undoubt_ledger.decision as d
           (session, seq, nonce, protocol, decision, branches, decided_at, coordinator)
    select g.session, g.seq, g.nonce, g.protocol,
           case when g.protocol = any(%(by_itself)s::text[]) or (s.state = 'open' and g.seq >= s.floor)
                then g.decision else 'abort' end,
           g.branches, g.decided_at, s.name
      from given g
      join lease s on s.id = g.session and s.nonce = g.nonce
     where s.state <> 'dropped' and (s.state <> 'restored' or g.protocol = any(%(by_itself)s::text[]))
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
  left join lease s on s.id = g.session and s.nonce = g.nonce and s.state <> 'dropped'
  left join written w on w.session = s.id and w.seq = g.seq

-- name: recorded
-- After decide, and in a statement of its own, so that it sees what made decide write nothing.
with here as materialized ({here})
select h.same, d.decision, d.branches
  from here h
  left join undoubt_ledger.decision d
    on d.session = %(session)s::bigint and d.seq = %(seq)s::bigint and d.nonce = %(nonce)s::text

-- name: precommit
-- Under the same lock as a decision. A row whose transaction is decided meanwhile is not looked at any more.
with here as materialized ({here}),
lease as materialized (
    select s.id, s.nonce, s.name
      from undoubt_ledger.session s
     where s.id = %(session)s::bigint and s.nonce = %(nonce)s::text and s.state = 'open'
       and s.floor <= %(seq)s::bigint and (select same from here)
       for share
),
noted as (
    insert into undoubt_ledger.precommitted as p (session, seq, nonce, protocol, branches, coordinator)
    select s.id, %(seq)s::bigint, s.nonce, %(protocol)s::text, %(branches)s::text, s.name from lease s
        on conflict (session, seq) do update set branches = excluded.branches
)
select h.same, (select id from lease) from here h

-- name: precommitted
with here as materialized ({here})
select h.same, p.protocol, p.branches, p.coordinator, s.state, s.floor
  from here h
  left join undoubt_ledger.precommitted p
    on p.session = %(session)s::bigint and p.seq = %(seq)s::bigint and p.nonce = %(nonce)s::text
   and not exists (select from undoubt_ledger.decision d where d.session = p.session and d.seq = p.seq)
  left join undoubt_ledger.session s on s.id = p.session and s.state <> 'dropped'

-- name: outcomes
-- One statement, one snapshot, no lock: a snapshot that has the expiry of a session has all that was decided under
-- it before. Locking the session here would read its newest state beside an older snapshot's decisions, and take a
-- committed transaction for an aborted one.
with here as materialized ({here}),
given as materialized (
    select * from unnest(%(session)s::bigint[], %(nonce)s::text[], %(seq)s::bigint[]) as g(session, nonce, seq)
)
select h.same, g.session, g.nonce, g.seq, s.state, s.floor, d.decision
  from given g
 cross join here h
  left join undoubt_ledger.session s on s.id = g.session and s.nonce = g.nonce and s.state <> 'dropped'
  left join undoubt_ledger.decision d on d.session = s.id and d.seq = g.seq

-- name: unfinished
with here as materialized ({here})
select h.same, d.session, d.nonce, d.seq, d.protocol, d.decision, d.branches, d.decided_at, d.coordinator
  from here h
  left join (undoubt_ledger.unfinished u join undoubt_ledger.decision d using (session, seq)) on true
 order by d.decided_at, d.session, d.seq

-- name: finish
with here as materialized ({here}),
due as (
    select u.session, u.seq
      from unnest(%(session)s::bigint[], %(nonce)s::text[], %(seq)s::bigint[]) as g(session, nonce, seq)
      join undoubt_ledger.decision d on d.session = g.session and d.seq = g.seq and d.nonce = g.nonce
      join undoubt_ledger.unfinished u on u.session = g.session and u.seq = g.seq
     where (select same from here)
     order by u.session, u.seq
       for update of u
),
gone as (
    delete from undoubt_ledger.unfinished u using due where u.session = due.session and u.seq = due.seq
),
overtaken as (
    delete from undoubt_ledger.precommitted p using due where p.session = due.session and p.seq = due.seq
)
select same from here

-- name: open_session
with here as materialized ({here}),
numbered as (
    update undoubt_ledger.ledger set next_session = next_session + 1
     where (select same from here)
    returning next_session - 1 as id
),
opened as (
    insert into undoubt_ledger.session (id, nonce, name, ttl_ms, state, renewed_ms)
    select n.id, %(nonce)s::text, %(name)s::text, %(ttl_ms)s::bigint, 'open', k.time_ms
      from numbered n, undoubt_ledger.clock k
    returning id
)
select h.same, (select id from opened) from here h

-- name: keep_alive
with here as materialized ({here}),
kept as (
    update undoubt_ledger.session s
       set floor = greatest(s.floor, %(floor)s::bigint), renewed_ms = greatest(s.renewed_ms, k.time_ms)
      from undoubt_ledger.clock k
     where s.id = %(session)s::bigint and s.nonce = %(nonce)s::text and s.state = 'open'
       and (select same from here)
    returning s.id
)
select h.same, (select id from kept) from here h

-- name: close_session
with here as materialized ({here}),
closed as (
    update undoubt_ledger.session s set state = 'closed', closed_ms = k.time_ms
      from undoubt_ledger.clock k
     where s.id = %(session)s::bigint and s.nonce = %(nonce)s::text and s.state = 'open'
       and (select same from here)
    returning s.id
)
select h.same, (select id from closed) from here h

-- name: sessions
with here as materialized ({here})
select h.same, s.id, s.nonce, s.name, s.state, s.floor, s.ttl_ms
  from here h
  left join undoubt_ledger.session s on s.state <> 'dropped'
 order by s.id

-- name: record_heuristic
with here as materialized ({here}),
noted as (
    insert into undoubt_ledger.heuristic as k (gid, session, seq, kind, decision, found_at, note, forgotten)
    select %(gid)s::text, %(session)s::bigint, %(seq)s::bigint, %(kind)s::text, %(decision)s::text,
           %(found_at)s::float8, %(note)s::text, false
      from here where same
        on conflict (gid) do update
       set kind = excluded.kind, decision = excluded.decision, found_at = excluded.found_at, note = excluded.note,
           forgotten = false
     where k.kind = 'heuristic_hazard' and excluded.kind <> 'heuristic_hazard'
)
select same from here

-- name: forget_heuristic
-- A request that is repeated because its answer was lost is answered the same.
with here as materialized ({here}),
forgotten as (
    update undoubt_ledger.heuristic set forgotten = true, forgotten_by = %(request)s::text
     where gid = %(gid)s::text and (not forgotten or forgotten_by = %(request)s::text) and (select same from here)
    returning gid
)
select h.same, (select gid from forgotten) from here h

-- name: heuristics
with here as materialized ({here})
select h.same, k.gid, k.kind, k.decision, k.found_at, k.note, k.forgotten, k.forgotten_by
  from here h
  left join undoubt_ledger.heuristic k on %(all)s::boolean or not k.forgotten
 order by k.found_at, k.gid

-- name: transactions
-- Those given, or those older than a time of decision and an id; the newest first.
with here as materialized ({here}),
chosen as (
    select d.*
      from undoubt_ledger.decision d
     where %(only)s::bigint is null
       and (%(at)s::float8 is null
            or (d.decided_at, d.session, d.seq) < (%(at)s::float8, %(session)s::bigint, %(seq)s::bigint))
     order by d.decided_at desc, d.session desc, d.seq desc
     limit %(limit)s::int
),
one as (
    select d.*
      from undoubt_ledger.decision d
     where d.session = %(only)s::bigint and d.seq = %(seq)s::bigint and d.nonce = %(nonce)s::text
)
select h.same, d.session, d.nonce, d.seq, d.protocol, d.decision, d.branches, d.decided_at, d.coordinator,
       s.state, s.floor, u.seq is null as finished
  from here h
  left join (select * from chosen union all select * from one) d on true
  left join undoubt_ledger.session s on s.id = d.session and s.state <> 'dropped'
  left join undoubt_ledger.unfinished u on u.session = d.session and u.seq = d.seq
 order by d.decided_at desc, d.session desc, d.seq desc

-- name: heuristics_of
select k.gid, k.kind, k.decision, k.found_at, k.note, k.forgotten, k.forgotten_by
  from undoubt_ledger.heuristic k
 where (k.session, k.seq) in (select * from unnest(%(session)s::bigint[], %(seq)s::bigint[]))
 order by k.found_at, k.gid

-- name: info
-- Decisions are counted as far as that is quick; beyond, vacuum's estimate is told.
with here as materialized ({here}),
counted as (
    select count(*) as exact
      from (select 1 from undoubt_ledger.decision d
              join undoubt_ledger.session s on s.id = d.session and s.state <> 'dropped'
             limit 100001) few
)
select h.same, l.ledger_id, l.incarnation, k.time_ms,
       (select count(*) from undoubt_ledger.session where state = 'open'),
       (select count(*) from undoubt_ledger.session where state <> 'dropped'),
       (select count(*) from undoubt_ledger.unfinished),
       case when c.exact <= 100000 then c.exact
            else greatest(c.exact, (select reltuples::bigint from pg_class
                                     where oid = 'undoubt_ledger.decision'::regclass)) end,
       (select count(*) from undoubt_ledger.heuristic where not forgotten)
  from here h, counted c, undoubt_ledger.ledger l, undoubt_ledger.clock k

-- name: leader
with here as materialized ({here})
select h.same, k.leader, k.beat from here h, undoubt_ledger.clock k

-- name: take_the_lead
-- Everybody gets a full lifetime from here on.
with here as materialized ({here}),
taken as (
    update undoubt_ledger.clock set leader = %(me)s::text, beat = beat + 1, led_from_ms = time_ms
     where leader is not distinct from %(leader)s::text and beat = %(beat)s::bigint and (select same from here)
    returning beat
)
select h.same, (select beat from taken) from here h

-- name: tick
with here as materialized ({here}),
ticked as (
    update undoubt_ledger.clock set time_ms = time_ms + %(elapsed_ms)s::bigint, beat = beat + 1
     where leader = %(me)s::text and (select same from here)
    returning time_ms
)
select h.same, (select time_ms from ticked) from here h

-- name: resign
update undoubt_ledger.clock set leader = null, beat = beat + 1 where leader = %(me)s::text returning beat

-- name: expire
-- A row that was renewed while this waited for it is looked at again, and left.
with here as materialized ({here}),
due as (
    select s.id
      from undoubt_ledger.session s, undoubt_ledger.clock k
     where s.state = 'open' and k.leader = %(me)s::text and (select same from here)
       and greatest(s.renewed_ms, k.led_from_ms) + s.ttl_ms < k.time_ms
     order by s.id
       for no key update of s
),
expired as (
    update undoubt_ledger.session s set state = 'expired', closed_ms = k.time_ms
      from due, undoubt_ledger.clock k
     where s.id = due.id and s.state = 'open'
    returning s.id
)
select h.same, array(select id from expired order by id) from here h

-- name: held
-- What keeps session s, however old it is.
select from undoubt_ledger.unfinished u where u.session = s.id
union all
select from undoubt_ledger.heuristic h where h.session = s.id and not h.forgotten
union all
select from undoubt_ledger.precommitted p
 where p.session = s.id
   and not exists (select from undoubt_ledger.decision d where d.session = p.session and d.seq = p.seq)

-- name: lock_droppable
-- Locked first and looked over afterwards, in drop_sessions: a decision may slip in under a session that is closed.
select s.id
  from undoubt_ledger.session s, undoubt_ledger.clock k
 where s.state in ('closed', 'expired', 'restored') and s.closed_ms + %(retention_ms)s::bigint <= k.time_ms
   and not exists ({held})
 order by s.id
 limit 1000
   for update of s

-- name: drop_sessions
with dropped as (
    update undoubt_ledger.session s set state = 'dropped'
     where s.id = any(%(ids)s::bigint[])
       and not exists ({held})
    returning s.id
),
settled as (
    delete from undoubt_ledger.heuristic h using dropped d where h.session = d.id
),
overtaken as (
    delete from undoubt_ledger.precommitted p using dropped d where p.session = d.id
)
select id from dropped order by id

-- name: purge
-- What history lets go of dropped sessions, so many decisions at a time; the session goes with its last.
with old as materialized (
    select s.id
      from undoubt_ledger.session s, undoubt_ledger.clock k
     where s.state = 'dropped' and s.closed_ms + %(history_ms)s::bigint <= k.time_ms
     order by s.id
     limit 1000
),
few as materialized (
    select d.session, d.seq from old join undoubt_ledger.decision d on d.session = old.id limit 10000
),
purged as (
    delete from undoubt_ledger.decision d using few where d.session = few.session and d.seq = few.seq
),
emptied as (
    delete from undoubt_ledger.session s using old
     where s.id = old.id and (select count(*) from few) < 10000
)
select count(*) from few

-- name: problems
-- For `undoubt ledger check`: what no ledger may hold, and settings with which the server may lose what it answered.
select 'the server runs with fsync off: a crash of its machine can lose decisions'
 where current_setting('fsync') = 'off'
union all
select 'the server runs with full_page_writes off: a crash of its machine can damage the ledger'
 where current_setting('full_page_writes') = 'off'
union all
select 'the ledger has lost its own row; restore it from a backup'
 where not exists (select from undoubt_ledger.ledger) or not exists (select from undoubt_ledger.clock)
union all
select format('transaction %%s.%%s is unfinished, and its decision is not there', u.session, u.seq)
  from undoubt_ledger.unfinished u
 where not exists (select from undoubt_ledger.decision d where d.session = u.session and d.seq = u.seq)
union all
select format('transaction %%s.%%s is unfinished, and its session is not there', u.session, u.seq)
  from undoubt_ledger.unfinished u
 where not exists (select from undoubt_ledger.session s where s.id = u.session and s.state <> 'dropped')
union all
select format('a decision of transaction %%s.%%s is there, and its session is not', d.session, min(d.seq))
  from undoubt_ledger.decision d
 where not exists (select from undoubt_ledger.session s where s.id = d.session)
 group by d.session
union all
select format('transaction %%s.%%s has another nonce than its session', d.session, min(d.seq))
  from undoubt_ledger.decision d
  join undoubt_ledger.session s on s.id = d.session and s.nonce <> d.nonce
 group by d.session
union all
select format('session %%s is not below the next number, %%s', s.id, l.next_session)
  from undoubt_ledger.session s, undoubt_ledger.ledger l
 where s.id >= l.next_session

-- name: branch_lists
select d.session, d.seq, d.branches
  from undoubt_ledger.unfinished u
  join undoubt_ledger.decision d using (session, seq)
