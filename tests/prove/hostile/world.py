"""What the attacks run against, and the model of what may change there.

Three databases on two servers: ``orders`` and ``payments`` are the victim's, ``scratch`` is one in which the
attacker may run SQL, with a role of its own. The attacker also knows the ids of the victim's transactions:
they are in logs, and no secret."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import psycopg

from tests.prove.hostile.wire import Answer, Request, apart, ask
from tests.undoubt.sidecar.stage import Client, Stage, Work, prepare, token
from undoubt.serve.sidecar.tokens import hash_of

VICTIM, ATTACKER, LATE, REVOKED, WATCHER, OPERATOR = (
    "victim", "mallory", "late", "revoked", "watcher", "operator",
)  # fmt: skip
SECRET = "only the victim may read this"
START = 1000
BAITS = range(900, 906)
"""Accounts of the victim's transactions that stay open during the attacks."""
LOOK_S = 0.05
BODY_BYTES_MAX = 100_000
BODY_TIMEOUT_S = 2.0
TRANSACTIONS_MAX = 60
LIMITS = ("ParticipantUnavailable", "OutcomeUnknown")
"""Names of the 503 of stated limits."""
SETTLED_S = 20.0

TABLES = (
    f"create table account (id int primary key, balance int not null, note text not null default '{SECRET}');"
    f"insert into account select id, {START} from generate_series(1, 1000) as id"
)
STATE = """
select 'class ' || n.nspname || '.' || c.relname || ' ' || pg_get_userbyid(c.relowner)
|| coalesce(c.relacl::text, '')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname !~ '^(pg_|information_schema$)'
union all select 'function ' || p.oid::regprocedure::text || md5(p.prosrc) from pg_proc p
join pg_namespace n on n.oid = p.pronamespace where n.nspname !~ '^(pg_|information_schema$)'
union all select 'role ' || to_jsonb(r)::text from pg_roles r
union all select 'member ' || roleid::regrole::text || ' ' || member::regrole::text from pg_auth_members
union all select 'setting ' || to_jsonb(s)::text from pg_db_role_setting s
union all select 'database ' || (to_jsonb(d) - 'datfrozenxid' - 'datminmxid')::text from pg_database d
union all select 'prepared ' || gid || ' ' || owner || ' ' || database from pg_prepared_xacts
"""
"""Everything that nobody may change here but by a transaction of the victim."""


def configured() -> str:
    """The end of the sidecar's configuration: SQL in the last participant, and the clients."""
    clients = (
        (VICTIM, '["transact"]', '["orders", "payments"]', ""),
        (ATTACKER, '["transact"]', '["scratch"]', ""),
        (LATE, '["transact", "operate", "observe"]', '["*"]', "expires = 2020-01-01T00:00:00Z"),
        (REVOKED, '["transact", "operate", "observe"]', '["*"]', ""),
    )
    lines = ["sidecar.sql = true"]
    for name, roles, participants, more in clients:
        lines.append(
            f'[[sidecar.tokens]]\nname = "{name}"\nsha256 = "{hash_of(token(name))}"\nroles = {roles}\n'
            f"participants = {participants}\n{more}"
        )
    return "\n".join(lines)


@dataclass
class Bait:
    """A transaction of the victim that the attacker knows by its id."""

    work: Work
    account: int
    gids: list[str]
    join: str = ""


