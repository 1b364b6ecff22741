"""What must hold of Paxos Commit's acceptors at every step. Shares no code with what it judges.

Told of everything that becomes durable on any disk, also on one that is lost later, and of every answer that
an acceptor gives. What was ever accepted is never forgotten here: so the outcome is known here before
anybody in the simulation can know it, and whoever acts otherwise is found at once.

Lamport, "The Part-Time Parliament", 1998, §2.1 (B1 to B3); Gray and Lamport, "Consensus on Transaction
Commit", 2006, §4.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.simulation.judge import Violation

if TYPE_CHECKING:
    from undoubt.coordinator.paxos import AcceptorRecord, AcceptorReply, Marks

Place = tuple[str, Any]
"""A transaction, and one of its branches; or None for all of them, named or not."""


class Promises:
    def __init__(self) -> None:
        self.bound: dict[str, frozenset[int]] = {}
        """A transaction's acceptors: the same for good."""
        self.lists: dict[str, tuple[Any, ...]] = {}
        """Its branches, likewise."""
        self.promised: dict[tuple[int, str], Any] = {}
        self.accepted: dict[Place, dict[Any, tuple[Any, set[int]]]] = defaultdict(dict)
        """By ballot: its one value, and who accepted it."""
        self.chosen: dict[Place, Any] = {}
        self.outcomes: dict[str, str] = {}
        self.marks: dict[int, Marks] = {}
        self.mixed: set[str] = set()
        """Transactions of which somebody accepted *prepared*, and somebody *aborted*."""

    # What acceptors tell.

    def stored(self, node: int, record: AcceptorRecord) -> None:
        """It is durable at ``node``."""
        txid = str(record.txid)
        self._same(self.bound, txid, frozenset(record.acceptors.voters), "acceptors")
        if record.known.branches:
            self._same(self.lists, txid, record.known.branches, "branches")
        if node not in self.bound[txid]:
            raise Violation(f"{txid} is not for node {node} to decide, but for {self.bound[txid]}")
        self._not_below_the_mark(node, record)
        before = self.promised.get((node, txid), record.promised)
        if record.promised < before:
            raise Violation(f"node {node} had promised {before} for {txid}, and now {record.promised}")
        self.promised[node, txid] = record.promised
        for place, ballot, value in self._acceptances(record):
            if ballot > record.promised:
                raise Violation(f"node {node} accepted {ballot} for {place}, which it had not promised")
            self._accepted(node, place, ballot, value)
        self._conclude(txid)

    def forgot(self, node: int, marks: Marks) -> None:
        self.marks[node] = marks

    def answers(self, node: int, reply: AcceptorReply) -> None:
        """It leaves ``node``: what it tells of must be durable there."""
        txid = str(reply.txid)
        known = getattr(reply, "known", None)
        if (ballot := getattr(reply, "ballot", None)) is not None:
            promised = self.promised.get((node, txid))
            if promised is None or promised < ballot:
                raise Violation(f"node {node} promises {ballot} for {txid}, and has not stored that")
        for place, ballot, value in [] if known is None else self._acceptances(reply):
            found, who = self.accepted[place].get(ballot, (None, set()))
            if node not in who or found != value:
                raise Violation(
                    f"node {node} tells that it accepted {value} for {place}, and has not stored it"
                )

    def _acceptances(self, told: Any) -> list[tuple[Place, Any, Any]]:
        """Of a record, or of an answer: place, ballot, value."""
        txid, known = str(told.txid), told.known
        found = [
            ((txid, branch), accepted.ballot, accepted.value)
            for branch, accepted in zip(known.branches, known.accepted, strict=True)
            if accepted is not None
        ]
        if known.unnamed is not None:
            found.append(((txid, None), known.unnamed, None))
        return found

    def _accepted(self, node: int, place: Place, ballot: Any, value: Any) -> None:
        known, who = self.accepted[place].setdefault(ballot, (value, set()))
        if known != value:
            raise Violation(f"ballot {ballot} was used twice for {place}: for {known} and for {value}")
        who.add(node)
        if 2 * len(who) > len(self.bound[place[0]]):
            self._same(self.chosen, place, value, "chosen values")

    def _not_below_the_mark(self, node: int, record: AcceptorRecord) -> None:
        marks = self.marks.get(node)
        if marks is None:
            return
        floors, txid = dict(marks.floors), record.txid
        gone = txid.session < marks.next_session if txid.session not in floors else None
        if gone or (gone is None and txid.seq < floors[txid.session]):
            raise Violation(f"node {node} has forgotten {txid}, and begins anew with it")

    def _same(self, table: dict[Any, Any], key: Any, value: Any, what: str) -> None:
        if table.setdefault(key, value) != value:
            raise Violation(f"{key} has two {what}: {table[key]} and {value}")

    def _conclude(self, txid: str) -> None:
        values = {
            self.chosen.get((txid, branch)) is not None and self.chosen[txid, branch].prepared
            for branch in self.lists.get(txid, ())
            if (txid, branch) in self.chosen
        }
        if False in values or (txid, None) in self.chosen:
            self._same(self.outcomes, txid, "abort", "outcomes")
        elif values and all((txid, branch) in self.chosen for branch in self.lists[txid]):
            self._same(self.outcomes, txid, "commit", "outcomes")
        votes = [
            value is not None and value.prepared
            for (of, _), ballots in self.accepted.items()
            if of == txid
            for value, _ in ballots.values()
        ]
        if len(set(votes)) == 2:
            self.mixed.add(txid)

    # What becomes of transactions.

    def acts(self, txid: str, what: str, decision: str) -> None:
        """Somebody commits or rolls back a prepared branch, records, or tells the outcome."""
        chosen = self.outcomes.get(txid)
        if decision == "commit" and chosen != "commit":
            raise Violation(f"{what} as committed, and its acceptors have chosen {chosen}")
        if decision == "abort" and chosen == "commit":
            raise Violation(f"{what} as aborted, and its acceptors have chosen to commit it")
