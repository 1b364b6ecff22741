"""A branch whose commit leaves no note, because it became read only or has written in another database: a
COMMIT in one phase whose answer is lost is told right, or as unknown, at every door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict

import undoubt
from tests.prove.wire_cases import DOORS
from tests.prove.wire_doors import ORDERS, Transfer
from tests.prove.wire_proxy import Fault, Strike, Wire
from tests.servers import Server, fresh_database
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

NEAR = """
    create table paid (id text primary key);
    create extension postgres_fdw; create server far foreign data wrapper postgres_fdw options (host '{host}',
    port '{port}', dbname '{dbname}'); create user mapping for current_user server far
        options (user '{user}', password '{password}', password_required 'false');
    create foreign table far_paid (id text) server far options (table_name 'paid');
    create view seen as select id from far_paid where id <> '' offset 0;
    create function instead() returns trigger language plpgsql
        as 'begin insert into far_paid values (new.id); return new; end';
    create trigger instead instead of insert on seen for each row execute function instead()
"""
INTO = "insert into {table} (id) values ({{}}) /* {name} */"
PLAIN = "plain"
KINDS: dict[str, tuple[str, list[str]]] = {
    PLAIN: ("paid", []),
    "read only": ("paid", ["set transaction read only"]),
    "by a setting": ("paid", ["set transaction_read_only = on"]),
    "in a block": ("paid", ["do 'begin set local transaction_read_only = on; end'"]),
    "far away": ("far_paid", []),
    "through a view": ("seen", []),
}
"""Where a row is written, and what is executed behind that."""

COMMIT = "set constraints all immediate"
"""What undoubt sends to commit in one phase."""
GIVES_UP = "rollback to savepoint undoubt_note"
"""What it sends if there can be no note; it commits without one then."""
UNDOUBT_SAYS = (COMMIT, GIVES_UP)
STRUCK = [(COMMIT, 0), (GIVES_UP, 0), (COMMIT, 1)]
"""What is struck, and how many messages of that kind pass before."""


@dataclass(slots=True)
class Paid(Transfer):
    kind: str = PLAIN

    def statements(self) -> list[tuple[str, str, tuple[str, ...]]]:
        table, then = KINDS[self.kind]
        said = [(ORDERS, INTO.format(table=table, name=self.name), (self.name,))]
        # A comment makes each text another one, so that no driver prepares it.
        return said + [(ORDERS, f"{statement} /* {self.name} */", ()) for statement in then]


@pytest.fixture
async def near_and_far(postgres: Server) -> AsyncIterator[tuple[str, str]]:
    async with fresh_database(postgres, "far") as far, fresh_database(postgres, ORDERS) as near:
        for dsn, schema in (
            (far, "create table paid (id text primary key)"),
            (near, NEAR.format(**{"port": 5432, "password": "", **conninfo_to_dict(far)})),
        ):
            connection = await asyncpg.connect(dsn)
            await connection.execute(schema)
            await connection.close()
        await migrate(ORDERS, ParticipantSettings(dsn=near))
        yield near, far


class Payments:
    """Payments at one door, each of one kind, and what is there of them afterwards."""

    def __init__(self, door: Any, near: Any, far: Any) -> None:
        self._door, self._admins = door, (near, far)
        self._number = 0

    async def pay(self, kind: str) -> tuple[str, bool]:
        """What the caller is told, and whether the row is there."""
        self._number += 1
        name = f"payment {self._number}"
        told = "committed"
        try:
            await self._door.transfer(Paid(name, 0, (ORDERS,), 30.0, kind=kind))
        except undoubt.TransactionAborted:
            told = "aborted"
        except undoubt.OutcomeUnknown:
            told = "unknown"
        sql = "select count(*) from paid where id = $1"
        return told, sum([await admin.fetchval(sql, name) for admin in self._admins]) == 1


@pytest.mark.parametrize("name", list(DOORS))
async def test_what_is_told_of_a_commit_that_may_leave_no_note(
    name: str, near_and_far: tuple[str, str], tmp_path: Path
) -> None:
    """Broken if a transaction that has committed is told as aborted, and done twice; or a commit that leaves
    a note needs more than one message, or is told as unknown."""
    door_of, driver = DOORS[name]
    async with AsyncExitStack() as stack:
        near, far = [await asyncpg.connect(dsn) for dsn in near_and_far]
        stack.callback(near.terminate)
        stack.callback(far.terminate)
        wire = Wire(near_and_far[0])
        await stack.enter_async_context(wire)
        made = {
            "ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"},
            "participants": {ORDERS: {"dsn": wire.dsn, "driver": driver}},
        }
        door = door_of(made, {ORDERS: wire}, lambda step, subject: None)
        await door.open()
        stack.push_async_callback(door.close)
        payments = Payments(door, near, far)
        for kind in KINDS:
            for _ in range(2):  # the second time its connections are there
                wire.arm()
                assert await payments.pay(kind) == ("committed", True)
            said = [label for label in UNDOUBT_SAYS for _, heard in wire.heard if heard[2:].startswith(label)]
            # A session of SQLAlchemy does not know what its statements have changed: it demands no note.
            gives_up = kind != PLAIN and "Session" not in name
            assert said == ([COMMIT, COMMIT, GIVES_UP] if gives_up else [COMMIT])
            for label, number in STRUCK if gives_up else STRUCK[:1]:
                for fault in (Fault.CUT_BEFORE, Fault.ANSWER_LOST):
                    assert await payments.pay(PLAIN) == ("committed", True)
                    wire.arm(Strike(label, fault, hold_s=0.0, passing=number))
                    told = await payments.pay(kind)
                    assert wire.struck
                    wire.arm()
                    assert told in right(kind, fault, "Session" in name), (kind, label, number, fault)


def right(kind: str, fault: Fault, ignorant: bool) -> set[tuple[str, bool]]:
    """What may be told, and be there. ``ignorant``: nobody knows that the branch has written something."""
    told = {("committed", True), ("aborted", False)}
    if kind == PLAIN and not (ignorant and fault is Fault.CUT_BEFORE):
        return told
    return told | {("unknown", True), ("unknown", False)}
