"""Flask: a response is sent after the commit. It sends itself two requests, or: flask -A flask_orders run"""

import contextlib

import psycopg
from flask import Flask

from undoubt.integrations.flask import Undoubt

app = Flask(__name__)
undoubt = Undoubt(app, "undoubt.toml")


@app.post("/orders/<item>/<int:price>")
def place(item: str, price: int) -> dict[str, str]:
    tx = undoubt.transaction()
    tx.branch("orders").execute("insert into orders (item) values (%s)", (item,))
    with contextlib.suppress(psycopg.errors.CheckViolation):  # a mistake, as many programs have it
        tx.branch("payments").execute(
            "update accounts set balance = balance - %s where name = 'ada'", (price,)
        )
    return {"placed": item}


def main() -> None:
    client = app.test_client()
    for path in ("/orders/lamp/15", "/orders/castle/1000"):
        answered = client.post(path)
        told = "committed" if answered.status_code < 400 else "rolled back"
        print(answered.status_code, answered.headers.get("Undoubt-Outcome", told))


if __name__ == "__main__":
    main()
