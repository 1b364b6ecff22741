"""Holds the newest transactions as rows for the page: the ledger's decisions, and what this sidecar has seen.

The rows follow the ledger by reading: the newest decisions until a page reaches what is known, the unfinished
ones, and those that were unfinished before. Then one page of what is missing is read: of the gap that a burst
of decisions has left, or of what is older than all that was read, until the row limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, TransactionInfo
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.ledger.session_mark import is_mark
from undoubt.participants.ids import InvalidName, TxId
from undoubt.participants.redact import redact
from undoubt.report import shapes
from undoubt.report.transactions import state

ROWS_MAX = 10_000
PAGE = 500
PAGES_MAX = 8
"""Most pages of new decisions in one reading. What is beyond them is a gap, which later readings fill."""
AGAIN_MAX = 200
"""Most transactions that one reading reads again, one by one."""

Row = dict[str, Any]


class TransactionRows:
    """The rows by transaction id. ``changed`` is called with each row that is new or has changed."""

    def __init__(self, changed: Callable[[Row], None]) -> None:
        self._changed = changed
        self._rows: dict[str, Row] = {}
        self._unfinished: dict[str, TxId] = {}
        self._back: TxId | None = None
        """The oldest decision that was read; None before the first reading."""
        self._complete = False
        """Whether all older decisions have been read, up to the limit."""
        self._paged: set[str] = set()
        """What pages had: rows, and marks of sessions, which are no rows."""
        self._gaps: list[TransactionInfo] = []
        """There were more new decisions than one reading takes: of each gap the decision before which some
        are missing, oldest gap first."""
        self.left_out_before = 0.0
        """A gap reached beyond the row limit: some decisions before this moment, in seconds since 1970, were
        never a row. 0 if none was left out."""

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    @property
    def missed_before(self) -> float:
        """Some decisions before this moment, in seconds since 1970, are missing as yet. 0 if none is."""
        return max((gap.decided_at or 0.0 for gap in self._gaps), default=0.0)

    def about(self) -> dict[str, Any]:
        return {
            "rows": len(self._rows),
            "rows_max": ROWS_MAX,
            "complete": self._complete and not self._gaps and len(self._rows) < ROWS_MAX,
            "missed_before": self.missed_before or None,
        }

    async def read(self, ledger: Ledger) -> None:
        """Follow the ledger. Raises ``LedgerError``."""
        await self._read_new(ledger)
        await self._read_unfinished(ledger)
        await self._read_missing(ledger)
        self._trim()

    async def _read_new(self, ledger: Ledger) -> None:
        before: TxId | None = None
        for _ in range(PAGES_MAX):
            first = self._back is None
            page, reached = await self._page(ledger, before)
            if not page:
                self._complete = self._complete or first
                return
            before = page[-1].txid
            if first:
                self._back = before
                return
            if reached:
                return
        self._gaps.append(page[-1])

    async def _page(self, ledger: Ledger, before: TxId | None) -> tuple[Sequence[TransactionInfo], bool]:
        """A page of decisions, and whether it reaches what earlier pages had. A decision may be recorded
        later than one that carries a later time: all of a page counts. A row that came in another way than
        by a page says nothing about its neighbours."""
        page = await ledger.transactions(limit=PAGE, before=before)
        reached = len(page) < PAGE
        for info in page:
            name = str(info.txid)
            reached = reached or name in self._paged
            self._paged.add(name)
            if not is_mark(info.txid):
                self._put(row_of(info))
        return page, reached

    async def _read_unfinished(self, ledger: Ledger) -> None:
        now = {str(one.txid): one.txid async for one in every_unfinished(ledger) if not is_mark(one.txid)}
        ended = self._unfinished.keys() - now.keys()
        missing = [name for name in now if name not in self._rows]
        for name in [*ended, *missing][:AGAIN_MAX]:
            info = await ledger.transaction(self._unfinished.get(name) or now[name])
            if info is not None:
                self._put(row_of(info))
        left = {name: self._unfinished[name] for name in [*ended][AGAIN_MAX:]}
        self._unfinished = now | left

    async def _read_missing(self, ledger: Ledger) -> None:
        """One page: of the newest gap, or else of what is older than all that was read."""
        if self._gaps:
            page, reached = await self._page(ledger, self._gaps[-1].txid)
            if reached:
                del self._gaps[-1]
            else:
                self._gaps[-1] = page[-1]
        elif not self._complete:
            page, _ = await self._page(ledger, self._back)
            if page:
                self._back = page[-1].txid
            self._complete = len(page) < PAGE or len(self._rows) >= ROWS_MAX

    async def read_again(self, ledger: Ledger, txids: Iterable[TxId]) -> None:
        """Read these once more: something about them has changed. Raises ``LedgerError``."""
        for txid in txids:
            if (info := await ledger.transaction(txid)) is not None:
                self._put(row_of(info))

    def put_own(self, row: Row) -> None:
        """A transaction of this process. What the ledger has recorded about it counts for more."""
        known = self._rows.get(row["id"])
        if known is None or not known["recorded"]:
            self._put(row)

    def _put(self, row: Row) -> None:
        known = self._rows.get(row["id"])
        if known != row:
            if known is not None and known["reason"] and not row["reason"]:
                row = row | {"reason": known["reason"]}
            self._rows[row["id"]] = row
            if known != row:
                self._changed(row)
        if row["recorded"] and not row["finished"]:
            self._unfinished.setdefault(row["id"], _txid(row["id"]))

    def _trim(self) -> None:
        if len(self._rows) > ROWS_MAX:
            oldest = sorted(self._rows.values(), key=lambda row: row["at"])
            for row in oldest[: len(self._rows) - ROWS_MAX]:
                del self._rows[row["id"]]
            # All that are listed are newer than what is missing in such a gap: nothing of it would stay.
            floor = oldest[-ROWS_MAX]["at"]
            beyond = [gap.decided_at or 0.0 for gap in self._gaps if (gap.decided_at or 0.0) < floor]
            self._gaps = [gap for gap in self._gaps if (gap.decided_at or 0.0) >= floor]
            self.left_out_before = max([self.left_out_before, *beyond])
        if len(self._paged) > 2 * ROWS_MAX:
            self._paged.intersection_update(self._rows)


def row_of(info: TransactionInfo) -> Row:
    """The row of what the ledger knows about one transaction."""
    return {
        "id": str(info.txid),
        "state": state(info),
        "outcome": _outcome(info),
        "recorded": info.record is not RecordedDecision.NOT_RECORDED,
        "finished": info.finished,
        "protocol": shapes.protocol_name(info.protocol),
        "participants": sorted({branch.participant for branch in info.branches}),
        "at": info.decided_at or 0.0,
        "coordinator": info.coordinator,
        "reason": redact(info.cause),
    }


def _outcome(info: TransactionInfo) -> str:
    if any(not one.forgotten for one in info.heuristics):
        return "heuristic"
    match info.record:
        case RecordedDecision.COMMIT:
            return "committed"
        case RecordedDecision.ABORT:
            return "aborted"
        case RecordedDecision.NOT_RECORDED:
            return "undecided"


def _txid(name: str) -> TxId:
    try:
        return TxId.parse(name)
    except InvalidName as error:
        raise ValueError(name) from error
