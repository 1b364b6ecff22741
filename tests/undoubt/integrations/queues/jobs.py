"""Functions of jobs, which workers of RQ import by their names. Their coordinators have the settings of the
file that ``UNDOUBT_CONFIG`` names."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import undoubt.sync
from tests.undoubt.integrations.web.client import act_in_thread
from undoubt.integrations.rq import transactional


@transactional(timeout=30.0)
def place(tx: undoubt.sync.Transaction, what: str, number: int, log: str) -> int:
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    act_in_thread(tx, what, number)
    return number


def ordinary(log: str, *numbers: int) -> list[int]:
    """A job without a transaction of its own."""
    return [place("order", number, log) for number in numbers]


@transactional(timeout=30.0)
def nested(tx: undoubt.sync.Transaction, number: int, log: str) -> int:
    act_in_thread(tx, "order", number)
    return place("order", number + 100, log)


@transactional(timeout=30.0)
def next_order(tx: undoubt.sync.Transaction) -> int:
    found = tx.branch("orders").execute("select count(*) from orders").fetchone()
    number = found[0] + 1 if found else 0
    act_in_thread(tx, "order", number)
    return number


def hasty(tx: undoubt.sync.Transaction, number: int, log: str) -> int:
    """A test makes it a job, with a coordinator for a worker that does not fork."""
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    act_in_thread(tx, "order", number)
    return number


def dying(function: Callable[[str, int, str], int]) -> Callable[[str, int, str], int]:
    """The first run is killed before RQ can store its success."""

    @functools.wraps(function)
    def run(what: str, number: int, log: str) -> int:
        first = not Path(log).exists()
        done = function(what, number, log)
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return run


@dying
@transactional(timeout=30.0)
def dies_after_its_commit(tx: undoubt.sync.Transaction, what: str, number: int, log: str) -> int:
    with Path(log).open("a") as file:
        file.write(f"{number}\n")
    act_in_thread(tx, what, number)
    return number


def twice(function: Callable[[int], int]) -> Callable[[int], list[int]]:
    @functools.wraps(function)
    def run(number: int) -> list[int]:
        return [function(number), function(number + 1)]

    return run


@twice
@transactional(timeout=30.0)
def called_twice(tx: undoubt.sync.Transaction, number: int) -> int:
    act_in_thread(tx, "order", number)
    return number
