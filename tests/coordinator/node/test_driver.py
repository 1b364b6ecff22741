"""One node's driver, with a disk that does what the test says: what leaves before a write is durable, and
what does not. The duties of a driver are numbered in :mod:`undoubt.coordinator.raft`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random

import pytest

from undoubt.coordinator.ledger.commands import KeepAlive
from undoubt.coordinator.ledger.disk import StoreBroken, StoreFull
from undoubt.coordinator.ledger.group_commit import DiskState
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.driver import Turns
from undoubt.coordinator.node.errors import NodeStopped
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity, DiskWrite, Stored
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Entry,
    LogSetBack,
    Message,
    MessageRefused,
    RequestVote,
    RequestVoteReply,
)

CLUSTER = "cluster"
COMMAND = KeepAlive(1, "0" * 16, 1)


class Storage:
    """Each write waits until the test ends it."""

    def __init__(self) -> None:
        self.writes: list[DiskWrite] = []
        self._done: asyncio.Future[bool] | None = None

    def write(self, writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        self.writes += writes
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    async def end(self, error: BaseException | None = None, *, room: bool = True) -> None:
        """Of the write that is under way, or comes."""
        while self._done is None:
            await asyncio.sleep(0)
        done, self._done = self._done, None
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(room)
        await turns()

    def close(self) -> asyncio.Future[None]:
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed


async def turns() -> None:
    """Let everything happen that happens at once."""
    for _ in range(10):
        await asyncio.sleep(0)


class Node:
    """Node 1 of so many. It gets no ticks but the test's."""

    def __init__(self, count: int) -> None:
        addresses = {number: f"127.0.0.1:{7400 + number}" for number in range(1, count + 1)}
        hard_state, snapshot = beginning(CLUSTER, addresses)
        replicated = NodeStateMachine(Machine(CLUSTER), {})
        replicated.restore(snapshot.image)
        self.sent: list[Message] = []
        self.led: list[bool] = []
        self.storage = Storage()
        self.replica = Replica(
            Stored(DiskIdentity(CLUSTER, 1, "disk"), hard_state, snapshot, ()),
            self.storage,  # type: ignore[arg-type]
            replicated,
            NodeSettings().raft,
            Random(1),  # noqa: S311 - election timeouts
            tick_s=3600.0,
            history_ms=1,
            snapshot_log_bytes=2**40,
            send=self.sent.append,
            on_change=self.led.append,
        )
        self.replica.start()

    async def elected(self) -> None:
        while not self.replica.raft.leads:
            self.replica.raft.tick()
            self.replica.turns.wake()
            await turns()
            if self.replica.disk.state is DiskState.WRITING:
                await self.storage.end()

    async def step(self, message: Message) -> None:
        self.replica.driver.step(message)
        await turns()


@pytest.fixture
async def follower() -> AsyncIterator[Node]:
    node = Node(3)
    await turns()
    yield node
    await node.replica.stop()


@pytest.fixture
async def alone() -> AsyncIterator[Node]:
    node = Node(1)
    yield node
    await node.replica.stop()


VOTE = RequestVote(sender=2, to=1, term=2, last_index=1, last_term=1)
ENTRIES = (Entry.make(2, 2, b""),)
APPEND = Append(sender=2, to=1, term=2, prev_index=1, prev_term=1, entries=ENTRIES, commit=1)
ASKED: dict[str, tuple[Message, type[Message]]] = {
    "a vote": (VOTE, RequestVoteReply),
    "an acknowledgement": (APPEND, AppendReply),
}


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("end", ["stored", "stored last", "refused", "failed", "stopped"])
async def test_what_depends_on_a_write_leaves_once_it_is_durable_and_only_then(
    follower: Node, what: str, end: str
) -> None:
    """Broken if a node votes twice in a term, or acknowledges what it forgets, over a restart."""
    message, kind = ASKED[what]
    await follower.step(message)

    def left() -> list[Message]:
        return [each for each in follower.sent if isinstance(each, kind) and _given(each)]

    assert left() == []
    disk = follower.replica.disk
    if end in {"stored", "stored last"}:
        await follower.storage.end(room=end == "stored")
        assert len(left()) == 1
        assert disk.state is (DiskState.IDLE if end == "stored" else DiskState.FULL)
    elif end == "refused":
        await follower.storage.end(StoreFull("no room"))
        assert left() == []
        assert disk.state is DiskState.REFUSED
        await follower.storage.end()  # it is given again
        assert len(left()) == 1
    elif end == "failed":
        await follower.storage.end(StoreBroken("the disk is broken"))
        assert left() == []
        assert disk.state is DiskState.BROKEN
        assert isinstance(await follower.replica.failed, StoreBroken)
        await follower.step(message)
        assert left() == []
    else:
        await follower.replica.stop()
        await follower.step(message)
        assert left() == []


