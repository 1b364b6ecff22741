"""A SQLite ledger: its files copied back, copied elsewhere, lost, or set back with their folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.house.tree import ROOT
from tests.prove.setback.world import COMMITTED, Told, World, case
from undoubt.config import Settings
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger

FILES = ("", "-wal", ".anchor")
BELONGING = ("-wal", "-shm")


class Files:
    """The ledger of a case, and copies of its files."""

    def __init__(self, world: World, *, checkpoint: bool = False) -> None:
        self.world = world
        self.checkpoint = checkpoint
        """Carry the WAL over into the file after the copy was made."""
        self.home = world.folder / "home"
        self.home.mkdir()
        self.path = self.home / "undoubt.db"
        self.copies = {name: world.folder / name for name in ("copy", "now")}
        self.settings = self.at(self.path)

    def at(self, path: Path) -> Settings:
        return self.world.settings({"url": f"sqlite:///{path}", "request_timeout_s": 10.0})

    async def told(self) -> None:
        """The story; at its end the owner is killed: the files are as they were at that moment."""
        ledger = await open_ledger(self.settings.ledger, create=True, serves=True)

        async def copy() -> Ledger:
            self._copy("copy")
            await maintenance.backup(self.settings.ledger, self.world.folder / "backup")
            if self.checkpoint:
                await self._carry_over(ledger)
            return ledger

        await self.world.tell(ledger, copy)
        self._copy("now")
        await ledger.close()
        self.put("now")

    async def _carry_over(self, ledger: Ledger) -> None:
        assert isinstance(ledger, SqliteLedger)
        assert ledger.owned is not None
        store = ledger.owned.store
        await ledger.owned.in_thread(
            lambda: store._connection.execute("pragma wal_checkpoint(truncate)").fetchall()
        )

    def _copy(self, name: str) -> None:
        self.copies[name].mkdir()
        for suffix in FILES:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"{self.path}{suffix}", self.copies[name])

    def put(self, name: str, suffixes: Sequence[str] = FILES, *, path: Path | None = None) -> None:
        """As ``cp`` over what is there, whose inodes stay."""
        for suffix in suffixes:
            source = self.copies[name] / f"{self.path.name}{suffix}"
            if source.exists():
                Path(f"{path or self.path}{suffix}").write_bytes(source.read_bytes())

    def remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)


@case("sqlite: nothing but a kill")
async def nothing(world: World) -> Told:
    """No alarm: everything that was acknowledged is finished."""
    files = Files(world)
    await files.told()
    told = await world.look(files.settings)
    applied = {states for name, states in told.states.items() if name != "open"}
    told.silent += applied != {(COMMITTED, COMMITTED)} or bool(told.said)
    return told


@case("sqlite: the file and its -wal are copied back")
async def copied_back(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.put("copy", ("", "-wal"))
    return await world.look(files.settings)


@case("sqlite: the file is copied back without its -wal")
async def copied_back_without(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.remove(*BELONGING)
    files.put("copy", ("",))
    return await world.look(files.settings)


@case("sqlite: cp over the file, the -wal of now stays")
async def copied_over(world: World) -> Told:
    files = Files(world, checkpoint=True)
    await files.told()
    files.put("copy", ("",))
    return await world.look(files.settings)


@case("sqlite: another file is moved into its place")
async def moved_in(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.remove("", *BELONGING)
    for suffix in ("", "-wal"):
        (files.copies["copy"] / f"undoubt.db{suffix}").rename(f"{files.path}{suffix}")
    return await world.look(files.settings)


@case("sqlite: its -wal is lost")
async def wal_lost(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.remove("-wal")
    return await world.look(files.settings)


@case("sqlite: its anchor is lost")
async def anchor_lost(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.put("copy", ("", "-wal"))
    files.remove(".anchor")
    return await world.look(files.settings)


async def _cloned(world: World, suffixes: Sequence[str]) -> Told:
    """Whoever starts the clone acts first; then the original goes on."""
    files = Files(world)
    await files.told()
    (world.folder / "clone").mkdir()
    files.put("copy", suffixes, path=world.folder / "clone" / "undoubt.db")
    told = await world.look(files.at(world.folder / "clone" / "undoubt.db"))
    original = await world.look(files.settings)
    told.split += original.split
    told.false_proofs += original.false_proofs
    told.silent += original.silent + bool(original.said)
    told.states = original.states
    return told


@case("sqlite: the file and its -wal are cloned beside it")
async def cloned(world: World) -> Told:
    return await _cloned(world, ("", "-wal"))


@case("sqlite: everything is cloned beside it")
async def cloned_whole(world: World) -> Told:
    return await _cloned(world, FILES)


@case("sqlite: the file is missing")
async def missing(world: World) -> Told:
    """The message has to say what to do."""
    files = Files(world)
    await files.told()
    files.remove("", *BELONGING)
    told = await world.look(files.settings, create=True)
    told.silent += "undoubt ledger restore" not in told.said
    return told


@case("sqlite: the folder is missing")
async def folder_missing(world: World) -> Told:
    """Nothing shows that there was a ledger, but for what it has left in the databases."""
    files = Files(world)
    await files.told()
    shutil.rmtree(files.home)
    files.home.mkdir()
    told = await world.look(files.settings)
    told.silent += "undoubt recover --adopt" not in told.said
    return told


@case("sqlite: the folder is missing, and a new ledger was made")
async def made_anew(world: World) -> Told:
    files = Files(world)
    await files.told()
    shutil.rmtree(files.home)
    files.home.mkdir()
    return await world.look(files.settings, create=True)


@case("sqlite: the whole folder was set back, ledger restore")
async def folder_set_back(world: World) -> Told:
    """Only the pages can tell: they lead to the verb, after which nothing is presumed."""
    files = Files(world)
    await files.told()
    files.put("copy")
    await maintenance.restore(files.settings.ledger, None)
    told = await world.look(files.settings)
    told.led_to_verb += led_by(
        "docs/ledgers.md", "volume or machine that was set back", "undoubt ledger restore"
    )
    return told


@case("sqlite: the whole folder was set back, ledger restore BACKUP")
async def folder_restored(world: World) -> Told:
    files = Files(world)
    await files.told()
    files.put("copy")
    await maintenance.restore(files.settings.ledger, world.folder / "backup")
    told = await world.look(files.settings)
    told.led_to_verb += led_by("docs/ledgers.md", "undoubt ledger backup FILE", "undoubt ledger restore FILE")
    return told


@case("sqlite: a damaged file is opened by nobody before ledger restore")
async def damaged(world: World) -> Told:
    files = Files(world)
    await files.told()
    data = bytearray(files.path.with_name("undoubt.db-wal").read_bytes())
    data[len(data) // 2] ^= 1
    files.path.with_name("undoubt.db-wal").write_bytes(data)
    told = await world.look(files.settings)
    told.silent += not told.said
    with contextlib.suppress(LedgerError):
        await maintenance.restore(files.settings.ledger, None)
    again = await world.look(files.settings)
    told.split += again.split
    told.false_proofs += again.false_proofs
    told.silent += again.silent
    return told


def led_by(page: str, *words: str) -> int:
    """1 if the page has all these words."""
    text = " ".join((ROOT / page).read_text().split())
    return int(all(word in text for word in words))
