"""Operators cannot split a transaction by accident: generated acts, on real servers and on every ledger.

Each case is a transaction with two branches, left behind with COMMIT, ABORT or nothing recorded, and a
sequence of commands of `undoubt`, each a process of its own; the first five are written down, the others
seeded. Of those with a decision some are of 3PC, on a cluster some of Paxos Commit, and the database of the
first branch may be down from some point on. A model that shares no code with the product
says with which status each has to end and what it leaves behind. Counted are ``split_unwarned`` (a command
after which one branch is committed and the other rolled back, and which did not say so), ``unaudited`` (one
that is not in the ledger's record of acts with its user and note) and ``wrong_exit_code``. The last case on
each ledger is a recorded COMMIT of which a participant is gone for good. ``control`` is what is counted on
one ledger with a planted bug of each of the three kinds."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from tests.prove.control import control
from tests.prove.ledgers import LEDGERS
from tests.prove.operators_model import DOWN, SCRIPTED, Model, generated, scripted
from tests.prove.processes import ROOT
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.ledger.acting import system_user
from undoubt.coordinator.ledger.contract import Ledger, Session, record_of
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.registry import Registry

NAMES = ("orders", "payments")
TIMEOUT_S = 60.0
MUTANTS = ("split-not-told", "forget-not-audited", "sibling-contradicted")
PLAIN = 3
"""So many cases, one with each record, are of 2PC on every ledger."""
DOWN_DSN = "postgresql://nobody@127.0.0.1:1/nothing"
CONTROL = ("--ledger", "postgresql", "--cases", "3", "--no-control")


class Found(msgspec.Struct):
    acts: int = 0
    split_unwarned: int = 0
    unaudited: int = 0
    wrong_exit_code: int = 0
    wrong_end: int = 0
    """A branch is not as the model has it."""
    cases: int = 0
    control: int = 0

    @property
    def wrong(self) -> tuple[int, int, int]:
        return self.split_unwarned, self.unaudited, self.wrong_exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", choices=sorted(LEDGERS), action="append", help="on these; else on all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=9, help="on each ledger")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The line of JSON, and whether the proof holds."""
    found = Found()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-operators-")))
        dsns = {}
        for name in NAMES:
            server = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await server.create_database("proof")
        for kind in arguments.ledger or sorted(LEDGERS):
            ledgers = LEDGERS[kind](folder)
            await ledgers.build(stack)
            url = (await ledgers.fresh("operators"))["url"]
            config = folder / f"{kind}.toml"
            config.write_text(_configuration(str(url), dsns))
            _down(config).write_text(_configuration(str(url), dsns | {"orders": DOWN_DSN}))
            if kind == "sqlite":
                await _undoubt(config, "ledger", "init")
            for name in NAMES:  # 3PC needs its tables
                status, told = await _undoubt(config, "participants", "migrate", name)
                if status:
                    raise RuntimeError(told)
            await _on(config, random.Random(arguments.seed), arguments.cases, found)  # noqa: S311 - a seed
            await _gone(config, found)
    holds = found.acts >= 60 and not (any(found.wrong) or found.wrong_end)
    if not arguments.no_control:
        planted = (await control("operators", *CONTROL, mutants=MUTANTS)).result
        kinds = [planted[kind] for kind in ("split_unwarned", "unaudited", "wrong_exit_code")]
        found.control = sum(kinds) if all(kinds) else 0
        holds = holds and found.control > 0
    return msgspec.to_builtins(found), holds


def _configuration(url: str, dsns: dict[str, str]) -> str:
    tables = "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in dsns.items())
    return f'[ledger]\nurl = "{url}"\nrequest_timeout_s = 30.0\n{tables}'


def _down(config: Path) -> Path:
    """The configuration with which the database of the first branch is not reached."""
    return config.with_suffix(".down.toml")


def _protocol(number: int, recorded: Decision | None, kind: str) -> Protocol:
    """Of the case: without a decision another protocol than 2PC is for its termination to decide."""
    if recorded is None or number < PLAIN:
        return Protocol.TWO_PHASE
    return Protocol.PAXOS if kind == "raft" and number % 2 else Protocol.THREE_PHASE


async def _on(config: Path, random_: random.Random, cases: int, found: Found) -> None:
    for number in range(cases):
        recorded = (Decision.COMMIT, Decision.ABORT, None)[number % 3]
        settings = load(str(config))
        async with wiring.opened(settings) as (ledger, participants):
            session = await ledger.open_session("proof", 3_600.0)
            protocol = _protocol(number, recorded, config.stem)
            gids = await _left(ledger, participants, session, recorded, protocol)
        # The sessions of a SQLite ledger end with the process that owned it.
        model = Model(None if recorded is None else recorded.value, presumed=config.stem == "sqlite")
        found.cases += 1
        names = (str(gids[0].txid), [str(gid) for gid in gids])
        decided = recorded is not None
        for words in (
            scripted(number, *names) if number < SCRIPTED else generated(random_, *names, decided=decided)
        ):
            if words is DOWN:
                model.down = True
                continue
            await _act(config, model, words, gids, found)
        await _clean_up(config, gids)


