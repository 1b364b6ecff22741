"""``undoubt node`` that can die at steps of its own: around its disk's syncs, and around what it applies.

Arguments: the file that arms it, then those of the command line. Once that file exists, the trap that it
holds is set; whoever removes it takes the trap away. What the trap tells is a line on stderr, beside the log.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import msgspec

from tests.prove.trap import Trap, Trapped
from undoubt.cli import main
from undoubt.coordinator.ledger.commands import Command, Decide, Precommit
from undoubt.coordinator.node import node
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.storage.contract import DiskWrite
from undoubt.coordinator.node.storage.node_storage import NodeStorage
from undoubt.coordinator.paxos import FIRST, AcceptorRecord
from undoubt.coordinator.raft import Entry, Kind
from undoubt.serve import node as serve


class NodeStep(enum.StrEnum):
    """Each once for every transaction that is in what is written or applied; the subject is its id.

    Before a write nothing of it is on the disk; after it all is, and nobody was told. Before a decision is
    applied a majority has it; after it nobody who waits was answered. *vote*: ballot 0 of Paxos Commit is
    accepted; *promise* and *proposal*: phases 1 and 2 of a recovery's ballot.
    """

    BEFORE_STORE_DECISION = "before_store_decision"
    AFTER_STORE_DECISION = "after_store_decision"
    BEFORE_APPLY_DECISION = "before_apply_decision"
    AFTER_APPLY_DECISION = "after_apply_decision"
    BEFORE_STORE_PRECOMMIT = "before_store_precommit"
    AFTER_STORE_PRECOMMIT = "after_store_precommit"
    BEFORE_STORE_VOTE = "before_store_vote"
    AFTER_STORE_VOTE = "after_store_vote"
    BEFORE_STORE_PROMISE = "before_store_promise"
    AFTER_STORE_PROMISE = "after_store_promise"
    BEFORE_STORE_PROPOSAL = "before_store_proposal"
    AFTER_STORE_PROPOSAL = "after_store_proposal"


SLOW_S = 0.05
"""For how long a write that may never be done is under way."""

Found = Sequence[tuple[str, str]]
"""What a write is about: the last word of its steps, and the transaction."""

_decode = msgspec.msgpack.Decoder(list[Command]).decode


class Armed:
    """The trap in the file, as long as there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trapped: Trapped | None = None

    def waits_at(self, when: str, found: Found) -> bool:
        """Whether it may spring there."""
        trapped = self._now()
        return trapped is not None and any(trapped.step == f"{when}_{what}" for what, _ in found)

    def reach(self, when: str, found: Found) -> None:
        if (trapped := self._now()) is not None:
            for what, txid in found:
                trapped(NodeStep(f"{when}_{what}"), txid)

    def _now(self) -> Trapped | None:
        if not self._path.exists():
            self._trapped = None
        elif self._trapped is None:
            self._trapped = Trapped(Trap.decode(self._path.read_text()), _tell)
        return self._trapped


def _tell(**message: object) -> None:
    os.write(2, json.dumps(message).encode() + b"\n")


class TrappedStorage(NodeStorage):
    armed: Armed

    def write(self, writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        found = [each for write in writes for each in _stored(write)]
        if not self.armed.waits_at("before_store", found):
            return self._write_and_tell(found, writes)
        # Disks take their time. Whatever is said before they are done has left when the node dies.
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        loop.call_later(SLOW_S, self._write_slowly, found, writes, done)
        return done

    def _write_slowly(self, found: Found, writes: Sequence[DiskWrite], done: asyncio.Future[bool]) -> None:
        self.armed.reach("before_store", found)
        self._write_and_tell(found, writes).add_done_callback(lambda written: _pass_on(written, done))

    def _write_and_tell(self, found: Found, writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        written = super().write(writes)
        # Before the callback of whoever waits for it, who tells the others.
        written.add_done_callback(partial(self._written, found))
        return written

    def _written(self, found: Found, written: asyncio.Future[bool]) -> None:
        if not written.cancelled() and written.exception() is None:
            self.armed.reach("after_store", found)


def _pass_on(written: asyncio.Future[bool], done: asyncio.Future[bool]) -> None:
    if written.cancelled() or done.done():
        return
    if (error := written.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(written.result())


class TrappedReplicated(NodeStateMachine):
    armed: Armed

    def apply(self, entry: Entry) -> list[object]:
        decisions = [each for each in _recorded(entry) if each[0] == "decision"]
        self.armed.reach("before_apply", decisions)
        results = super().apply(entry)
        self.armed.reach("after_apply", decisions)
        return results


def _stored(write: DiskWrite) -> Iterator[tuple[str, str]]:
    for entry in write.entries:
        yield from _recorded(entry)
    if write.promises is not None:
        for record in write.promises.records:
            yield _kind_of(record), str(record.txid)


def _recorded(entry: Entry) -> Iterator[tuple[str, str]]:
    for command in _decode(entry.data) if entry.kind is Kind.DATA else ():
        match command:
            case Decide(txid=txid):
                yield "decision", str(txid)
            case Precommit(txid=txid):
                yield "precommit", str(txid)
            case _:
                pass


def _kind_of(record: AcceptorRecord) -> str:
    if record.promised == FIRST:
        return "vote"
    ballots = {accepted.ballot for accepted in record.known.accepted if accepted is not None}
    return "proposal" if record.promised in ballots | {record.known.unnamed} else "promise"


if __name__ == "__main__":
    TrappedStorage.armed = TrappedReplicated.armed = Armed(Path(sys.argv[1]))
    sys.argv = ["undoubt", *sys.argv[2:]]
    with (
        patch.object(serve, "NodeStorage", TrappedStorage),
        patch.object(node, "NodeStateMachine", TrappedReplicated),
    ):
        main()
