"""An application of whichever release is on its path: it moves money until SIGTERM, and says of each transfer
what it was told.

Arguments: settings as JSON, a tag for the ids of its transfers, the number of workers, protocols with commas
between. It imports nothing but undoubt's public names, so that both releases run it. The databases are those
of :mod:`tests.prove.bank`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import undoubt

NAMES = ("orders", "payments")


def tell(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def transfer(tx: Any, account: int, name: str) -> None:
    for participant, amount in zip(NAMES, (-10, 10), strict=True):
        branch = await tx.branch(participant)
        await branch.execute("update account set balance = balance + $1 where id = $2", amount, account)
        await branch.execute("insert into transfer (id) values ($1)", name)


async def work(coordinator: Any, tag: str, worker: int, protocols: list[str], ended: asyncio.Event) -> None:
    number = 0
    while not ended.is_set():
        number += 1
        name = f"{tag}-{worker}-{number}"
        tell(begun=name)
        try:
            async with coordinator.transaction(protocol=protocols[number % len(protocols)]) as tx:
                await transfer(tx, worker, name)
        except undoubt.TransactionAborted as error:
            tell(aborted=name, why=str(error))
        except undoubt.OutcomeUnknown as error:
            tell(unknown=name, why=str(error))
        except Exception as error:  # noqa: BLE001 - a driver raises what it likes; no commit has begun
            tell(aborted=name, why=f"{type(error).__name__}: {error}")
        else:
            tell(acknowledged=name)


async def main(settings: str, tag: str, workers: int, protocols: list[str]) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with undoubt.connect(json.loads(settings), recover=False) as coordinator:
        await asyncio.gather(*(work(coordinator, tag, worker, protocols, ended) for worker in range(workers)))
    tell(ended=undoubt.__file__)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")))
