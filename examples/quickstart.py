"""One transaction over two databases: the order and its payment, or neither."""

from __future__ import annotations

import asyncio

import undoubt


async def buy(tx: undoubt.Transaction, customer: str, item: str, price: int) -> int:
    """The order's number."""
    orders = await tx.branch("orders")
    payments = await tx.branch("payments")
    await payments.execute("update accounts set balance = balance - $2 where name = $1", customer, price)
    number: int = await orders.fetchval("insert into orders (item) values ($1) returning id", item)
    return number


async def main() -> None:
    async with undoubt.connect() as coordinator:
        number = await coordinator.run(buy, "ada", "a teapot", 30, retries=5)
        print(f"order {number} is placed and paid")


if __name__ == "__main__":
    asyncio.run(main())
