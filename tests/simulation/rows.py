"""What must hold of three-phase commit's rows at every step. Shares no code with what it judges.

Told of every change of a row in the simulated databases, as it becomes durable, before anybody hears of it.
COMMIT or ABORT is *fixed* by an attempt that enough rows have taken: from then on nothing else may be.

Keidar and Dolev, "Increasing the Resilience of Distributed and Replicated Database Systems", 1998, §4;
Skeen, "Nonblocking Commit Protocols", 1981.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.simulation.judge import Violation

if TYPE_CHECKING:
    from undoubt.participants.ids import Gid
    from undoubt.participants.three_phase import Charter


class Rows:
    def __init__(self) -> None:
        self.charters: dict[str, Charter] = {}
        self.elected: dict[str, int] = {}
        """By gid: the greatest election that its row takes part in."""
        self.last: dict[str, int] = {}
        """By gid: the election of the last attempt that its row has taken."""
        self.attempts: dict[str, dict[int, tuple[str, set[int]]]] = defaultdict(dict)
        """By transaction and election: what was attempted, and which rows have taken it."""
        self.fixed: dict[str, str] = {}
        self.excluded: set[str] = set()
        """Transactions with a row that was never enlisted and never can be, or with a tombstone."""

    def changed(self, verb: str, arguments: tuple[Any, ...], result: Any) -> None:
        """A call of :class:`undoubt.participants.three_phase.States` has taken effect, with this result."""
        if verb == "enlist" and result:
            self._found(arguments[0], arguments[1])
            self.elected[str(arguments[0])] = 1
        elif verb == "elect" and result is not None:
            self._elected(arguments[0], arguments[1], arguments[2], result)
        elif verb == "attempt" and result:
            self._attempted(*arguments)
        elif verb == "bury" and result:
            self._buried(*arguments)
        elif verb == "forget":
            for gid in arguments[0]:
                self.elected.pop(str(gid), None)
                self.last.pop(str(gid), None)

    def _found(self, gid: Gid, charter: Charter) -> None:
        txid = str(gid.txid)
        if self.charters.setdefault(txid, charter) != charter:
            raise Violation(f"{txid} has two charters: {self.charters[txid]} and {charter}")

    def _elected(self, gid: Gid, election: int, charter: Charter, row: Any) -> None:
        self._found(gid, charter)
        before = self.elected.get(str(gid), 0)
        if election <= before:
            raise Violation(f"{gid} takes part in election {election}, and took part in {before}")
        self.elected[str(gid)] = election
        if row.last_attempt != (last := self.last.get(str(gid), 0)):
            raise Violation(f"{gid} tells that it took attempt {row.last_attempt} last, and it took {last}")
        if row.state in {"q", "a"}:
            self.excluded.add(str(gid.txid))

    def _attempted(self, gid: Gid, election: int, event: str) -> None:
        txid = str(gid.txid)
        if election != (now := self.elected.get(str(gid))):
            raise Violation(f"{gid} takes an attempt of election {election}, and takes part in {now}")
        self.last[str(gid)] = election
        known, taken = self.attempts[txid].setdefault(election, (str(event), set()))
        if known != event:
            raise Violation(f"in election {election} of {txid} somebody has to {known}, another to {event}")
        taken.add(gid.branch)
        charter = self.charters[txid]
        enough = len(charter.members) if charter.rule == "skeen" else len(charter.members) // 2 + 1
        if len(taken) >= enough:
            self._fix(txid, "commit" if event == "try commit" else "abort")

    def _fix(self, txid: str, outcome: str) -> None:
        if self.fixed.setdefault(txid, outcome) != outcome:
            raise Violation(f"{txid} was fixed to {self.fixed[txid]}, and now to {outcome}")

    def _buried(self, gid: Gid, charter: Charter) -> None:
        self._found(gid, charter)
        txid = str(gid.txid)
        if self.fixed.get(txid) == "commit":
            raise Violation(f"{gid} is buried, and its transaction is fixed to commit")
        tried = any(event == "try commit" for event, _ in self.attempts[txid].values())
        if tried and txid not in self.excluded and txid not in self.fixed:
            raise Violation(f"{gid} is buried, and nothing keeps its transaction from being committed")
        self.excluded.add(txid)

    def acts(self, txid: str, what: str, decision: str) -> None:
        """Somebody commits or rolls back a prepared branch, records, or tells the outcome."""
        fixed = self.fixed.get(txid)
        if decision == "commit" and fixed != "commit":
            raise Violation(f"{what} as committed, and its rows are fixed to {fixed}")
        if decision == "abort" and fixed == "commit":
            raise Violation(f"{what} as aborted, and its rows are fixed to commit")
