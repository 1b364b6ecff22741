"""What each error means, and what to do with it. The whole tree is drawn in ``undoubt.errors``."""

from __future__ import annotations

import asyncio

import asyncpg

import undoubt
import undoubt.errors


async def pay(coordinator: undoubt.Coordinator, price: int) -> str:  # noqa: PLR0911 - one for each error
    """What became of it, in one word."""
    try:
        async with coordinator.transaction(timeout=10) as tx:
            orders = await tx.branch("orders")
            payments = await tx.branch("payments")
            await orders.execute("insert into orders (item) values ('a kettle')")
            await payments.execute("update accounts set balance = balance - $1 where name = 'ada'", price)
    except asyncpg.CheckViolationError:
        return "refused"  # an error of the application's own SQL: both are rolled back, it passes through
    except undoubt.TransactionAborted as error:
        return f"aborted: {error.cause}"  # it is in neither database, for certain: trying again is safe
    except undoubt.OutcomeUnknown as error:
        # Nobody can say now. Running it again could do it twice: ask the ledger, until it knows.
        return f"unknown, recorded: {await coordinator.outcome(error.txid)}"
    except undoubt.HeuristicOutcome as error:
        return f"split by somebody's own hand: {error.branches}"  # recorded; a person must look
    except undoubt.errors.ParticipantUnavailable as error:
        return f"try again later: {error}"  # a branch could not be opened, and all others are rolled back
    except undoubt.errors.ParticipantRefused as error:
        return f"mend the configuration: {error}"  # the same, and it will not go away by itself
    return "committed"


async def main() -> None:
    async with undoubt.connect() as coordinator:
        print(await pay(coordinator, 20))
        print(await pay(coordinator, 1_000_000))


if __name__ == "__main__":
    asyncio.run(main())
