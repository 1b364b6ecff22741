"""RQ: a job succeeds after its commit, and is done once. Needs a Redis server; it works through its queue
itself, or: rq worker"""

import contextlib
import os
import sys
import uuid
from pathlib import Path

import psycopg
from redis import Redis
from rq import Queue, Worker

import undoubt.sync
from undoubt.integrations.rq import transactional


@transactional("undoubt.toml")
def place(tx: undoubt.sync.Transaction, item: str, price: int) -> str:
    tx.branch("orders").execute("insert into orders (item) values (%s)", (item,))
    payments = tx.branch("payments")
    with contextlib.suppress(psycopg.errors.CheckViolation):  # a mistake, as many programs have it
        payments.execute("update accounts set balance = balance - %s where name = 'ada'", (price,))
    return item


def main() -> None:
    sys.path.append(str(Path(__file__).parent))  # the worker imports the job's function by its name
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))
    queue = Queue(uuid.uuid4().hex, connection=redis)
    jobs = [queue.enqueue("rq_orders.place", *order) for order in (("lamp", 15), ("castle", 1000))]
    Worker([queue], connection=redis).work(burst=True, logging_level="CRITICAL")
    for job in jobs:
        print(job.get_status(refresh=True).value)


if __name__ == "__main__":
    main()
