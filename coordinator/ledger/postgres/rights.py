"""Lists the other roles that may read the PostgreSQL ledger's secret or change its rows.

A role that can read the secret can forge names of the ledger; a role that can write its rows can record
decisions. Neither can run code with the ledger's rights, which :mod:`undoubt.participants.schema_trust`
prevents. So doctor and `undoubt ledger check` report these rights, and nothing is refused."""

from __future__ import annotations

from dataclasses import dataclass

from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.schema_trust import LEDGER
from undoubt.participants.sql import identifier


@dataclass(frozen=True, slots=True)
class TablePrivilege:
    """A privilege of ``role`` (empty: PUBLIC) on ``table``. ``what`` names the privileges. If ``table`` is
    empty, the role has access to all tables as a member of the predefined roles that ``what`` names."""

    table: str
    role: str
    what: str

    def __str__(self) -> str:
        who = f"role {self.role}" if self.role else "any role"
        if not self.table:
            return (
                f"{who} may read the ledger's secret or change what is recorded, as a member of {self.what}"
            )
        may = (
            "can read the ledger's secret, or replace it"
            if self.table == "secret"
            else "can change what is recorded"
        )
        return f"{who} {may}: {self.what} on {LEDGER.name}.{self.table}"

    @property
    def line(self) -> str:
        """The statement that revokes the privilege."""
        grantee = identifier(self.role) if self.role else "PUBLIC"
        what = f"ALL ON {LEDGER.name}.{self.table}" if self.table else self.what
        return f"REVOKE {what} FROM {grantee};"


async def rights(settings: LedgerSettings) -> list[TablePrivilege]:
    """The privileges of roles other than superusers, the role that logs in and ``settings.schema_owners``.
    Raises ``LedgerError``."""
    connections = Connections(settings)
    try:
        return [
            TablePrivilege(*row)
            for row in await connections.run("rights", owners=list(settings.schema_owners))
        ]
    finally:
        await connections.close()
