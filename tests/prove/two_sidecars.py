"""Two sidecars: transfers between the databases of two services, each with a sidecar of its own, while either
sidecar or both are killed.

Service A begins a transfer at sidecar A and takes the money; service B joins through sidecar B, by the header
``Undoubt-Transaction``, and gives it. Each service runs its branch itself or sends SQL. In a round all
transfers are brought to different moments, then the victim is killed (SIGKILL), then the services go on as
far as they can, then the victim is started again and every transfer is looked at: it is in both databases or
in neither, nothing stays prepared, and both sidecars tell the outcome that the databases show. A service may
also forget to prepare. SQL of service B runs at its own sidecar, the agent of sidecar A: the kill strikes
also when the agent has prepared and sidecar A has not decided, and when the agent's own deadline has passed.
Every second transfer is committed at sidecar B, which forwards the request."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import itertools
import signal
import sys
import tempfile
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.prove.control import control
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.conftest import TABLES
from tests.undoubt.sidecar.stage import Stage, Work, configuration, prepare, staged, value
from undoubt.embedded import EmbeddedServer

VICTIMS = ("a", "b", "both")
TIMEOUT_MS = 60_000
HASTY_S = 2.0
"""The longest timeout of the agent whose deadline passes first."""
LOCK = 77
"""While it is held in the first database, a branch that wrote into ``slow`` cannot be prepared there."""
SLOW = f"""
create table slow (id int);
create function waits() returns trigger language plpgsql as
    $$ begin perform pg_advisory_xact_lock_shared({LOCK}); return null; end $$;
create constraint trigger waits after insert on slow deferrable initially deferred
    for each row execute function waits();
"""
SETTLED_S = 120.0
PLANTED = ("announced-and-missing-has-read",)
CONTROL_S = 420.0
AMOUNT = 10


class Moment(enum.StrEnum):
    """Where the kill strikes."""

    BEGUN = "begun"
    TAKEN = "taken"
    JOINED = "joined"
    FORGOTTEN = "joined, never prepared"
    GIVEN = "given"
    COMMITTING = "committing"
    PREPARED = "one of two prepared"
    LATE = "the agent's deadline has passed"
    COMMITTED = "committed"


def happens(moment: Moment, *, own_a: bool, own_b: bool) -> bool:
    """A branch of a service's own is prepared before the commit; only an agent has a deadline of its own."""
    return not (moment is Moment.PREPARED and own_a) and not (moment is Moment.LATE and own_b)


@dataclass
class Transfer:
    """One case. ``own_a``, ``own_b``: that service runs its branch itself."""

    account: int
    moment: Moment
    own_a: bool
    own_b: bool
    victim: str
    work: Work | None = None
    joined: Work | None = None
    branch: dict[str, Any] = field(default_factory=dict)
    answered: str = ""
    """What the commit was answered."""
    thread: threading.Thread | None = None

    def __str__(self) -> str:
        ways = "own" if self.own_a else "sql", "own" if self.own_b else "sql"
        return f"kill {self.victim} when {self.moment}, {' and '.join(ways)}"


