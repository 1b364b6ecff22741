"""Functions of jobs, which workers of RQ import by their names."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import undoubt.sync
from tests.undoubt.integrations.web.client import act_in_thread
from undoubt.integrations.rq import transactional

SETTINGS = "UNDOUBT_TEST_JOBS"
"""The variable that has the settings of the coordinator, as JSON."""


def place(what: str, number: int, log: str) -> int:
    settings = json.loads(os.environ[SETTINGS])

    @transactional(settings, timeout=30.0)
    def job(tx: undoubt.sync.Transaction) -> int:
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
        act_in_thread(tx, what, number)
        return number

    return job()


opened: undoubt.sync.Coordinator | None = None
"""That of a worker that does not fork."""


def hasty(number: int, log: str) -> int:
    @transactional(coordinator=opened, timeout=1.0)
    def job(tx: undoubt.sync.Transaction) -> int:
        with Path(log).open("a") as file:
            file.write(f"{number}\n")
        act_in_thread(tx, "order", number)
        return number

    return job()


def dies_after_its_commit(number: int, log: str) -> int:
    """The first run is killed before RQ can store its success."""
    first = not Path(log).exists()
    done = place("order", number, log)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
