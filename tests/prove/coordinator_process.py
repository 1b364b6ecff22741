"""A process that transfers money through undoubt until it has done enough, or dies of its trap.

Arguments: settings as JSON, trap, tag of its transfer ids, number of workers, transfers per worker.
"""

from __future__ import annotations

import asyncio
import json
import sys

import undoubt
from tests.prove.bank import TRANSFER_ERRORS, transfer
from tests.prove.trap import Trap, Trapped, tell


async def work(coordinator: undoubt.Coordinator, tag: str, worker: int, count: int) -> None:
    for number in range(count):
        name = f"{tag}-{worker}-{number}"
        tell(begun=name)
        try:
            async with coordinator.transaction() as tx:
                await transfer(tx, worker, name)
        except undoubt.TransactionAborted as error:
            tell(aborted=name, why=str(error))
        except undoubt.OutcomeUnknown as error:
            tell(unknown=name, why=str(error))
        except TRANSFER_ERRORS as error:
            tell(aborted=name, why=f"{type(error).__name__}: {error}")
        else:
            tell(acknowledged=name)


async def main(settings: str, trap: str, tag: str, workers: int, count: int) -> None:
    observer = Trapped(Trap.decode(trap))
    async with undoubt.connect(json.loads(settings), observe=observer, recover=False) as coordinator:
        await asyncio.gather(*(work(coordinator, tag, worker, count) for worker in range(workers)))
        await asyncio.sleep(0.2)  # finishing is batched: let its steps be reached before closing
    tell(ended=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