class Play:
    """The two services."""

    def __init__(self, a: Stage, b: Stage, hasty: Stage, databases: dict[str, str]) -> None:
        self.a, self.b, self.hasty, self.databases = a, b, hasty, databases

    def begin(self, transfer: Transfer) -> None:
        work = self.a.tcp("shop").begin(timeout_ms=TIMEOUT_MS)
        transfer.work = work
        agent = self.hasty if transfer.moment is Moment.LATE else self.b
        transfer.joined = Work(agent.tcp("shop", **{"Undoubt-Transaction": work.join}), work.id)

    def take(self, transfer: Transfer) -> None:
        assert transfer.work is not None
        sql = f"update account set balance = balance - {AMOUNT} where id = {transfer.account}"
        if transfer.own_a:
            prepare(self.databases["orders"], transfer.work.announce("orders"), sql)
        else:
            transfer.work.run(sql)
            if transfer.moment is Moment.PREPARED:
                transfer.work.run("insert into slow values (1)")

    def join(self, transfer: Transfer) -> None:
        assert transfer.joined is not None
        if transfer.own_b or transfer.moment is Moment.FORGOTTEN:
            transfer.branch = transfer.joined.announce("payments")

    def give(self, transfer: Transfer) -> None:
        assert transfer.joined is not None
        sql = f"update account set balance = balance + {AMOUNT} where id = {transfer.account}"
        if transfer.moment is Moment.FORGOTTEN:
            return
        if transfer.own_b:
            prepare(self.databases["payments"], transfer.branch, sql)
        else:
            answer = transfer.joined.sql(sql, participant="payments")
            assert answer.status_code == 200, answer.text
        while transfer.moment is Moment.LATE:
            if transfer.joined.sql("select 1", participant="payments").status_code != 200:
                break

    def commit(self, transfer: Transfer) -> None:
        """At sidecar A; every second one at sidecar B first."""
        assert transfer.work is not None
        there = Work(self.b.tcp("shop"), transfer.work.id)
        for work in (there, transfer.work) if transfer.account % 2 else (transfer.work,):
            with contextlib.suppress(httpx.HTTPError):
                told = work.commit().json()
                transfer.answered = told.get("outcome") or told.get("name", "")
                return

    def to_moment(self, transfer: Transfer) -> None:
        steps = (self.begin, self.take, self.join, self.give)
        reached = list(Moment).index(transfer.moment)
        for step in steps[: {0: 1, 1: 2, 2: 3, 3: 3}.get(reached, 4)]:
            step(transfer)
        if transfer.moment is Moment.COMMITTED:
            self.commit(transfer)

    def go_on(self, transfer: Transfer) -> None:
        """As far as it goes; who fails gives up."""
        try:
            if transfer.moment is Moment.BEGUN:
                self.take(transfer)
            if transfer.moment in {Moment.BEGUN, Moment.TAKEN}:
                self.join(transfer)
            if transfer.moment in {Moment.BEGUN, Moment.TAKEN, Moment.JOINED}:
                self.give(transfer)
            self.commit(transfer)
        except (AssertionError, httpx.HTTPError, psycopg.Error):
            assert transfer.work is not None
            with contextlib.suppress(httpx.HTTPError):
                transfer.work.rollback()


async def _play(servers: list[EmbeddedServer], folder: Path, options: argparse.Namespace) -> Findings:
    databases = {"orders": servers[0].dsn("orders"), "payments": servers[1].dsn("payments")}
    await asyncio.to_thread(_made, servers)
    ledger = servers[0].dsn("ledger").replace("postgresql://", "postgresql+psycopg://")
    return await asyncio.to_thread(_rounds, databases, ledger, folder, options)


def _made(servers: list[EmbeddedServer]) -> None:
    for server, names in zip(servers, (("orders", "ledger"), ("payments",)), strict=True):
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            for name in names:
                admin.execute(f"create database {name}".encode())
        with psycopg.connect(server.dsn(names[0]), autocommit=True) as connection:
            connection.execute(TABLES)
            connection.execute(SLOW.encode())


@dataclass
class Findings:
    """What the looks have found, by case."""

    cases: int = 0
    half_applied: list[str] = field(default_factory=list)
    prepared_after: int = 0
    told_wrong: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def _rounds(databases: dict[str, str], ledger: str, folder: Path, options: argparse.Namespace) -> Findings:
    findings = Findings()
    places = {name: folder / name for name in ("init", "a", "b", "hasty")}
    for place in places.values():
        place.mkdir()
    made = undoubt(
        "ledger", "init", "--yes", "--config", str(configuration(places["init"], ledger, databases, 1))
    )
    assert made.status == 0, made.err
    more = "[participants.payments.sidecar]\nsql = true"
    accounts = itertools.count(1)
    with contextlib.ExitStack() as stack:
        a, b = (
            stack.enter_context(staged(places[name], databases, ledger, more, reachable=True))
            for name in "ab"
        )
        hasty = stack.enter_context(
            staged(places["hasty"], databases, ledger, more, reachable=True, timeout_max_s=HASTY_S)
        )
        play = Play(a, b, hasty, databases)
        for victim, own_b in itertools.product(options.victims.split(","), (True, False)):
            # Branches that a sidecar runs hold a connection each, of a participant's connections_max.
            transfers = [
                Transfer(next(accounts), moment, own_a, own_b, victim)
                for moment, own_a in itertools.product(Moment, (True, False))
                if happens(moment, own_a=own_a, own_b=own_b)
            ]
            began = time.monotonic()
            _round(play, victim, transfers)
            for transfer in transfers:
                _look(play, transfer, findings)
            took_s = time.monotonic() - began
            print(f"{took_s:5.1f} s  kill {victim}: {findings.outcomes}", file=sys.stderr)
    return findings


