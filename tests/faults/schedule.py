"""What goes wrong and when: a function of the seed alone."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

EVERY_S = 2.0
"""A fault begins so often, or as often as it takes for each kind to come once."""
FIRST_S, LAST_S = 1.0, 3.0
"""After the beginning the first one; before the end the last one."""
COORDINATORS = ("coordinator-1", "coordinator-2")
DATABASES = ("orders", "payments")


class Kind(enum.StrEnum):
    KILL_LEADER = "kill_leader"
    KILL_FOLLOWER = "kill_follower"
    KILL_NODES = "kill_nodes"
    """All at once, under load, and what their disks have not taken yet is lost: the power of the room."""
    KILL_COORDINATOR = "kill_coordinator"
    KILL_DATABASE = "kill_database"
    STOP_LEADER = "stop_leader"
    """SIGSTOP, later SIGCONT; as all that stop."""
    STOP_FOLLOWER = "stop_follower"
    STOP_COORDINATOR = "stop_coordinator"
    """With a transaction that is prepared and not decided."""
    STOP_DATABASE = "stop_database"
    CUT_LEADER = "cut_leader"
    """From the other nodes, both ways; clients still reach it."""
    CUT_FOLLOWER = "cut_follower"
    """From everybody."""
    CUT_ONE_WAY = "cut_one_way"
    """What the leader says is heard, and it hears nothing; or the other way round."""
    CUT_FLAPPING = "cut_flapping"
    """The leader from the other nodes, again and again."""
    CUT_COORDINATOR = "cut_coordinator"
    """From the nodes."""
    CUT_DATABASE = "cut_database"
    """From everybody."""
    STALL_DISK = "stall_disk"
    """The leader's: nothing that it writes comes to an end."""
    FULL_DISK = "full_disk"
    """The leader's."""
    CLOCK_FORWARD = "clock_forward"
    """A wall clock jumps. The monotonic clock of a machine never does."""
    CLOCK_BACK = "clock_back"


SIGNALS = frozenset(kind for kind in Kind if kind.startswith(("kill", "stop")))
"""Need nothing but processes of one's own."""

_LASTS_S: dict[Kind, tuple[float, float]] = {
    Kind.KILL_NODES: (0.1, 1.0),
    Kind.KILL_COORDINATOR: (0.1, 1.0),
    Kind.STOP_COORDINATOR: (2.0, 7.0),  # its session's lifetime lies in between
    Kind.CUT_COORDINATOR: (0.5, 6.0),
    Kind.CUT_FLAPPING: (2.0, 5.0),
}
"""How long a victim is down, stopped or cut off, in seconds; the others:"""
_OTHERS_LAST_S = (0.2, 3.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """``at_s``: seconds after the beginning. ``victim``: a coordinator or a database by name, a ``leader`` or
    a ``follower``, whoever that is by then. ``lasts_s``: seconds until it is undone. ``extent``: the seconds
    that a clock jumps, or between the changes of what flaps, or the direction that is cut (0: to the victim,
    1: from it)."""

    at_s: float
    kind: Kind
    victim: str
    lasts_s: float
    extent: float = 0.0

    def __str__(self) -> str:
        extent = f", extent {self.extent:g}" if self.extent else ""
        return f"{self.at_s:7.2f} s  {self.kind:<16} {self.victim:<14} for {self.lasts_s:.2f} s{extent}"


def schedule(seed: int, seconds: float, kinds: Collection[Kind]) -> list[Fault]:
    """Each of ``kinds`` once in some order, then again as long as there is room."""
    random = Random(f"faults {seed}")
    count = max(len(kinds), round((seconds - FIRST_S - LAST_S) / EVERY_S))
    every_s = max(seconds - FIRST_S - LAST_S, 0.0) / count
    order: list[Kind] = []
    while len(order) < count:
        order += random.sample(sorted(kinds), len(kinds))
    return [
        _fault(random, round(FIRST_S + (number + random.random()) * every_s, 2), kind)
        for number, kind in enumerate(order[:count])
    ]


def _fault(random: Random, at_s: float, kind: Kind) -> Fault:
    lasts_s = round(random.uniform(*_LASTS_S.get(kind, _OTHERS_LAST_S)), 2)
    extent = 0.0
    if kind is Kind.CUT_ONE_WAY:
        extent = float(random.random() < 0.5)
    elif kind is Kind.CUT_FLAPPING:
        extent = round(random.uniform(0.05, 0.7), 2)
    elif kind in {Kind.CLOCK_FORWARD, Kind.CLOCK_BACK}:
        extent = float(round(random.choice([2, 60, 3_600, 400 * 86_400]) * random.uniform(1, 2)))
        extent = extent if kind is Kind.CLOCK_FORWARD else -extent
    return Fault(at_s, kind, _victim(random, kind), lasts_s, extent)


def _victim(random: Random, kind: Kind) -> str:
    if kind in {Kind.CLOCK_FORWARD, Kind.CLOCK_BACK}:
        return random.choice(["leader", "follower", *COORDINATORS])
    if kind is Kind.KILL_NODES:
        return "nodes"
    victim = kind.rpartition("_")[2]
    if victim == "coordinator":
        return random.choice(COORDINATORS)
    if victim == "database":
        return random.choice(DATABASES)
    return "follower" if victim == "follower" else "leader"
