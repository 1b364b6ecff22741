"""The table of finished decisions, for operators; outside of the state machine and of its snapshots.

::

    history(session, seq, nonce, decided_at, finished_ms, record)     primary key (session, seq)

``finished_ms`` is ledger time. Writing a record again changes nothing, so that a log may be replayed.
SQLite keeps no checksums of its pages, so each record has its own: the byte C1, with which no msgpack value
begins, then the CRC-32 of the rest (4 bytes, big endian). Version 0.1.0 wrote records without a checksum.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable

import msgspec

from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.participants.ids import TxId

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(DecisionRecord).decode
_SEALED = b"\xc1"
_CRC_BYTES = 4


def insert(connection: sqlite3.Connection, records: Iterable[DecisionRecord], *, now_ms: int) -> None:
    """Insert ``records``, within the caller's transaction."""
    connection.executemany(
        "insert or replace into history (session, seq, nonce, decided_at, finished_ms, record)"
        " values (?, ?, ?, ?, ?, ?)",
        [
            (*_key(record.txid), record.txid.nonce, record.decided_at, now_ms, _sealed(record))
            for record in records
        ],
    )


def prune(connection: sqlite3.Connection, *, before_ms: int) -> None:
    """Delete records that were finished before that ledger time, within the caller's transaction."""
    connection.execute("delete from history where finished_ms < ?", (before_ms,))


def one(connection: sqlite3.Connection, txid: TxId) -> DecisionRecord | None:
    """The record of ``txid``, None if there is none. Raises ``sqlite3.Error``, ``ValueError`` for a damaged
    record."""
    row = connection.execute(
        "select record from history where session = ? and seq = ? and nonce = ?",
        (*_key(txid), txid.nonce),
    ).fetchone()
    return None if row is None else _unsealed(row[0])


def page(connection: sqlite3.Connection, limit: int, before: DecisionRecord | None) -> list[DecisionRecord]:
    """At most ``limit`` records older than ``before``, newest first by (time of decision, session, seq).
    Raises as :func:`one`."""
    where = "" if before is None else "where (decided_at, session, seq) < (?, ?, ?)"
    given = () if before is None else (before.decided_at, *_key(before.txid))
    rows = connection.execute(
        f"select record from history {where} order by decided_at desc, session desc, seq desc limit ?",  # noqa: S608
        (*given, limit),
    )
    return [_unsealed(record) for (record,) in rows]


def _sealed(record: DecisionRecord) -> bytes:
    data = _encode(record)
    return _SEALED + zlib.crc32(data).to_bytes(_CRC_BYTES, "big") + data


def _unsealed(blob: bytes) -> DecisionRecord:
    if not blob.startswith(_SEALED):
        return _decode(blob)
    crc, data = blob[1 : 1 + _CRC_BYTES], blob[1 + _CRC_BYTES :]
    if zlib.crc32(data).to_bytes(_CRC_BYTES, "big") != crc:
        raise ValueError("a record does not match its checksum")
    return _decode(data)


def _key(txid: TxId) -> tuple[int, int]:
    return (txid.session, txid.seq)
