"""What a sidecar's book reports to the console: beginnings, branches and ends of its transactions."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from undoubt.participants.ids import Gid
from undoubt.participants.redact import redact
from undoubt.serve.console.hour import LastHour
from undoubt.serve.console.rows import Row, TransactionRows
from undoubt.serve.console.traces import Traces
from undoubt.serve.sidecar.book import Book, OpenTransaction

RUNNING_MAX = 2_000


class SidecarWatch:
    """A :class:`undoubt.serve.sidecar.book.BookWatcher`. ``rows`` receives the transactions that ended
    without a decision, of which the ledger has no record."""

    def __init__(self, traces: Traces) -> None:
        self.traces = traces
        self.hour = LastHour(
            "Transactions of this sidecar, by how they ended. Latency: from the request to commit to its"
            " answer."
        )
        self.rows: TransactionRows | None = None

    def begun(self, entry: OpenTransaction) -> None:
        self.traces.note(entry.id, "begin")

    def joined(self, gid: Gid) -> None:
        self.traces.note(str(gid.txid), "branch", gid.branch, gid.participant)

    def committing(self, entry: OpenTransaction) -> None:
        self.traces.note(entry.id, "commit")

    def ended(self, entry: OpenTransaction, took_s: float | None) -> None:
        info = entry.info()
        self.traces.note(entry.id, "end")
        self.hour.ended(info.state, time.time(), took_s)
        if self.rows is not None and info.state == "aborted":
            self.rows.put_own(_row(entry))

    def running(self, book: Book) -> dict[str, Any]:
        """The transactions of this sidecar that have not ended, oldest first."""
        shown = [msgspec.to_builtins(entry.info()) | _about(entry) for entry in book if not entry.final]
        return {"kept": True, "running": shown[:RUNNING_MAX], "count": len(shown)}


def _about(entry: OpenTransaction) -> dict[str, Any]:
    return {"owner": entry.owner, "begun_at": entry.begun_at}


def _row(entry: OpenTransaction) -> Row:
    info = entry.info()
    return {
        "id": info.id,
        "state": "aborted" if info.branches else "rolled back without a branch",
        "outcome": "aborted",
        "recorded": False,
        "finished": True,
        "protocol": info.protocol,
        "participants": sorted({branch.participant for branch in info.branches}),
        "at": time.time(),
        "coordinator": "this sidecar",
        "reason": redact(info.reason),
    }
