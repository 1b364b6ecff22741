"""Attacks on a sidecar: a real process before real databases, while a well-behaved client works beside.

``requests`` counts what was sent. ``changed``: what differs from the model after an attack: rows, schemas,
roles and settings of the databases, prepared transactions, transactions that are open, ended or begun, the
number of commits. ``disclosed``: answers that hold what is only the victim's. ``stalled``: transactions of
the well-behaved client that took longer than 10 seconds or failed, and connections, memory and sessions that
are left afterwards. ``answered_5xx``: every answer of 500 and above but the 503 of two stated limits, which
``limited`` counts: an attacker that ends its own database session gets ``ParticipantUnavailable``, and one
that rolls back an id that nobody has begun, in a session that is open, gets ``OutcomeUnknown``.
``control``: for each rule, what the same attack finds in a copy of the tree with that rule's bug planted; the
least of them.

In the order in which a run uses them:

======================  ======================================================================================
:mod:`.world`           what the attacks run against, and the model of what may change there.
:mod:`.wire`            sends requests as bytes.
:mod:`.friend`          is the client that works beside.
:mod:`.attacks_who`     attacks who may: tokens, hosts, ids, participants, capabilities, keys.
:mod:`.attacks_http`    attacks HTTP: methods, bodies, JSON, framing, slowness, crowds.
:mod:`.attacks_sql`     attacks by SQL.
======================  ======================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from tests.prove.control import control
from tests.prove.hostile import attacks_http, attacks_sql, attacks_who
from tests.prove.hostile.friend import Friend
from tests.prove.hostile.world import (
    BODY_BYTES_MAX,
    BODY_TIMEOUT_S,
    LOOK_S,
    SETTLED_S,
    TABLES,
    TRANSACTIONS_MAX,
    World,
    configured,
)
from tests.undoubt.sidecar.stage import staged
from undoubt.embedded import EmbeddedServer

ATTACKS: dict[str, Callable[[World], None]] = {
    "tokens": attacks_who.tokens,
    "hosts": attacks_who.hosts,
    "others": attacks_who.others,
    "participants": attacks_who.participants,
    "capabilities": attacks_who.capabilities,
    "keys": attacks_who.keys,
    "methods": attacks_http.methods,
    "bodies": attacks_http.bodies,
    "documents": attacks_http.documents,
    "framing": attacks_http.framing,
    "pipelines": attacks_http.pipelines,
    "slow": attacks_http.slow,
    "waits": attacks_http.waits,
    "sql": attacks_sql.sql,
    "log": attacks_http.log_of,
}
RULES = {
    "sidecar-any-host": "hosts",
    "sidecar-any-origin": "hosts",
    "sidecar-host-with-a-user": "hosts",
    "sidecar-doubled-headers": "hosts",
    "sidecar-expired-token": "tokens",
    "sidecar-transactions-of-all": "others",
    "sidecar-participants-of-all": "participants",
    "sidecar-key-of-any-client": "keys",
    "capability-unsealed": "capabilities",
    "sidecar-body-without-bound": "bodies",
    "sidecar-one-client-takes-all": "waits",
    "sidecar-keeps-unread-answers": "slow",
    "sidecar-sends-commit": "sql",
    "sidecar-keeps-refused-rows": "sql",
}
"""Planted bugs, and the attack that has to find each."""
CONTROL_S = 300.0
REQUESTS = 10_000
MEMORY_MB = 150.0
"""How much larger the process may be after the attacks."""
SOCKETS = 20
"""Descriptors that may be left more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="of the control")
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with EmbeddedServer() as one, EmbeddedServer() as two:
        dsns = {
            "orders": await one.create_database("orders", owner="shop"),
            "payments": await two.create_database("payments", owner="shop"),
            "scratch": await one.create_database("scratch", owner="scratch"),
        }
        superusers = {
            "orders": one.dsn("orders"), "payments": two.dsn("payments"), "scratch": one.dsn("scratch"),
        }  # fmt: skip
        told = await asyncio.to_thread(_run, dsns, superusers, options.only)
    faults = sum(told[name] for name in ("changed", "disclosed", "stalled", "answered_5xx"))
    holds = not faults and (told["requests"] >= REQUESTS or len(options.only) < len(ATTACKS))
    if not options.no_control:
        told["control"] = min(
            [await _found(patch, attack) for patch, attack in RULES.items() if patch in options.rules]
        )
        holds = holds and told["control"] >= 1
    return told, holds


async def _found(patch: str, attack: str) -> int:
    found = await control("hostile", "--no-control", "--only", attack, mutants=[patch], timeout_s=CONTROL_S)
    faults = sum(found.result[name] for name in ("changed", "disclosed", "stalled", "answered_5xx"))
    print(f"with {patch}: {faults} found by {attack}", file=sys.stderr)
    return int(faults)


def _run(dsns: dict[str, str], superusers: dict[str, str], only: list[str]) -> dict[str, Any]:
    for name, dsn in dsns.items():
        with psycopg.connect(dsn, autocommit=True) as connection:
            made = "create table notes (tag text)" if name == "scratch" else TABLES
            connection.execute(made.encode())
    with (
        tempfile.TemporaryDirectory(prefix="undoubt-hostile-") as folder,
        staged(
            Path(folder),
            dsns,
            more=configured(),
            reachable=True,
            transactions_max=TRANSACTIONS_MAX,
            body_bytes_max=BODY_BYTES_MAX,
            body_timeout_s=BODY_TIMEOUT_S,
            kept_s=600.0,
        ) as stage,
    ):
        world = World(stage, superusers)
        world.lay_baits()
        world.note_state()
        with Friend(world) as friend:
            for name in only:
                began = time.monotonic()
                ATTACKS[name](world)
                world.compare(name)
                print(f"{name}: {time.monotonic() - began:.1f} s, {world.requests} requests", file=sys.stderr)
        world.finish()
        world.compare("the end")
        _look_for_what_is_left(world)
        return _told(world, friend)


def _look_for_what_is_left(world: World) -> None:
    """Of connections, memory, and sessions in the databases."""
    world.close()
    end = time.monotonic() + SETTLED_S
    while (left := world.left(SOCKETS, MEMORY_MB)) and time.monotonic() < end:
        time.sleep(LOOK_S)  # what is left goes by itself, and nothing tells when
    world.stalled += left


def _told(world: World, friend: Friend) -> dict[str, Any]:
    for line in (*world.broken, *world.disclosed, *world.stalled):
        print(line, file=sys.stderr)
    return {
        "requests": world.requests,
        "changed": len(world.changed),
        "answered_5xx": len(world.broken),
        "stalled": len(world.stalled),
        "disclosed": len(world.disclosed),
        "limited": world.limited,
        "beside": friend.transactions,
        "slowest_s": round(friend.slowest_s, 2),
        "answers": {str(status): count for status, count in sorted(world.answers.items())},
    }
