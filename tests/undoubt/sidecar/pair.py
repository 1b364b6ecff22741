"""Two sidecars, each of a service of its own, on one ledger."""

from __future__ import annotations

from typing import Any

from tests.undoubt.sidecar.stage import Stage, Work, value


class Pair:
    """Sidecars of two services, A and B."""

    def __init__(self, a: Stage, b: Stage) -> None:
        self.a, self.b = a, b
        self.databases = a.databases
        self._account = 0

    def account(self) -> int:
        """One that no other test has touched."""
        self._account += 1
        return self._account

    def begin(self, **body: Any) -> tuple[Work, Work]:
        """A transaction as its owner and as the service that joins see it."""
        work = self.a.tcp("shop").begin(**body)
        assert work.join
        return work, self.joined(work)

    def joined(self, work: Work, name: str = "shop", header: str | None = None) -> Work:
        client = self.b.tcp(name, **{"Undoubt-Transaction": work.join if header is None else header})
        return Work(client, work.id)

    def balances(self, account: int) -> list[int]:
        sql = f"select balance from account where id = {account}"
        return [value(dsn, sql) for dsn in self.databases.values()]