async def _gone(config: Path, found: Found) -> None:
    """COMMIT is recorded, and payments never answers again: an operator says so, and nobody waits for it."""
    async with wiring.opened(load(str(config))) as (ledger, participants):
        session = await ledger.open_session("proof", 3_600.0)
        gids = await _left(ledger, participants, session, Decision.COMMIT)
    whole = config.read_text()
    head, _, _ = whole.partition("[participants.payments]")
    config.write_text(f'{head}[participants.payments]\ndsn = "{DOWN_DSN}"\n')
    note = f"act {found.acts}"
    words = ("tx", "resolve", str(gids[0].txid), "--participant-gone", "payments", "--note", note, "--yes")
    status, told = await _undoubt(config, *words)
    found.acts += 1
    found.cases += 1
    async with wiring.opened(load(str(config))) as (ledger, participants):
        audited = [act for act in await ledger.acts(limit=20) if act.note == note and act.result == "done"]
        hazards = {one.gid for one in await ledger.heuristics()}
        waits = [record for record in await ledger.unfinished() if record.txid == gids[0].txid]
        left = [branch.gid for branch in await participants.get("orders").in_doubt()]
    if status != 0:
        found.wrong_exit_code += 1
        print(f"{config.stem}: {words}: status {status}, not 0\n{told}", file=sys.stderr)
    found.unaudited += not audited
    if gids[1] not in hazards or waits or left:
        found.wrong_end += 1
        print(f"{config.stem}: {words} left {hazards}, {waits}, {left}\n{told}", file=sys.stderr)
    config.write_text(whole)
    await _clean_up(config, gids)


async def _left(
    ledger: Ledger,
    participants: Registry,
    session: Session,
    recorded: Decision | None,
    protocol: Protocol = Protocol.TWO_PHASE,
) -> list[Gid]:
    """A transaction that is prepared in both, and what is recorded of it."""
    key, txid = SessionKey(session.key), session.txid(1)
    records, gids = [], []
    for number, name in enumerate(NAMES, 1):
        gid = Gid(ledger.ledger_id, protocol, txid, number, name).tagged(key)
        branch = await participants.get(name).begin(gid, timeout_s=30.0, key=key)
        await branch.connection.execute("create table if not exists undoubt_proof (what text)")
        await branch.connection.execute("insert into undoubt_proof values ('some')")
        prepared = await branch.prepare()
        await branch.release()
        records.append(record_of(gid, prepared.evidence))
        gids.append(gid)
    if recorded is not None:
        await ledger.decide(txid, recorded, records, protocol=protocol)
    return gids


async def _act(config: Path, model: Model, words: list[str], gids: list[Gid], found: Found) -> None:
    note = f"act {found.acts}"
    expected = model.act(words, [str(gid) for gid in gids])
    used = _down(config) if model.down else config
    status, told = await _undoubt(used, *words, "--note", note, "--yes")
    found.acts += 1
    if status != expected.status:
        found.wrong_exit_code += 1
        print(f"{config.stem}: {words}: status {status}, not {expected.status}\n{told}", file=sys.stderr)
    if expected.splits and "splits the transaction" not in told:
        found.split_unwarned += 1
        print(f"{config.stem}: {words} split it without a word\n{told}", file=sys.stderr)
    async with wiring.opened(load(str(config))) as (ledger, participants):
        acts = [act for act in await ledger.acts(limit=20) if act.note == note]
        prepared = {branch.gid for name in NAMES for branch in await participants.get(name).in_doubt()}
    if expected.audited and not any(act.who.startswith(system_user()) for act in acts):
        found.unaudited += 1
        print(f"{config.stem}: {words} is not recorded\n{told}", file=sys.stderr)
    if [gid in prepared for gid in gids] != [end is None for end in model.ends]:
        found.wrong_end += 1
        print(f"{config.stem}: {words} left {prepared}, and not {model.ends}\n{told}", file=sys.stderr)


async def _clean_up(config: Path, gids: list[Gid]) -> None:
    """What is prepared still holds locks that the next case would wait for."""
    async with wiring.opened(load(str(config))) as (_, participants):
        left = {branch.gid for name in NAMES for branch in await participants.get(name).in_doubt()}
    for gid in left & set(gids):
        for verb in ("commit", "rollback"):
            await _undoubt(config, "indoubt", verb, str(gid), "--heuristic", "--contradict", "--yes")


async def _undoubt(config: Path, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "undoubt",
        *words,
        "--config",
        str(config),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(TIMEOUT_S):
        told, _ = await process.communicate()
    return process.returncode or 0, told.decode()