def _given(message: Message) -> bool:
    return not isinstance(message, RequestVoteReply) or message.granted


async def test_a_command_is_answered_once_it_is_durable_and_applied(alone: Node) -> None:
    """Broken if an answer leaves that a restart takes back."""
    await alone.elected()
    answers: list[object] = []
    await turns()
    while not alone.replica.leads:
        await alone.storage.end()
    alone.replica.proposals.propose(COMMAND, answers.append)
    alone.replica.proposals.propose(COMMAND, answers.append)
    await turns()
    assert answers == []
    await alone.storage.end()
    assert len(answers) == 2
    assert len(alone.storage.writes[-1].entries) == 1


async def test_a_node_without_room_takes_no_command(alone: Node) -> None:
    """Broken if the only voter that is left takes commands that it cannot store."""
    await alone.elected()
    while not alone.replica.leads:
        await alone.storage.end(room=False)
    assert alone.replica.disk.full
    assert alone.replica.raft.disk_full
    assert alone.replica.acceptors.disk_full
    answers: list[object] = []
    alone.replica.proposals.propose(COMMAND, answers.append)
    await turns()
    assert "takes no entries now" in str(answers[0])


async def test_a_node_that_has_not_begun_hears_nobody() -> None:
    """Broken if a first node whose disk was lost helps to elect before all have met its disk."""
    node = Node(3)
    node.replica.turns.started = False
    await node.step(VOTE)
    assert node.sent == []
    assert node.replica.raft.term == 1
    await node.replica.stop()


async def test_a_message_that_is_refused_changes_nothing(follower: Node) -> None:
    bad = Append(sender=9, to=1, term=9, prev_index=1, prev_term=9, entries=ENTRIES, commit=1)
    term = follower.replica.raft.term
    with pytest.raises(MessageRefused):
        await follower.step(bad)
    assert follower.replica.driver.refused == 1
    assert follower.replica.raft.term == term
    assert not follower.replica.failed.done()


# Turns.


async def test_a_turn_is_one_however_often_it_is_asked_for() -> None:
    """Broken if each of many callers in one turn of the event loop has an entry and a sync of its own."""
    works: list[int] = []
    driver = Turns(1)
    driver.work = lambda: works.append(1)
    for _ in range(5):
        driver.wake()
    await turns()
    assert works == [1]
    driver.wake()
    await turns()
    assert works == [1, 1]


@pytest.mark.parametrize("raised", [RuntimeError("a bug"), LogSetBack("it lacks entry 7")])
async def test_an_error_ends_the_node_and_everybody_is_told_once(
    raised: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken if a node goes on with a state that cannot be trusted."""
    told: list[NodeStopped] = []
    driver = Turns(1)
    driver.on_stop.append(told.append)
    driver.work = _raising(raised)
    driver.wake()
    with caplog.at_level(logging.ERROR):
        await turns()
    assert str(raised) in str(await driver.failed)
    driver.work = _raising(AssertionError("it works on"))
    driver.wake()
    await turns()
    driver.stop("again")
    assert [str(one) for one in told] == [driver.stopped]
    assert "node 1 has stopped" in driver.stopped


def _raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work
