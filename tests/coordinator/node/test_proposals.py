"""Who waits for which entry: what becomes of a command when its entry is applied, is another leader's, or
when this node leads no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from undoubt.coordinator.ledger.commands import KeepAlive
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node import proposals as module
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.proposals import Proposals
from undoubt.coordinator.node.read_index import ReadQueue
from undoubt.coordinator.node.versions import Agreement
from undoubt.coordinator.raft import ConfigChange, Entry, NotLeader, ProposalRefused, Refusal
from undoubt.coordinator.wire import VERSIONS


class Core:
    """Of a core, what proposals use."""

    node, leader, term = 1, 2, 5
    leads, changing = True, False

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.refuse: Exception | None = None

    def propose(self, data: bytes) -> Entry:
        if self.refuse is not None:
            raise self.refuse
        self.entries.append(Entry.make(len(self.entries) + 1, self.term, data))
        return self.entries[-1]

    def propose_config(self, _: ConfigChange) -> Entry:
        return self.propose(b"")


class Waiting:
    """Proposals, and what each caller was answered."""

    def __init__(self, version: int = VERSIONS.highest) -> None:
        self.core = Core()
        self.woken = 0
        self.answers: dict[int, object] = {}
        self.reads = ReadQueue()
        machine = NodeStateMachine(Machine("ledger"), {}, version=version)
        agreement = Agreement(1, machine, lambda: {1})
        self.proposals = Proposals(
            self.core,  # type: ignore[arg-type]
            machine,
            agreement,
            self.reads,
            self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    def propose(self, *numbers: int) -> None:
        for number in numbers:
            command = KeepAlive(number, "0" * 16, 1)
            self.proposals.propose(command, lambda result, number=number: self._told(number, result))  # type: ignore[misc]

    def _told(self, number: int, result: object) -> None:
        assert number not in self.answers, "answered twice"
        self.answers[number] = result

    def applied(self, index: int, results: Sequence[object], *, term: int = Core.term) -> None:
        self.proposals.applied(Entry.make(index, term, b""), results)


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_commands_of_one_turn_are_one_entry(waiting: Waiting) -> None:
    waiting.propose(1, 2, 3)
    assert waiting.core.entries == []
    assert waiting.woken
    waiting.proposals.propose_waiting()
    waiting.proposals.propose_waiting()
    assert len(waiting.core.entries) == 1
    assert waiting.answers == {}
    waiting.applied(1, ["a", "b", "c"])
    assert waiting.answers == {1: "a", 2: "b", 3: "c"}


def test_too_many_commands_are_several_entries(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_COMMANDS_MAX", 2)
    waiting.propose(1, 2, 3)
    waiting.proposals.propose_waiting()
    assert len(waiting.core.entries) == 2
    waiting.applied(2, ["c"])
    waiting.applied(1, ["a", "b"])
    assert waiting.answers == {3: "c", 1: "a", 2: "b"}


def test_too_large_a_batch_is_several_entries_in_the_same_order(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if many callers together make an entry that fits into no frame."""
    monkeypatch.setattr(module, "ENTRY_BYTES_MAX", 80)
    waiting.propose(*range(8))
    waiting.proposals.propose_waiting()
    assert len(waiting.core.entries) > 1
    assert all(len(entry.data) <= 80 for entry in waiting.core.entries)
    for entry in waiting.core.entries:
        waiting.applied(entry.index, ["done"] * len(msgspec.msgpack.decode(entry.data)))
    assert list(waiting.answers) == list(range(8))


def test_another_leaders_entry_is_no_answer(waiting: Waiting) -> None:
    """Broken if a caller is told the result of another caller's command."""
    waiting.propose(1)
    waiting.proposals.propose_waiting()
    waiting.applied(1, ["somebody else's"], term=6)
    assert isinstance(waiting.answers[1], NotLeading)


def test_whoever_waits_when_the_lead_ends_is_told_so(waiting: Waiting) -> None:
    """Broken if a caller waits for ever: this node may never learn what became of the entry."""
    waiting.proposals.follow(5)
    waiting.propose(1)
    waiting.proposals.propose_waiting()
    waiting.propose(2)
    waiting.proposals.follow(0)
    assert isinstance(waiting.answers.pop(1), NotLeading)
    assert waiting.answers == {}, "what is in no entry yet is not lost"
    waiting.core.refuse = NotLeader(2)
    waiting.proposals.propose_waiting()
    assert isinstance(waiting.answers[2], NotLeading)
    assert waiting.proposals.led_term == 0


def test_what_the_core_takes_later_waits(waiting: Waiting) -> None:
    waiting.propose(1)
    waiting.core.refuse = ProposalRefused(Refusal.BUSY)
    waiting.proposals.propose_waiting()
    assert waiting.answers == {}
    waiting.core.refuse = None
    waiting.proposals.propose_waiting()
    waiting.applied(1, ["done"])
    assert waiting.answers == {1: "done"}


def test_what_finds_no_room_is_refused_at_once(waiting: Waiting) -> None:
    """Broken if callers wait for a disk instead of asking another node."""
    waiting.propose(1)
    waiting.core.refuse = ProposalRefused(Refusal.DISK_FULL)
    waiting.proposals.propose_waiting()
    assert "takes no entries now" in str(waiting.answers[1])


async def test_a_stopped_node_answers_everybody_and_takes_nothing(waiting: Waiting) -> None:
    waiting.propose(1)
    waiting.proposals.propose_waiting()
    waiting.propose(2)
    changed = asyncio.ensure_future(waiting.proposals.reconfigure(ConfigChange(())))
    await asyncio.sleep(0)
    waiting.proposals.stop(NodeStopped("it was stopped"))
    waiting.propose(3)
    with pytest.raises(NodeStopped):
        await changed
    with pytest.raises(NodeStopped):
        await waiting.proposals.reconfigure(ConfigChange(()))
    assert {type(result) for result in waiting.answers.values()} == {NodeStopped}
    assert sorted(waiting.answers) == [1, 2, 3]


async def test_a_change_of_the_members_ends_once_it_is_in_force_alone(waiting: Waiting) -> None:
    """Broken if an operator is told that a member is gone while the joint configuration still counts it."""
    waiting.core.changing = True
    changed = asyncio.ensure_future(waiting.proposals.reconfigure(ConfigChange(())))
    await asyncio.sleep(0)
    waiting.applied(1, [None])
    waiting.proposals.reconfigured()
    await asyncio.sleep(0)
    assert not changed.done()
    waiting.core.changing = False
    await asyncio.sleep(0)
    waiting.proposals.reconfigured()
    await changed
