"""What must hold of last-agent commit's rows at every step. Shares no code with what it judges.

Told of every row, and of every tombstone, as it becomes durable in the agent's database, before any process
hears of it. The first of the two fixes the outcome. A row may be deleted once the ledger has the COMMIT, and
what is written in its place then means nothing any more.
"""

from __future__ import annotations

from tests.simulation.judge import Violation


class AgentRows:
    def __init__(self) -> None:
        self.fixed: dict[str, str] = {}
        self.given_up: set[str] = set()
        """Transactions that were aborted although nothing was fixed: no COMMIT may be sent any more."""

    def written(self, txid: str, decision: str, recorded: str | None) -> None:
        """``recorded``: what somebody was told that the ledger holds."""
        fixed = self.fixed.setdefault(txid, decision)
        if decision == "commit" and (fixed != "commit" or txid in self.given_up):
            raise Violation(f"the agent of {txid} commits, and it was aborted before")
        if decision == "abort" and fixed == "commit" and recorded != "commit":
            raise Violation(f"{txid} is buried, and its agent has committed without a record of that")

    def deleted(self, txid: str, recorded: str | None) -> None:
        """The row of a COMMIT is."""
        if recorded != "commit":
            raise Violation(f"the row of {txid} is deleted, and nobody was told of a recorded COMMIT")

    def acts(self, txid: str, what: str, decision: str) -> None:
        """Somebody commits or rolls back a prepared branch, records, or tells the outcome."""
        fixed = self.fixed.get(txid)
        if decision == "commit" and fixed != "commit":
            raise Violation(f"{what} as committed, and its agent has {fixed}")
        if decision == "abort" and fixed == "commit":
            raise Violation(f"{what} as aborted, and its agent has committed")
        if fixed is None:
            self.given_up.add(txid)
