"""The table of finished decisions: for people, outside of the state machine and of its snapshots.

::

    history(session, seq, nonce, decided_at, finished_ms, record)     primary key (session, seq)

``finished_ms`` is ledger time. Writing a record again changes nothing, so that a log may be replayed over it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from coordinator.ledger.contract import DecisionRecord
from participants.ids import TxId

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(DecisionRecord).decode


def insert(connection: sqlite3.Connection, records: Iterable[DecisionRecord], *, now_ms: int) -> None:
    """Within the caller's transaction."""
    connection.executemany(
        "insert or replace into history (session, seq, nonce, decided_at, finished_ms, record)"
        " values (?, ?, ?, ?, ?, ?)",
        [
            (*_key(record.txid), record.txid.nonce, record.decided_at, now_ms, _encode(record))
            for record in records
        ],
    )


def prune(connection: sqlite3.Connection, *, before_ms: int) -> None:
    """Forget what was finished before that ledger time; within the caller's transaction."""
    connection.execute("delete from history where finished_ms < ?", (before_ms,))


def one(connection: sqlite3.Connection, txid: TxId) -> DecisionRecord | None:
    row = connection.execute(
        "select record from history where session = ? and seq = ? and nonce = ?",
        (*_key(txid), txid.nonce),
    ).fetchone()
    return None if row is None else _decode(row[0])


def page(connection: sqlite3.Connection, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
    """Newest first by (time of decision, session, seq), older than ``before``."""
    where = "" if before is None else "where (decided_at, session, seq) < (?, ?, ?)"
    given = () if before is None else (before.decided_at, *_key(before.txid))
    rows = connection.execute(
        f"select record from history {where} order by decided_at desc, session desc, seq desc limit ?",  # noqa: S608
        (*given, limit),
    )
    return [_decode(record) for (record,) in rows]


def _key(txid: TxId) -> tuple[int, int]:
    return (txid.session, txid.seq)
