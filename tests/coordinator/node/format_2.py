"""The file of a node of version 0.1.0, written as that version did."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.sqlite import history
from undoubt.coordinator.node.storage.contract import Stored

DDL = """
create table meta (key text primary key, value text not null);
create table hard_state (id integer primary key check (id = 1), term integer not null,
    vote integer not null);
create table snapshot (id integer primary key check (id = 1), idx integer not null, term integer not null,
    configuration blob not null, crc integer not null, image blob not null);
create table entry (idx integer primary key, term integer not null, kind integer not null,
    crc integer not null, data blob not null);
create table promise (session integer not null, seq integer not null, nonce text not null,
    crc integer not null, record blob not null, primary key (session, seq, nonce)) without rowid;
create table mark (id integer primary key check (id = 1), crc integer not null, marks blob not null);
create table history (session integer not null, seq integer not null, nonce text not null,
    decided_at real not null, finished_ms integer not null, record blob not null, primary key (session, seq));
create index history_newest on history (decided_at, session, seq);
create index history_oldest on history (finished_ms);
"""

encode = msgspec.msgpack.Encoder(order="deterministic").encode


def write(path: Path, stored: Stored, finished: Sequence[DecisionRecord]) -> sqlite3.Connection:
    """One transaction for each entry. The connection stays open, so that its WAL stays as it is."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"pragma journal_mode = wal; {DDL}")
    me, meta = stored.identity, stored.snapshot.meta
    known = {"format": "2", "cluster": me.cluster, "node": str(me.node), "disk": me.disk}
    known |= {f"disk of {node}": disk for node, disk in stored.disks.items()}
    connection.executemany("insert into meta values (?, ?)", known.items())
    state, configuration = stored.hard_state, encode(meta.configuration)
    connection.execute("insert into hard_state values (1, ?, ?)", (state.term, state.vote))
    head = meta.index.to_bytes(8, "big") + meta.term.to_bytes(8, "big") + configuration
    crc = zlib.crc32(stored.snapshot.image, zlib.crc32(head))
    connection.execute(
        "insert into snapshot values (1, ?, ?, ?, ?, ?)",
        (meta.index, meta.term, configuration, crc, stored.snapshot.image),
    )
    for record in stored.acceptor.records:
        data, txid = encode(record), record.txid
        connection.execute(
            "insert into promise values (?, ?, ?, ?, ?)",
            (txid.session, txid.seq, txid.nonce, zlib.crc32(data), data),
        )
    marks = encode(stored.acceptor.marks)
    connection.execute("insert into mark values (1, ?, ?)", (zlib.crc32(marks), marks))
    history.insert(connection, finished, now_ms=1_000)
    for entry in stored.entries:
        connection.execute(
            "insert into entry values (?, ?, ?, ?, ?)",
            (entry.index, entry.term, entry.kind, entry.crc, entry.data),
        )
    return connection
