"""Whether this release reads what the types of the last one encode, and writes the same.

:data:`PROGRAM` runs on the last release and prints samples of what it stores and sends, under the names of
:data:`tests.coordinator.formats.ROOTS`. This release may add to them, at the end of arrays and to maps.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tests.coordinator import format_samples
from tests.coordinator.format_samples import extends, plain
from tests.coordinator.formats import ROOTS

PROGRAM = """
import json, runpy, sys
from typing import Union

from coordinator import paxos, raft
from coordinator.ledger import calls, commands, contract, state
from coordinator.ledger.cluster import backup, messages
from coordinator.node import replicated
from coordinator.paxos import messages as votes, record
from coordinator.wire import handshake

replies = calls.REPLY_TYPES | messages.NODE_REPLY_TYPES
roots = {
    "command of a ledger": commands.Command,
    "command of a cluster's log": replicated.Agree,
    "context of a member": replicated.Member,
    "image of a node": replicated._Image,
    "image of a ledger": state._StoredState,
    "backup": backup.Backup,
    "history": contract.DecisionRecord,
    "branches": tuple[contract.BranchRecord, ...],
    "evidence in a vote": tuple[int, int, str],
    "acceptor's record": record.Record,
    "acceptor's marks": paxos.Marks,
    "acceptor's request": votes.Request,
    "acceptor's reply": votes.Reply,
    "message of raft": raft.Message,
    "entry": raft.Entry,
    "change of members": raft.ConfigChange,
    "term and vote": raft.HardState,
    "meta data of a snapshot": raft.SnapshotMeta,
    "hello": handshake.Hello,
    "answer to hello": handshake.Welcome | handshake.Refused,
    "answer": messages.Answer,
    "call": Union[tuple(replies)],
    **{f"reply to {call.__struct_config__.tag}": kind for call, kind in replies.items()},
}
samples = runpy.run_path(sys.argv[1])["samples"]
print(json.dumps({name: [one.hex() for one in samples(root)] for name, root in roots.items()}))
"""
SAMPLER = str(format_samples.__file__)


def differences(told: str) -> list[str]:
    """What this release cannot read, or would not write, of what :data:`PROGRAM` has printed."""
    found: list[str] = []
    for name, samples in json.loads(told).items():
        for sample in map(bytes.fromhex, samples):
            try:
                again = msgspec.msgpack.encode(msgspec.msgpack.decode(sample, type=ROOTS[name]))
            except (KeyError, ValueError) as error:
                found.append(f"{name}: {plain(sample)} of the last release: {error!r}")
                continue
            if not extends(plain(again), plain(sample)):
                found.append(f"{name}: {plain(sample)} of the last release is {plain(again)} now")
    return found


def count(told: str) -> int:
    samples: dict[str, list[Any]] = json.loads(told)
    return sum(map(len, samples.values()))