@dataclass
class World:
    """The stage, what the victim has, and what was found."""

    stage: Stage
    superusers: dict[str, str]
    """Of each database: who sees everything."""
    model: dict[str, dict[int, int]] = field(default_factory=dict)
    """Balances by database and account, where they are not :data:`START`."""
    notes: Counter[str] = field(default_factory=Counter)
    """Rows that the attacker has committed in ``scratch``."""
    baits: list[Bait] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    """States of the victim's transactions that have ended."""
    committed: int = 0
    """Commits that were told to those who may."""
    requests: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """Answers of 5xx."""
    changed: list[str] = field(default_factory=list)
    disclosed: list[str] = field(default_factory=list)
    stalled: list[str] = field(default_factory=list)
    quiet: threading.Lock = field(default_factory=threading.Lock)
    """Held by the client that works beside the attacks during each of its transactions."""
    limited: int = 0
    before: dict[str, list[str]] = field(default_factory=dict)
    sockets_before: int = 0
    memory_before_mb: float = 0.0

    @property
    def port(self) -> int:
        return self.stage.port

    def client(self, name: str) -> Client:
        return self.stage.tcp(name)

    # What the attacks do.

    def ask(self, *requests: Request, reads: bool = False) -> list[Answer]:
        """The answers, which are looked through. ``reads``: the caller was let read what is the victim's."""
        found: list[Answer] = []
        for together in apart(requests):
            if together:
                found += ask(self.port, together)
        self.take(found, len(requests), what=requests, reads=reads)
        return found

    def take(
        self, answers: Iterable[Answer], count: int, *, what: Sequence[Request] = (), reads: bool = False
    ) -> None:
        """Note what a number of requests was answered."""
        self.requests += count
        for number, answer in enumerate(answers):
            self.answers[answer.status] += 1
            asked = what[number] if number < len(what) else None
            if answer.status == 503 and answer.name in LIMITS:
                self.limited += 1
            elif answer.status >= 500:
                self.broken.append(f"{answer.status} {answer.body[:200]!r} to {asked!r:.300}")
            own = b"" if asked is None else unquote_to_bytes(asked.path) + asked.body
            if not reads and any(each in answer.body and each not in own for each in self.secrets()):
                self.disclosed.append(f"{answer.body!r:.100} to {asked!r:.200}")

    def secrets(self) -> Iterator[bytes]:
        """What no answer to the attacker may have."""
        yield SECRET.encode()
        for bait in self.baits:
            yield from (gid.encode() for gid in bait.gids)

    # What the victim has.

    def lay_baits(self) -> None:
        """Open transactions, each with a branch that the sidecar runs and one that is prepared already; and
        two that have ended."""
        victim = self.client(VICTIM)
        for account in BAITS:
            answer = victim.post("/v1/transactions", {"timeout_ms": 900_000}).json()
            work = Work(victim, answer["id"])
            work.run(f"update account set balance = balance - 1 where id = {account}")
            branch = work.announce("payments")
            prepare(
                self.stage.databases["payments"],
                branch,
                f"update account set balance = balance + 1 where id = {account}",
            )
            gids = [each["gid"] for each in work.show()["branches"]]
            self.baits.append(Bait(work, account, gids, answer.get("join", "")))
        for state in ("committed", "aborted"):
            work = victim.begin()
            work.run("update account set balance = balance - 1 where id = 910")
            ended = work.commit() if state == "committed" else work.rollback()
            assert ended.status_code == 200, ended.text
            self.ended[work.id] = state
        self.moved("orders", 910, -1)
        self.committed += 1

    def moved(self, database: str, account: int, amount: int) -> None:
        of_database = self.model.setdefault(database, {})
        of_database[account] = of_database.get(account, START) + amount

    # Whether it is as the model says.

    def note_state(self) -> None:
        """As it is before the attacks."""
        self.before = {name: self.state(name) for name in self.stage.databases}
        self.sockets_before = self.sockets()
        self.memory_before_mb = self.memory_mb()

    def state(self, database: str) -> list[str]:
        with psycopg.connect(self.superusers[database], autocommit=True) as connection:
            return sorted(str(row[0]) for row in connection.execute(STATE.encode()))

    def compare(self, after: str) -> None:
        """Between two attacks."""
        with self.quiet:
            self._compare_transactions(after)
            self._compare_databases(after)

    def _compare_transactions(self, after: str) -> None:
        for bait in self.baits:
            shown = bait.work.show()
            gids = [each["gid"] for each in shown.get("branches", [])]
            if (shown["state"], gids) != ("active", bait.gids):
                self._differs(after, f"transaction {bait.work.id} of account {bait.account} is {shown}")
        known = {bait.work.id for bait in self.baits}
        end = time.monotonic() + SETTLED_S
        while strangers := self._open() - known:
            if time.monotonic() > end:
                self._differs(after, f"transactions were begun: {sorted(strangers)[:5]}")
                for stranger in strangers:
                    self.client(OPERATOR).post(f"/v1/transactions/{stranger}/rollback")
                break
            time.sleep(LOOK_S)
        for id_, state in self.ended.items():
            shown = self.client(VICTIM).get(f"/v1/transactions/{id_}").json()
            if shown.get("state") != state:
                self._differs(after, f"transaction {id_}, {state}, is {shown}")
        self._compare_counts(after)

    def _open(self) -> set[str]:
        found: set[str] = set()
        for state in ("active", "committing", "in_doubt"):
            told = self.client(OPERATOR).get(f"/v1/transactions?state={state}").json()
            found |= {each["id"] for each in told["transactions"]}
        return found

    def _compare_counts(self, after: str) -> None:
        metrics = self.client(OPERATOR).get("/metrics").text
        committed = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("undoubt_transactions_total{") and 'outcome="committed"' in line
        )
        if committed != self.committed:
            self._differs(after, f"{committed:g} transactions were committed, {self.committed} were told")
            self.committed = int(committed)

    def _compare_databases(self, after: str) -> None:
        for name in self.stage.databases:
            if (now := self.state(name)) != self.before[name]:
                lost, new = (
                    sorted({*a} - {*b})[:3] for a, b in ((self.before[name], now), (now, self.before[name]))
                )
                self._differs(after, f"{name}: {lost} became {new}")
                self.before[name] = now
        for name in ("orders", "payments"):
            rows = self.rows(name, "select id, balance, note from account order by id")
            expected = [
                (id_, self.model.get(name, {}).get(id_, START), SECRET) for id_ in range(1, START + 1)
            ]
            if rows != expected:
                wrong = [pair for pair in zip(rows, expected, strict=False) if pair[0] != pair[1]][:3]
                self._differs(after, f"{name}: {len(rows)} rows, {wrong}")
        notes = Counter(row[0] for row in self.rows("scratch", "select tag from notes"))
        if notes != self.notes:
            self._differs(after, f"scratch: {notes - self.notes} too many, {self.notes - notes} missing")
            self.notes = notes

    def rows(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.superusers[database], autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    def _differs(self, after: str, what: str) -> None:
        print(f"changed after {after}: {what}", file=sys.stderr)
        self.changed.append(f"{after}: {what}")

    # The process.

    @property
    def pid(self) -> int:
        assert self.stage.process is not None
        return self.stage.process.pid

    def sockets(self) -> int:
        """Descriptors of the sidecar."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory_mb(self) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def unknown_id(self) -> str:
        """Of a transaction that nobody has begun, and of which the ledger cannot say that it is over."""
        session, _, seq = self.baits[0].work.id.rpartition(".")
        return f"{session}.{int(seq) + 10**6}"

    def close(self) -> None:
        """This side's connections."""
        for client in self.stage.clients:
            client.close()
        self.stage.clients.clear()

    def left(self, sockets: int, memory_mb: float) -> list[str]:
        """What is there that was not before the attacks."""
        found = []
        if (more := self.sockets() - self.sockets_before) > sockets:
            found.append(f"{more} descriptors are left")
        if (mb := self.memory_mb() - self.memory_before_mb) > memory_mb:
            found.append(f"{mb:.0f} MB are left")
        for name in self.stage.databases:
            busy = "select pid, state, query from pg_stat_activity where state like '%in transaction%'"
            found += [f"a session of {name} is left: {row}" for row in self.rows(name, busy)]
        return found

    def finish(self) -> None:
        """The victim ends what it has open, with the outcome that it chooses."""
        for number, bait in enumerate(self.baits):
            commits = number % 2 == 0
            answer = bait.work.commit() if commits else bait.work.rollback()
            wanted = "committed" if commits else "aborted"
            if answer.status_code != 200 or answer.json()["outcome"] != wanted:
                self._differs("the end", f"{bait.work.id} cannot be {wanted}: {answer.text}")
            elif commits:
                self.committed += 1
                self.moved("orders", bait.account, -1)
                self.moved("payments", bait.account, 1)
            self.ended[bait.work.id] = wanted
        self.baits = []
        with contextlib.suppress(KeyError):
            for name in self.before:
                self.before[name] = [line for line in self.before[name] if not line.startswith("prepared ")]
        end = time.monotonic() + SETTLED_S
        while self.rows("orders", "select 1 from pg_prepared_xacts") and time.monotonic() < end:
            time.sleep(LOOK_S)
