"""SQLModel: one session over two databases, and one commit."""

import contextlib

import sqlalchemy as sa
from sqlmodel import Field, SQLModel

import undoubt
import undoubt.sync
from undoubt.config import load
from undoubt.integrations.sqlmodel import Session


class Order(SQLModel, table=True):
    __tablename__ = "orders"
    id: int | None = Field(default=None, primary_key=True)
    item: str


class Account(SQLModel, table=True):
    __tablename__ = "accounts"
    name: str = Field(primary_key=True)
    balance: int


def engine(name: str) -> sa.Engine:
    dsn = load("undoubt.toml").participants[name].dsn
    return sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))


orders, payments = engine("orders"), engine("payments")


def place(coordinator: undoubt.sync.Coordinator, item: str, price: int) -> str:
    with Session(
        coordinator=coordinator,
        participants={orders: "orders", payments: "payments"},
        binds={Order: orders, Account: payments},
    ) as session:
        session.add(Order(item=item))
        account = sa.update(Account).where(Account.name == "ada")  # type: ignore[arg-type]
        with contextlib.suppress(sa.exc.IntegrityError):  # a mistake, as many programs have it
            session.execute(account.values(balance=Account.balance - price))
        try:
            session.commit()
        except undoubt.TransactionAborted:
            return "aborted"
        return "committed"


def main() -> None:
    with undoubt.sync.connect("undoubt.toml") as coordinator:
        for order in (("lamp", 15), ("castle", 1000)):
            print(place(coordinator, *order))


if __name__ == "__main__":
    main()
