"""Who else may read the PostgreSQL ledger's secret, or change what is recorded there.

Whoever reads the secret can give names that pass for the ledger's own; whoever writes its rows can decide.
Neither runs anything with the ledger's rights, which is what :mod:`undoubt.participants.believed` is about;
so this is told, by doctor and by `undoubt ledger check`, and nothing is refused."""

from __future__ import annotations

from dataclasses import dataclass

from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.believed import LEDGER
from undoubt.participants.sql import identifier


@dataclass(frozen=True, slots=True)
class TablePrivilege:
    """``table`` is empty if ``role`` (empty: everybody) has it over all tables, as a member of the predefined
    roles that ``what`` names; else ``what`` are privileges."""

    table: str
    role: str
    what: str

    def __str__(self) -> str:
        who = f"role {self.role}" if self.role else "everybody"
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
        """The statement that takes it away."""
        grantee = identifier(self.role) if self.role else "PUBLIC"
        what = f"ALL ON {LEDGER.name}.{self.table}" if self.table else self.what
        return f"REVOKE {what} FROM {grantee};"


async def rights(settings: LedgerSettings) -> list[TablePrivilege]:
    """Of others than superusers, the role that logs in and ``settings.schema_owners``. Raises
    ``LedgerError``."""
    connections = Connections(settings)
    try:
        return [
            TablePrivilege(*row)
            for row in await connections.run("rights", owners=list(settings.schema_owners))
        ]
    finally:
        await connections.close()
