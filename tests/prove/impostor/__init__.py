"""Impostors: whoever may connect to a database tries to have a say in transactions that are not theirs.

Attackers are roles of the database servers: one that may only connect, the owner of the databases, one that
may create schemas. Beside an honest system that moves money they forge names, replay names that have ended,
and leave notes, functions and defaults where undoubt will pass. The proof holds if no outcome was changed, no
node or owner of a ledger stopped, nothing was recorded because of a forged name, no honest work was held up,
no attacker's branch was touched, and no attacker got rights.

- :mod:`people`: the attackers, and how a name is forged. :mod:`plant`: the functions that they leave.
- :mod:`stand`: the servers, the databases, the ledgers.
- :mod:`honest`: the system that is attacked. :mod:`scene`: what is looked at after each attack.
- :mod:`attacks`: the list of attacks. :mod:`names`, :mod:`waits`, :mod:`states`, :mod:`ground` and
  :mod:`ledger_ground` fill it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from contextlib import AsyncExitStack
from typing import Any

from tests.prove.control import control
from tests.prove.impostor import ground, ledger_ground, names, states, waits
from tests.prove.impostor.attacks import ATTACKS, Attack
from tests.prove.impostor.honest import Breach, Kind
from tests.prove.impostor.people import APP, CHIEF
from tests.prove.impostor.scene import Scene
from tests.prove.impostor.stand import Servers, Stand

ATTACK_S = 60.0
STANDS = (
    Stand("sqlite", "2pc"),
    Stand("sqlite", "2pc", CHIEF, "psycopg"),
    Stand("sqlite", "3pc", termination="skeen"),
    Stand("postgresql", "2pc", CHIEF),
    Stand("postgresql", "3pc", APP, "psycopg"),
    Stand("raft", "2pc"),
    Stand("raft", "3pc", CHIEF),
    Stand("raft", "paxos", CHIEF, "psycopg"),
    Stand("sqlite", "2pc", quiet=True),
    Stand("sqlite", "3pc", CHIEF, "psycopg", quiet=True),
    Stand("postgresql", "2pc", CHIEF, quiet=True),
)
PLANTED = (
    "impostor-any-tag",
    "impostor-any-database",
    "impostor-any-role",
    "impostor-any-transaction-id",
    "superuser-owns-everything",
    "owner-of-a-name-not-looked-at",
    "claim-not-proved",
    "name-without-hash-believed",
    "schema-of-anybody-is-believed",
    "schema-migrated-into-anybodys",
    "ledger-schema-of-anybody",
    "ledger-session-keeps-defaults",
)
"""The bugs of the control: with all of them planted, most of what is tried on two stands succeeds."""
CONTROL = "sqlite 2pc as chief|postgresql 2pc as chief (quiet)"
CONTROLLED = "name|number|letter|branch|deadlock|holder|schema undoubt|the ledger's"
"""Which attacks are tried there, by words in their names."""
CONTROL_S = 600.0
MODULES = (names, waits, states, ground, ledger_ground)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="only attacks whose name contains this, or|that")
    parser.add_argument("--stand", default="", help="only stands whose name contains this, or|that")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    proof = Proof()
    words = options.only.split("|")
    wanted = [one for one in ATTACKS if any(word in one.name for word in words)]
    async with AsyncExitStack() as stack:
        servers = Servers()
        await servers.build(stack)
        for stand in STANDS:
            if any(word in str(stand) for word in options.stand.split("|")):
                await proof.on(stand, servers, [one for one in wanted if one.applies(stand)])
    result: dict[str, Any] = {"attacks": proof.tried}
    result |= {str(kind): sum(kind is each for each in proof.found) for kind in Kind}
    result |= {"succeeded": proof.succeeded, "errors": proof.errors}
    holds = proof.tried >= 25 and not proof.found and not proof.errors
    if not options.no_control:
        arguments = ("--no-control", "--stand", CONTROL, "--only", CONTROLLED)
        planted = await control("impostor", *arguments, mutants=PLANTED, timeout_s=CONTROL_S)
        result["control"] = len(planted.result["succeeded"])
        holds = holds and result["control"] >= 10
    return result, holds


class Proof:
    """What was tried and what came of it."""

    def __init__(self) -> None:
        self.tried = 0
        self.found: list[Kind] = []
        self.succeeded: list[str] = []
        self.errors: list[str] = []

    async def on(self, stand: Stand, servers: Servers, chosen: list[Attack]) -> None:
        left = list(chosen)
        while left:
            scene = Scene(stand, servers)
            try:
                await scene.build()
            except Exception as error:  # noqa: BLE001 - other stands may do
                self._failed(f"{stand}: it cannot be set up", error)
                left.clear()
            try:
                while left and not await self._one(scene, left.pop(0)):
                    pass
                self._count(f"{stand}: the money", await scene.count_money())
            except Exception as error:  # noqa: BLE001 - what is left is tried in a scene that is set up anew
                self._failed(str(stand), error)
            finally:
                await scene.close()

    def _failed(self, where: str, error: Exception) -> None:
        self.errors.append(f"{where}: {type(error).__name__}: {error}")
        traceback.print_exc(limit=-8, file=sys.stderr)

    async def _one(self, scene: Scene, attack: Attack) -> bool:
        """Whether the scene can be used no longer."""
        began = time.monotonic()
        self.tried += 1
        where = f"{scene.stand}: {attack.name}"
        try:
            async with asyncio.timeout(ATTACK_S):
                await attack.run(scene)
        except Exception as error:  # noqa: BLE001 - told with the breaches, of which it may be the sign
            self._failed(where, error)
        found = await scene.judge()
        self._count(where, found)
        told = [f"{one.kind}: {one.what}" for one in found] or "ok"
        print(f"{time.monotonic() - began:5.1f} s  {where}: {told}", file=sys.stderr)
        return any(breach.kind is Kind.NODE for breach in found)

    def _count(self, where: str, found: list[Breach]) -> None:
        self.found += [breach.kind for breach in found]
        if found:
            self.succeeded.append(f"{where}: {found[0].kind}: {found[0].what}")


__all__ = ["MODULES", "add_arguments", "main"]
