"""FastAPI: a response is sent after the commit. It sends itself two requests; or: uvicorn
fastapi_orders:app"""

import contextlib

import asyncpg
from fastapi import FastAPI
from fastapi.testclient import TestClient

from undoubt.integrations.fastapi import CommitBeforeResponse, Tx

app = FastAPI()
app.add_middleware(CommitBeforeResponse, source="undoubt.toml")


@app.post("/orders/{item}")
async def place(item: str, price: int, tx: Tx) -> dict[str, str]:
    orders, payments = await tx.branch("orders"), await tx.branch("payments")
    await orders.execute("insert into orders (item) values ($1)", item)
    with contextlib.suppress(asyncpg.CheckViolationError):  # a mistake, as many programs have it
        await payments.execute("update accounts set balance = balance - $1 where name = 'ada'", price)
    return {"placed": item}


def main() -> None:
    with TestClient(app) as client:
        for path in ("/orders/lamp?price=15", "/orders/castle?price=1000"):
            answered = client.post(path)
            told = "committed" if answered.status_code < 400 else "rolled back"
            print(answered.status_code, answered.headers.get("Undoubt-Outcome", told))


if __name__ == "__main__":
    main()
