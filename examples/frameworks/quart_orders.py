"""Quart: a response is sent after the commit. It sends itself two requests; or: hypercorn quart_orders:app"""

import asyncio
import contextlib

import asyncpg
from quart import Quart
from quart.testing import TestApp

from undoubt.integrations.quart import commit_before_response, transaction

app = Quart(__name__)
commit_before_response(app, "undoubt.toml")


@app.post("/orders/<item>/<int:price>")
async def place(item: str, price: int) -> dict[str, str]:
    tx = await transaction()
    orders, payments = await tx.branch("orders"), await tx.branch("payments")
    await orders.execute("insert into orders (item) values ($1)", item)
    with contextlib.suppress(asyncpg.CheckViolationError):  # a mistake, as many programs have it
        await payments.execute("update accounts set balance = balance - $1 where name = 'ada'", price)
    return {"placed": item}


async def main() -> None:
    async with TestApp(app, startup_timeout=60, shutdown_timeout=60):
        client = app.test_client()
        for path in ("/orders/lamp/15", "/orders/castle/1000"):
            answered = await client.post(path)
            told = "committed" if answered.status_code < 400 else "rolled back"
            print(answered.status_code, answered.headers.get("Undoubt-Outcome", told))


if __name__ == "__main__":
    asyncio.run(main())
