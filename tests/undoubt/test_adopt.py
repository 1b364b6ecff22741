"""``undoubt recover --adopt``: what a lost ledger has left is ended by proof, by its own protocol, or by a
person who was shown everything."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import column, prepared
from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.config import load
from undoubt.coordinator.ledger import maintenance, open_ledger, secret_file
from undoubt.coordinator.ledger.sqlite.lock import FileLock
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import Charter, Event, Termination

NAMES = ("orders", "payments")


class Lost:
    """Branches of a ledger, which is then taken away; its secret and a backup stay."""

    def __init__(self, folder: Path, dsns: dict[str, str]) -> None:
        self.folder = folder
        self.dsns = dsns
        self.secret = folder / "secret"
        self.backup = folder / "backup"
        (folder / "undoubt.toml").write_text(
            f'[ledger]\nurl = "sqlite:///{folder}/ledger.db"\n'
            + "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in dsns.items())
        )
        (folder / "undoubt.toml").chmod(0o600)
        self.settings: LedgerSettings = load(folder / "undoubt.toml", env={}).ledger
        self.id = ""
        self._seq = 0

    async def build(self) -> None:
        """A ledger with a session, the secret exported; then both are gone, and there is another ledger."""
        await maintenance.init(self.settings)
        await maintenance.export_secret(self.settings, self.secret)
        await maintenance.backup(self.settings, self.backup)
        ledger = await open_ledger(self.settings)
        self.id = ledger.ledger_id
        self.session = await ledger.open_session("shop", 60.0)
        await ledger.close()
        self.remove()
        await maintenance.init(self.settings)
        self.participants = {
            name: PostgresParticipant(name, ParticipantSettings(dsn=dsn), ledger_id=self.id)
            for name, dsn in self.dsns.items()
        }
        for name, dsn in self.dsns.items():
            await self.sql(name, "create table note (id int primary key)")
            await migrate(name, ParticipantSettings(dsn=dsn))

    def remove(self) -> None:
        """Remove the ledger of the settings."""
        for left in self.folder.glob("ledger.db*"):
            if left.is_file():
                left.unlink()

    def points_to(self, url: str) -> None:
        """Change the settings: their ledger is at ``url``."""
        config = self.folder / "undoubt.toml"
        config.write_text(re.sub("url = .*", f'url = "{url}"\nrequest_timeout_s = 1', config.read_text()))

    async def close(self) -> None:
        for participant in self.participants.values():
            await participant.close()

    async def sql(self, name: str, statement: str) -> list[Any]:
        return await column(self.dsns[name], statement)

    def gids(self, protocol: Protocol) -> list[Gid]:
        self._seq += 1
        return [
            Gid(self.id, protocol, self.session.txid(self._seq), number, name).tagged(
                SessionKey(self.session.key)
            )
            for number, name in enumerate(NAMES, 1)
        ]

    async def left(self, protocol: Protocol = Protocol.TWO_PHASE, *, told: bool = True) -> list[Gid]:
        """A transaction prepared in both; of three-phase commit with its rows, in precommit if ``told``."""
        gids = self.gids(protocol)
        key = SessionKey(self.session.key)
        charter = Charter(tuple(gids), Termination.QUORUM)
        for gid in gids:
            participant = self.participants[gid.participant]
            if protocol is Protocol.THREE_PHASE:
                assert await participant.states.enlist(gid, charter, key.note(gid))
            branch = await participant.begin(gid, timeout_s=30, key=key)
            await branch.connection.execute(f"insert into note values ({gid.txid.seq})")
            await branch.prepare()
            await branch.release()
        if protocol is Protocol.THREE_PHASE and told:
            for gid in gids:
                assert await self.participants[gid.participant].states.attempt(gid, 1, Event.TRY_COMMIT)
        return gids

    async def adopt(self, *arguments: str) -> Ran:
        return await asyncio.to_thread(
            undoubt, "recover", "--adopt", self.id, "-o", "json", *arguments, cwd=self.folder
        )

    async def notes(self) -> list[list[int]]:
        return [await self.sql(name, "select id from note order by id") for name in NAMES]


@pytest.fixture
async def lost(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[Lost]:
    made = Lost(tmp_path, databases)
    await made.build()
    yield made
    await made.close()


async def test_three_phase_commits_are_ended_by_their_own_termination(lost: Lost) -> None:
    """The secret proves the names; nobody chooses a direction. One of two-phase commit is left."""
    done = await lost.left(Protocol.THREE_PHASE)
    undone = await lost.left(Protocol.THREE_PHASE, told=False)
    kept = await lost.left()
    shown = await lost.adopt("--secret", str(lost.secret), "--dry-run")
    assert shown.status == 0, shown.err
    assert len(shown.json["transactions"]) == 3
    assert all(one["proved"] for one in shown.json["transactions"])
    unanswered = await lost.adopt("--secret", str(lost.secret))
    assert (unanswered.status, await lost.notes()) == (2, [[], []]), "it asks before it ends anything"
    ran = await lost.adopt("--secret", str(lost.backup), "--yes")
    assert ran.status == 7, ran.err
    assert await lost.notes() == [[done[0].txid.seq]] * 2
    assert {line["action"] for line in ran.json["lines"]} == {"commit", "rollback"}
    assert {line["gid"] for line in ran.json["lines"]} == {str(gid) for gid in (*done, *undone)}
    assert [await prepared(dsn) for dsn in lost.dsns.values()] == [[str(gid)] for gid in kept]
    ran = await lost.adopt("--secret", str(lost.secret), "--rollback", str(kept[0].txid), "--yes")
    assert ran.status == 0, ran.err


async def test_a_person_ends_two_phase_commits_and_is_recorded(lost: Lost) -> None:
    """Whole, and by its id; who, when and why is in the ledger that there is now."""
    one, other = await lost.left(), await lost.left()
    assert (await lost.adopt("--secret", str(lost.secret), "--yes")).status == 7
    assert await lost.notes() == [[], []]
    both = (*("--commit", str(one[0].txid)), *("--rollback", str(one[0].txid)))
    assert (await lost.adopt("--secret", str(lost.secret), "--yes", *both)).status == 2
    ran = await lost.adopt(
        *("--commit", str(one[0].txid), "--rollback", str(other[0])),
        *("--secret", str(lost.secret), "--note", "its order was shipped", "--yes"),
    )
    assert ran.status == 0, ran.err
    assert await lost.notes() == [[one[0].txid.seq]] * 2
    audit = await asyncio.to_thread(undoubt, "audit", "-o", "json", cwd=lost.folder)
    acts = {act["subject"]: act for act in audit.json if act["verb"].startswith("recover --adopt")}
    assert set(acts) == {str(one[0].txid), str(other[0].txid)}
    assert acts[str(one[0].txid)]["note"] == "its order was shipped"
    assert acts[str(one[0].txid)]["result"] == "done"


async def test_without_the_secret_only_what_is_named_is_ended(lost: Lost) -> None:
    """Anybody could have made the names up."""
    one, other = await lost.left(Protocol.THREE_PHASE), await lost.left()
    ran = await lost.adopt("--yes")
    assert ran.status == 7
    assert not any(one["proved"] for one in ran.json["transactions"])
    assert await lost.notes() == [[], []]
    named = ("--terminate", str(one[0].txid), "--rollback", str(other[0].txid))
    assert (await lost.adopt("--yes", *named)).status == 0
    assert await lost.notes() == [[one[0].txid.seq]] * 2


async def test_the_record_says_what_came_of_a_termination(lost: Lost) -> None:
    """Broken if the audit says `done` of one that did nothing, or that a silent participant blocks."""
    two, three = await lost.left(), await lost.left(Protocol.THREE_PHASE, told=False)
    ran = await lost.adopt("--terminate", str(two[0].txid), "--yes")
    assert ran.status == 7, ran.err
    config = lost.folder / "undoubt.toml"
    whole = config.read_text()
    config.write_text(whole.replace(lost.dsns["payments"], "postgresql://postgres@127.0.0.1:1/x"))
    ran = await lost.adopt("--terminate", str(three[0].txid), "--yes")
    assert ran.status == 4, ran.err
    config.write_text(whole)
    assert (await lost.adopt("--terminate", str(three[0].txid), "--yes")).status == 7
    audit = await asyncio.to_thread(undoubt, "audit", "-o", "json", cwd=lost.folder)
    done, blocked, nothing = (act["result"] for act in audit.json if "--adopt" in act["verb"])
    assert done == "done"
    assert blocked.startswith("terminate look again: ")
    assert nothing.startswith("report nothing: ")
    assert (await lost.adopt("--rollback", str(two[0].txid), "--yes")).status == 0


async def test_a_name_that_the_ledger_never_gave_is_not_touched(lost: Lost) -> None:
    gid = Gid(lost.id, Protocol.TWO_PHASE, lost.session.txid(99), 1, "orders", "0123456789" * 2)
    await lost.sql("orders", f"begin; insert into note values (99); prepare transaction '{gid}'")
    ran = await lost.adopt("--secret", str(lost.secret), "--commit", str(gid.txid), "--yes")
    assert ran.status == 3
    ran = await lost.adopt("--secret", str(lost.secret), "--yes")
    assert [one["gid"] for one in ran.json["impostors"]] == [str(gid)]
    await lost.sql("orders", f"rollback prepared '{gid}'")


async def test_a_branch_that_has_committed_rules_out_the_other_direction(lost: Lost) -> None:
    """Broken if a person can split a transaction whose rows tell how it ended."""
    gids = await lost.left(Protocol.THREE_PHASE)
    await lost.sql("orders", f"commit prepared '{gids[0]}'")
    shown = await lost.adopt("--secret", str(lost.secret), "--dry-run")
    [found] = shown.json["transactions"]
    assert [branch["now"] for branch in found["branches"]] == ["committed", "prepared"]
    ran = await lost.adopt("--secret", str(lost.secret), "--rollback", str(gids[0].txid), "--yes")
    assert ran.status == 5
    assert "has committed in orders, by proof" in ran.err
    assert await prepared(lost.dsns["payments"]) == [str(gids[1])]
    assert (await lost.adopt("--secret", str(lost.secret), "--yes")).status == 0
    assert await lost.notes() == [[gids[0].txid.seq]] * 2


async def test_a_ledger_that_is_there_is_not_adopted(lost: Lost) -> None:
    await maintenance.restore(lost.settings, lost.backup, other_ledger=True)
    ran = await lost.adopt("--secret", str(lost.secret))
    assert ran.status == 2
    assert "is not lost" in ran.err


async def committed_in_one(lost: Lost) -> list[Gid]:
    """COMMIT is recorded in the ledger, and one of the branches has followed it."""
    gids = await lost.left()
    await lost.sql("orders", f"commit prepared '{gids[0]}'")
    return gids


async def refused_whole(lost: Lost, gids: list[Gid], status: int) -> str:
    """The words of the refusal of a rollback, which must not split the transaction."""
    chosen = ("--secret", str(lost.secret), "--rollback", str(gids[0].txid), "--yes")
    ran = await lost.adopt(*chosen)
    assert ran.status == status, ran.err
    assert await prepared(lost.dsns["payments"]) == [str(gids[1])]
    return ran.err


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("raft://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", 4),
        ("postgresql+psycopg://postgres@127.0.0.1:1/ledger", 4),
        ("postgresql://postgres@127.0.0.1:1/ledger", 2),
        ("sqlite:///none.db", 3),
        ("sqlite:///damaged.db", 1),
    ],
    ids=["no-quorum", "silent-server", "misconfigured", "missing", "damaged"],
)
async def test_a_ledger_that_may_not_be_lost_is_not_adopted(lost: Lost, url: str, status: int) -> None:
    """Broken if an error of the configured ledger, which may be the one to adopt, is taken for its loss."""
    gids = await committed_in_one(lost)
    (lost.folder / "damaged.db").write_bytes(b"damaged" * 1000)
    lost.points_to(url)
    await refused_whole(lost, gids, status)
    await lost.sql("payments", f"commit prepared '{gids[1]}'")


async def test_a_ledger_whose_owner_does_not_answer_is_not_adopted(lost: Lost) -> None:
    """Its owner is stopped for a while: the file is locked, and its socket accepts nothing."""
    gids = await committed_in_one(lost)
    await maintenance.restore(lost.settings, lost.backup, other_ledger=True)
    lost.points_to(lost.settings.url)
    lock = FileLock.take(lost.folder / "ledger.db")
    assert lock is not None
    told = await refused_whole(lost, gids, 4)
    assert f"ledger {lost.id} is the ledger of the settings, and not lost" in " ".join(told.split())
    lock.release()
    assert "is not lost" in await refused_whole(lost, gids, 2)
    await lost.sql("payments", f"commit prepared '{gids[1]}'")


async def test_without_a_ledger_nothing_is_ended_unrecorded(lost: Lost) -> None:
    """What is left is shown; every act is recorded, so a ledger has to be made first."""
    gids = await lost.left()
    lost.remove()
    shown = await lost.adopt("--secret", str(lost.secret), "--dry-run")
    assert shown.status == 0, shown.err
    assert [one["txid"] for one in shown.json["transactions"]] == [str(gids[0].txid)]
    ran = await lost.adopt("--secret", str(lost.secret), "--rollback", str(gids[0].txid), "--yes")
    assert ran.status == 3
    assert "undoubt ledger init" in ran.err
    assert [await prepared(dsn) for dsn in lost.dsns.values()] == [[str(gid)] for gid in gids]
    for gid in gids:
        await lost.sql(gid.participant, f"rollback prepared '{gid}'")


async def test_a_secret_is_written_once_for_its_owner_alone(lost: Lost) -> None:
    ledger_id, secret = secret_file.read(lost.secret) or ("", b"")
    assert (ledger_id, len(secret)) == (lost.id, 32)
    assert lost.secret.stat().st_mode & 0o777 == 0o600
    lost.remove()
    again = await asyncio.to_thread(
        undoubt, "ledger", "init", "--yes", "--export-secret", str(lost.secret), cwd=lost.folder
    )
    assert again.status == 2
    assert "overwrites no file" in again.err
