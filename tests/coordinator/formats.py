"""What is stored and sent, in the form that has to stay: ``formats.txt`` beside this file.

``python -m tests.coordinator.formats`` writes the file anew. A new kind of message or a new value adds lines;
a field that is added at an end makes lines longer. Any other change of the file changes a format: disks and
processes of the last release do not know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from tests.coordinator.format_samples import lines
from undoubt.coordinator.ledger import anchor, backup, commands, state
from undoubt.coordinator.ledger.calls import ALL_CALLS
from undoubt.coordinator.ledger.cluster import acceptors, messages
from undoubt.coordinator.ledger.contract import Act, BranchRecord, DecisionRecord
from undoubt.coordinator.ledger.rules import Names
from undoubt.coordinator.ledger.sqlite import history
from undoubt.coordinator.node import fsm
from undoubt.coordinator.node.storage import logged, record, segment
from undoubt.coordinator.node.storage.contract import DiskIdentity
from undoubt.coordinator.paxos import AcceptorRecord, AcceptorReply, AcceptorRequest, Marks
from undoubt.coordinator.raft import ConfigChange, Entry, HardState, Kind, Message, SnapshotMeta
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.calls import AnyCall, kinds, reply_type
from undoubt.coordinator.wire import connection, handshake
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, TxId

FILE = Path(__file__).with_name("formats.txt")
CALLS: list[type[AnyCall]] = [*kinds(ALL_CALLS), *kinds(messages.NodeCall)]


def tag_of(call: type[AnyCall]) -> str:
    return str(call.__struct_config__.tag)


ROOTS: dict[str, Any] = {
    "command of a ledger": commands.Command,
    "command of a cluster's log": fsm.Agree,
    "context of a member": fsm.MemberContext,
    "image of a node": fsm._Image,
    "image of a ledger": state._StoredState,
    "backup": backup.Backup,
    "history": DecisionRecord,
    "branches": tuple[BranchRecord, ...],
    "act": Act,
    "evidence in a vote": acceptors._Evidence,
    "acceptor's record": AcceptorRecord,
    "acceptor's marks": Marks,
    "acceptor's request": AcceptorRequest,
    "acceptor's reply": AcceptorReply,
    "message of raft": Message,
    "entry": Entry,
    "change of members": ConfigChange,
    "term and vote": HardState,
    "meta data of a snapshot": SnapshotMeta,
    "record of a node's log": logged.LoggedWrite,
    "identity of a disk": DiskIdentity,
    "hello": handshake.Hello,
    "answer to hello": handshake.Welcome | handshake.RefusedReply,
    "request": envelope.Request[str],
    "answer": envelope.Answer,
    "call": Union[tuple(CALLS)],  # noqa: UP007 - of any number
    **{f"reply to {tag_of(call)}": reply_type(call) for call in CALLS},
}

_TXID = TxId(7, "0123456789abcdef", 8)
_MARK = anchor.Mark(9, b"chain of 16 byte")
_SHOWN_BYTES = 96
"""Of a header, which ends with zeros and a checksum."""
_BRANCH = BranchRecord(1, "orders", 11, 22, "00000001", "tag", "history", 33)


def _other() -> Iterator[object]:
    """What is not msgpack alone."""
    names = Names("a1b2c3d4e5", b"secret of the ledger")
    for protocol in Protocol:
        gid = Gid("a1b2c3d4e5", protocol, _TXID, 1, "orders")
        yield str(gid), str(gid.tagged(names.key(_TXID.session, _TXID.nonce)))
    yield anchor._encoded("owner", _MARK)
    data, mark = record.encoded(b"payload", _MARK, b"salt")
    yield data, mark.index, mark.chain
    yield segment.SegmentHeader(3, _MARK, 4096, b"salt of 16 bytes", b"identity").encoded()[:_SHOWN_BYTES]
    yield connection.header(b"payload", 1)
    yield [Entry.make(5, 2, b"data", kind).crc for kind in Kind]
    finished = DecisionRecord(_TXID, Protocol.TWO_PHASE, Decision.COMMIT, (_BRANCH,), 1.5, "shop")
    yield history._sealed(finished)


def all_lines() -> list[str]:
    return [*lines(ROOTS), "[other]", *(repr(one) for one in _other())]


def differences() -> list[str]:
    """What is not as in the file."""
    kept, now = Counter(FILE.read_text().splitlines()), Counter(all_lines())
    return [f"- {line}" for line in kept - now] + [f"+ {line}" for line in now - kept]


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in all_lines()))
