"""Two services in Python, each with a sidecar of its own: an order takes money in one database and gives it
in the other, in both or in neither.

Run each in a process of its own, with its environment (``docs/sidecar.md`` has the sidecars)::

    SIDECAR=http://127.0.0.1:7481 TOKEN=… PORT=8001 DATABASE=postgresql://app@localhost/payments \\
        python examples/two_services/services.py payments
    SIDECAR=http://127.0.0.1:7480 TOKEN=… PORT=8000 PAYMENTS=http://127.0.0.1:8001 \\
        python examples/two_services/services.py orders
    curl --json '{"account": 1, "amount": 15}' http://127.0.0.1:8000/order
"""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import httpx
import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from undoubt.integrations.httpx import (
    Propagation,
    SidecarOutcomeUnknown,
    SidecarRefused,
    joined,
    transaction,
)
from undoubt.integrations.starlette import JoinTransaction

sidecar = httpx.AsyncClient(
    base_url=os.environ.get("SIDECAR", "http://127.0.0.1:7480"),
    headers={"Authorization": f"Bearer {os.environ.get('TOKEN', '')}"},
    timeout=30.0,
)


# The service that begins and commits.

payments_url = os.environ.get("PAYMENTS", "http://127.0.0.1:8001")
propagation = Propagation([urlsplit(payments_url).hostname or ""])
services = httpx.AsyncClient(event_hooks={"request": [propagation.asynchronous]}, timeout=30.0)


async def order(request: Request) -> JSONResponse:
    wanted = await request.json()
    try:
        async with transaction(sidecar, timeout_ms=30_000) as tx:
            take = "update account set balance = balance - $1::int where id = $2::int"
            await tx.execute("orders", take, [wanted["amount"], wanted["account"]])
            answer = await services.post(f"{payments_url}/pay", json=wanted)
            answer.raise_for_status()
    except SidecarOutcomeUnknown as error:  # it may have committed: GET of the transaction tells it later
        return JSONResponse({"outcome": "unknown", "id": error.transaction}, 202)
    except SidecarRefused as error:  # "aborted", or heuristic: a database did other than was decided
        return JSONResponse({"outcome": error.outcome or "aborted", "why": str(error)}, 409)
    except httpx.HTTPError as error:  # in the block, which has rolled it back, or its deadline does
        return JSONResponse({"outcome": "aborted", "why": str(error)}, 409)
    return JSONResponse({"outcome": "committed", "id": tx.id})


# The service that joins. It prepares its branch before it answers, and leaves the commit to the other.


async def pay(request: Request) -> JSONResponse:
    wanted = await request.json()
    branch = await joined(sidecar).announce("payments")
    give = "update account set balance = balance + %s where id = %s"
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE"], autocommit=True) as database:
        for statement in branch["begin_statements"]:
            await database.execute(statement)
        done = await database.execute(give, [wanted["amount"], wanted["account"]])
        if done.rowcount != 1:
            return JSONResponse(
                {"why": "no such account"}, 404
            )  # not prepared: the transaction cannot commit
        for statement in branch["prepare_statements"]:
            await database.execute(statement)
    return JSONResponse({})


APPLICATIONS = {
    "orders": Starlette(routes=[Route("/order", order, methods=["POST"])]),
    "payments": Starlette(
        routes=[Route("/pay", pay, methods=["POST"])], middleware=[Middleware(JoinTransaction)]
    ),
}

if __name__ == "__main__":
    uvicorn.run(APPLICATIONS[sys.argv[1]], port=int(os.environ["PORT"]), log_level="warning")
