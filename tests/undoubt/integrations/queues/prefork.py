"""The application of a Celery worker in processes of its own: ``celery -A …prefork worker -P prefork``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from celery import Celery

from tests.undoubt.integrations.web.client import act_in_thread
from undoubt.integrations.celery import TransactionTask, transaction

SETTINGS = "UNDOUBT_TEST_CELERY"
"""The variable that has the settings of the coordinator, the broker, the queue and a folder, as JSON."""

given = json.loads(os.environ.get(SETTINGS, "{}"))
app = Celery("shop", broker=given.get("broker"), backend=given.get("broker"))
app.conf.update(
    task_default_queue=given.get("queue", "celery"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    undoubt=given.get("undoubt"),
)


class Dying(TransactionTask):
    """Its process is killed at the end of the first run, after the commit and before the acknowledgement."""

    abstract = True

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        before = _runs(arguments[0])
        result = super().__call__(*arguments, **named)
        if not before:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def _log(number: int) -> Path:
    return Path(given["folder"], f"runs-{number}")


def _runs(number: int) -> list[str]:
    return _log(number).read_text().split() if _log(number).exists() else []


def _work(number: int) -> int:
    with _log(number).open("a") as file:
        file.write(f"{os.getpid()}\n")
    act_in_thread(transaction(), "order", number)
    return number


@app.task(shared=False, base=TransactionTask, name="place")  # type: ignore[untyped-decorator]
def place(number: int) -> int:
    return _work(number)


@app.task(shared=False, base=Dying, name="dies after its commit")  # type: ignore[untyped-decorator]
def dies_after(number: int) -> int:
    return _work(number)


@app.task(shared=False, base=TransactionTask, name="dies before its commit")  # type: ignore[untyped-decorator]
def dies_before(number: int) -> int:
    done = _work(number)
    if len(_runs(number)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
