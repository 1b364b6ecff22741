"""Celery: a task is acknowledged after its commit, and done once. It starts a worker in a thread, with a
broker in memory; with a real one: celery -A celery_orders worker"""

import contextlib
import logging
import os

import psycopg
from celery import Celery
from celery.contrib.testing.worker import start_worker

from undoubt.integrations.celery import TransactionTask, transaction

app = Celery("shop", broker=os.environ.get("BROKER", "memory://"), backend="cache+memory://")
app.conf.undoubt = "undoubt.toml"


@app.task(base=TransactionTask)  # type: ignore[untyped-decorator]
def place(item: str, price: int) -> str:
    tx = transaction()
    tx.branch("orders").execute("insert into orders (item) values (%s)", (item,))
    payments = tx.branch("payments")
    with contextlib.suppress(psycopg.errors.CheckViolation):  # a mistake, as many programs have it
        payments.execute("update accounts set balance = balance - %s where name = 'ada'", (price,))
    return item


def main() -> None:
    logging.disable()
    with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, loglevel="CRITICAL"):
        for order in (("lamp", 15), ("castle", 1000)):
            placed = place.delay(*order)
            placed.wait(timeout=60, propagate=False)
            print(placed.state)


if __name__ == "__main__":
    main()
