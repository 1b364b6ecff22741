"""The rows of an acceptor: one for each transaction that it has promised or accepted something of, and its
marks.

Each carries a CRC-32. A row that does not match it must not be skipped: the acceptor would have forgotten
what a quorum may have counted on.
"""

from __future__ import annotations

import sqlite3
import zlib

import msgspec

from coordinator.node.storage import Promises
from coordinator.paxos import Marks, Record, Restored

DDL = (
    "create table promise (session integer not null, seq integer not null, nonce text not null,"
    " crc integer not null, record blob not null, primary key (session, seq, nonce)) without rowid",
    "create table mark (id integer primary key check (id = 1), crc integer not null, marks blob not null)",
)

_INSERT = "insert or replace into promise (session, seq, nonce, crc, record) values (?, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_marks = msgspec.msgpack.Decoder(Marks).decode


class Mismatch(Exception):
    """A row is not what was written."""


def load(connection: sqlite3.Connection) -> Restored:
    """Everything. Raises :class:`Mismatch`, ``sqlite3.Error``, ``ValueError``."""
    marks = Marks()
    for crc, data in connection.execute("select crc, marks from mark"):
        if zlib.crc32(data) != crc:
            raise Mismatch("what its acceptor has forgotten does not match its checksum")
        marks = _decode_marks(data)
    records = []
    rows = connection.execute("select session, seq, crc, record from promise order by session, seq, nonce")
    for session, seq, crc, data in rows:
        if zlib.crc32(data) != crc:
            raise Mismatch(f"what its acceptor has promised of {session}.{seq} does not match its checksum")
        records.append(_decode_record(data))
    return Restored(marks, tuple(records))


def store_one(connection: sqlite3.Connection, record: Record) -> None:
    """One statement, a transaction by itself unless it is part of one."""
    connection.execute(_INSERT, _row(record))


def _row(record: Record) -> tuple[object, ...]:
    txid, data = record.txid, _encode(record)
    return (txid.session, txid.seq, txid.nonce, zlib.crc32(data), data)


def store(connection: sqlite3.Connection, promises: Promises) -> None:
    """Part of a transaction of the caller's."""
    connection.executemany(_INSERT, [_row(record) for record in promises.records])
    if promises.dropped:
        connection.executemany(
            "delete from promise where session = ? and seq = ? and nonce = ?",
            [(txid.session, txid.seq, txid.nonce) for txid in promises.dropped],
        )
    if promises.marks is not None:
        data = _encode(promises.marks)
        connection.execute(
            "insert or replace into mark (id, crc, marks) values (1, ?, ?)", (zlib.crc32(data), data)
        )