def _round(play: Play, victim: str, transfers: list[Transfer]) -> None:
    stages = [stage for name, stage in (("a", play.a), ("b", play.b)) if victim in {name, "both"}]
    with psycopg.connect(play.databases["orders"], autocommit=True) as lock:
        lock.execute(f"select pg_advisory_lock({LOCK})".encode())
        for transfer in transfers:
            play.to_moment(transfer)
        for moment in (Moment.PREPARED, Moment.COMMITTING):
            for transfer in transfers:
                if transfer.moment is moment:
                    transfer.thread = threading.Thread(target=play.commit, args=(transfer,), daemon=True)
                    transfer.thread.start()
            for transfer in transfers:
                while moment is transfer.moment is Moment.PREPARED and not _prepared(play, transfer):
                    time.sleep(0.01)
        time.sleep(0.01)  # so that the kill strikes those that commit at different steps
        for stage in stages:
            stage.end(signal.SIGKILL)
    for transfer in transfers:
        if transfer.thread is not None:
            transfer.thread.join(60)
        if transfer.moment is not Moment.COMMITTED:
            play.go_on(transfer)
    for stage in stages:
        stage.start()


def _look(play: Play, transfer: Transfer, findings: Findings) -> None:
    assert transfer.work is not None
    findings.cases += 1
    end = time.monotonic() + SETTLED_S
    states: list[str] = []
    while time.monotonic() < end:
        asked = [stage.tcp("watcher").get(transfer.work.path).json() for stage in (play.a, play.b)]
        states = [str(told.get("state", told.get("name"))) for told in asked]
        if set(states) <= {"committed", "aborted"} and not _prepared(play, transfer):
            break
        time.sleep(0.2)
    prepared = _prepared(play, transfer)
    findings.prepared_after += prepared
    sql = f"select balance from account where id = {transfer.account}"
    took, gave = 100 - value(play.databases["orders"], sql), value(play.databases["payments"], sql) - 100
    shown = {(AMOUNT, AMOUNT): "committed", (0, 0): "aborted"}.get((took, gave), "half")
    if shown == "half":
        findings.half_applied.append(f"{transfer}: took {took}, gave {gave}, told {states}")
    answered = {transfer.answered} & {"committed", "aborted"}
    if {*states, *answered} != {shown}:
        findings.told_wrong.append(
            f"{transfer}: {shown}, told {states}, answered {transfer.answered!r}, prepared {prepared}"
        )
    findings.outcomes[shown] = findings.outcomes.get(shown, 0) + 1


def _prepared(play: Play, transfer: Transfer) -> int:
    assert transfer.work is not None
    sql = f"select count(*) from pg_prepared_xacts where gid like '%:{transfer.work.id}:%'"
    return sum(int(value(dsn, sql)) for dsn in play.databases.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--victims", default=",".join(VICTIMS), help="which sidecars are killed")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-two-sidecars-")))
        servers = [await stack.enter_async_context(EmbeddedServer()) for _ in range(2)]
        findings = await _play(servers, folder, options)
    for line in [*findings.half_applied, *findings.told_wrong]:
        print(line, file=sys.stderr)
    result: dict[str, Any] = {
        "cases": findings.cases,
        "half_applied": len(findings.half_applied),
        "prepared_after": findings.prepared_after,
        "told_wrong": len(findings.told_wrong),
        "outcomes": findings.outcomes,
    }
    holds = (
        findings.cases > 84
        and not (findings.half_applied or findings.told_wrong or findings.prepared_after)
        and set(findings.outcomes) == {"committed", "aborted"}
    )
    if not options.no_control:
        planted = await control(
            "two-sidecars", "--no-control", "--victims", "b", mutants=PLANTED, timeout_s=CONTROL_S
        )
        result["control"] = planted.result["half_applied"]
        holds = holds and result["control"] >= 1
    return result, holds
