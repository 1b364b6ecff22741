"""Celery's pool of processes: each opens a coordinator; the death of one does no task twice or by half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from celery import Celery

from tests.docs.pages import ROOT
from tests.undoubt.integrations.queues.prefork import SETTINGS
from tests.undoubt.integrations.web.shop import Shop

RESULT_S = 60.0
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # kombu's, of redis


@dataclass
class Worker:
    """The worker's main process, and the application that sends tasks to it."""

    process: subprocess.Popen[bytes]
    app: Celery
    folder: Path

    def send(self, name: str, number: int) -> object:
        result: object = self.app.send_task(name, (number,)).get(RESULT_S)
        return result

    def pids(self, number: int) -> list[int]:
        """Of the processes that have run the function of a task, in order."""
        return [int(line) for line in (self.folder / f"runs-{number}").read_text().split()]


@pytest.fixture
def worker(shop: Shop, redis_url: str, tmp_path: Path) -> Iterator[Worker]:
    shop.settings["coordinator"] = {"session_ttl_s": 2.0}
    shop.settings["recovery"] = {"interval_s": 0.2}
    given = {
        "undoubt": shop.settings,
        "broker": redis_url,
        "queue": uuid.uuid4().hex,
        "folder": str(tmp_path),
    }
    words = ["-A", "tests.undoubt.integrations.queues.prefork", "worker", "-P", "prefork", "-c", "2"]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", *words, "--loglevel", "INFO"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), SETTINGS: json.dumps(given)},
            stdout=log,
            stderr=log,
        )
    app = Celery("caller", broker=redis_url, backend=redis_url)
    app.conf.task_default_queue = given["queue"]
    try:
        yield Worker(process, app, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(RESULT_S) == 0, (tmp_path / "worker.log").read_text()
    finally:
        process.kill()
        process.wait()
        app.close()


def test_each_process_of_the_pool_has_a_coordinator(worker: Worker, shop: Shop) -> None:
    """One that was opened before the fork is of no use after it. An orderly end leaves nothing in doubt."""
    results = [worker.app.send_task("place", (number,)) for number in range(8)]
    assert [result.get(RESULT_S) for result in results] == list(range(8))
    assert shop.ids() == (list(range(8)), list(range(8)))
    assert worker.process.pid not in {pid for number in range(8) for pid in worker.pids(number)}


@pytest.mark.parametrize(("task", "runs"), [("dies before its commit", 2), ("dies after its commit", 1)])
def test_a_killed_process_leaves_its_task_to_another(
    worker: Worker, shop: Shop, task: str, runs: int
) -> None:
    """``reject_on_worker_lost``: the message comes again; what has committed is not done again."""
    assert worker.send("place", 1) == 1
    assert worker.send(task, 2) == 2
    assert len(set(worker.pids(2))) == len(worker.pids(2)) == runs
    shop.wait_for(lambda: shop.prepared() == [])
    assert shop.ids() == ([1, 2], [1, 2])
