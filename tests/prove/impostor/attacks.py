"""The list of attacks: each is a function of a scene, and says where it applies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.prove.impostor.people import APP, CHIEF
from tests.prove.impostor.scene import Scene
from tests.prove.impostor.stand import Stand

EVERY_PROTOCOL = frozenset({"2pc", "3pc", "paxos"})
TWO_PHASE = frozenset({"2pc"})
THREE_PHASE = frozenset({"3pc"})
THREE_PHASE_OR_PAXOS = frozenset({"3pc", "paxos"})
EVERY_LOGIN = frozenset({APP, CHIEF})
SUPERUSER = frozenset({CHIEF})

EVERY_LEDGER = frozenset({"sqlite", "postgresql", "raft"})

Run = Callable[[Scene], Awaitable[None]]


def busy(stand: Stand) -> bool:
    """Where tellers are at work beside the attack."""
    return not stand.quiet


def at_participants(stand: Stand) -> bool:
    """Of what has nothing to do with the ledger: one is enough."""
    return busy(stand) and stand.ledger == "sqlite"


def quiet(stand: Stand) -> bool:
    """Where nobody is: what the attack does to a database is done to all who use it."""
    return stand.quiet


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    run: Run
    protocols: frozenset[str]
    logins: frozenset[str]
    ledgers: frozenset[str]
    stands: Callable[[Stand], bool]

    def applies(self, stand: Stand) -> bool:
        return (
            stand.protocol in self.protocols
            and stand.login in self.logins
            and stand.ledger in self.ledgers
            and self.stands(stand)
        )


ATTACKS: list[Attack] = []


def attack(
    name: str,
    *,
    protocols: frozenset[str] = EVERY_PROTOCOL,
    logins: frozenset[str] = EVERY_LOGIN,
    ledgers: frozenset[str] = EVERY_LEDGER,
    stands: Callable[[Stand], bool] = busy,
) -> Callable[[Run], Run]:
    """Put a function into the list."""

    def put(run: Run) -> Run:
        ATTACKS.append(Attack(name, run, protocols, logins, ledgers, stands))
        return run

    return put
