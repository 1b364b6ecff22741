"""What applications can do to the marker of a branch, and to the statements that look at it."""

from __future__ import annotations

_GUARDS_REPLACED = """do $$ declare n text; begin
  for n in select name from pg_prepared_statements loop
    execute format('deallocate %I', n);
    execute format('prepare %I (text) as select ''7''::text, null, null, null', n);
  end loop;
end $$"""
_COMMITTING = "do $$ begin commit; update account set balance = balance where id = 2; end $$"

ATTACKS: dict[str, tuple[str, ...]] = {
    "commit": ("commit",),
    "end": ("end",),
    "rollback": ("rollback",),
    "abort": ("abort",),
    "commit; begin": ("commit; begin",),
    "commit, begin": ("commit", "begin"),
    "commit and chain": ("commit and chain",),
    "rollback and chain": ("rollback and chain",),
    "rollback; begin": ("rollback; begin",),
    "commit; begin; select": ("commit; begin", "select 1"),
    "serializable instead": ("rollback", "begin isolation level serializable"),
    "prepare transaction": ("prepare transaction 'mine'", "rollback prepared 'mine'"),
    "prepare transaction; begin": ("prepare transaction 'mine'; begin",),
    "failed": ("select 1/0",),
    "failed, hidden": ("select 1/0", "select 1"),
    "failed in a savepoint": ("savepoint a", "select 1/0"),
    "savepoint; commit; begin": ("savepoint a", "commit; begin", "savepoint a"),
    "reset all": ("reset all",),
    "reset all in a savepoint": ("savepoint a", "reset all", "release a"),
    "reset the marker": ("reset undoubt.tx",),
    "another marker": ("set local undoubt.tx = 'another'",),
    "another marker for the session": ("set undoubt.tx = '1.0123456789abcdef.1:1'",),
    "set_config": ("select set_config('undoubt.tx', '', true)",),
    "discard all": ("commit", "discard all", "begin"),
    "do with commit": ("commit", _COMMITTING, "begin"),
    "call with commit": ("commit", "call committing()", "begin"),
    "deallocate all": ("deallocate all", "commit; begin"),
    "guards replaced": (_GUARDS_REPLACED, "commit; begin"),
    "guards replaced, rolled back": (_GUARDS_REPLACED, "rollback; begin"),
    "comment": ("commit /* and */ ; /* then */ begin",),
}
"""By name, what is executed one by one after a first UPDATE; errors are swallowed."""

SETTING_UP = """
create table if not exists account (id int primary key, balance int not null);
insert into account values (1, 100), (2, 100) on conflict do nothing;
create or replace procedure committing() language plpgsql as $$ begin commit; end $$
"""
REPLACEMENT = "update account set balance = 0 where id = 2"
"""What the application does after each attack: no branch may carry it to a commit."""
