"""What one connection of a client can make a node keep is bounded before it is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import client, running
from undoubt.coordinator.errors import ClusterRefused, LedgerUnavailable
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.cluster import messages
from undoubt.coordinator.ledger.cluster.messages import AcceptorCall, MemberChange
from undoubt.coordinator.ledger.contract import BranchRecord, LedgerInfo
from undoubt.coordinator.ledger.ledger_call import IDS_MAX
from undoubt.coordinator.node.admin import IMAGES_MAX, NUMBER_GAP_MAX
from undoubt.coordinator.node.clients import REQUESTS_PER_CONNECTION_MAX, FromClient
from undoubt.coordinator.paxos import FIRST, Ask, BranchInstance, Phase2a, Value
from undoubt.coordinator.quorum import VOTERS_MAX, Joint
from undoubt.coordinator.raft import Change, ChangeKind, ConfigChange, ConfigRefused
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.server import message_count
from undoubt.coordinator.wire import RemoteProtocolError
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Protocol, TxId

NOBODY = Joint()
BRANCHES = (BranchRecord(1, "orders"),)
NONCE = "99b2" * 4


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_the_size_of_a_frame_is_read_from_its_head(count: int) -> None:
    assert message_count(msgspec.msgpack.encode([0] * count)) == count


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x81\x01\x01", b"\xc0"])
def test_what_is_no_list_has_no_size(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a list"):
        message_count(payload)


def test_a_frame_of_too_many_requests_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if 63 MiB become millions of objects before anybody counts them."""
    decoded: list[bytes] = []
    monkeypatch.setattr(messages, "decode_requests", decoded.append)
    one = msgspec.msgpack.encode(envelope.Request(1, calls.InfoCall()))
    count = REQUESTS_PER_CONNECTION_MAX + 1
    frame = b"\xdd" + count.to_bytes(4) + one * count
    receiver: Any = object.__new__(FromClient)
    with pytest.raises(RemoteProtocolError, match="a frame of more than"):
        receiver.received(frame)
    assert not decoded


@pytest.mark.parametrize(
    "call",
    [
        calls.RecordsCall((TxId(1, NONCE, 1),) * (IDS_MAX + 1)),
        calls.FinishCall((TxId(1, NONCE, 1),) * (IDS_MAX + 1)),
        calls.OutcomesCall((TxId(1, NONCE, 1),) * (IDS_MAX + 1), Protocol.TWO_PHASE),
        calls.DecideCall(
            TxId(1, NONCE, 1), Decision.ABORT, (BranchRecord(1, "a"),) * 10_000, Protocol.TWO_PHASE
        ),
        AcceptorCall(Phase2a(TxId(1, NONCE, 1), NOBODY, FIRST, (BranchInstance(1, "a"),) * 10_000)),
        AcceptorCall(Phase2a(TxId(1, NONCE, 1), NOBODY, FIRST, (), (None,) * 10_000)),
        AcceptorCall(Phase2a(TxId(1, NONCE, 1), NOBODY, FIRST, (), (Value(True, b"e" * 10_001),))),
        AcceptorCall(Ask(TxId(1, NONCE, 1), Joint(frozenset(range(VOTERS_MAX + 1))))),
        messages.HeldCall((1,) * (messages.SESSIONS_MAX + 1)),
        messages.ChangeMembersCall((MemberChange("remove", 1),) * (messages.CHANGES_MAX + 1)),
    ],
    ids=lambda call: type(call).__name__,
)
def test_a_list_in_a_call_is_bounded(call: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match="of length <="):
        messages.decode_call(msgspec.Raw(envelope.encode(call)))


@pytest.mark.parametrize("number", [-1, 0, messages.NODE_NUMBER_MAX + 1, 2**63, 2**64 - 1])
async def test_a_member_has_a_number_that_every_node_can_read(tmp_path: Path, number: int) -> None:
    """Broken if an operator's number gets into the log and ends every node that follows it, for good."""
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        change = messages.ChangeMembersCall((MemberChange("add", number, "127.0.0.1:1", "disk"),))
        messages.decode_call(msgspec.Raw(envelope.encode(change)))
    if number > 2**63 - 1:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            with pytest.raises(ConfigRefused, match="no node can have the number"):
                leader.replica.raft.propose_config(ConfigChange((Change(ChangeKind.ADD_LEARNER, number),)))
            assert not leader.failed.done()


@pytest.mark.parametrize("address", ["", "nowhere", "host:99999", "host:1\n", "::1:7400"])
async def test_a_member_is_where_it_can_be_dialed(tmp_path: Path, address: str) -> None:
    """Broken if every member goes on with an address that none of them can read."""
    async with running(tmp_path, 1) as cluster:
        leader = await cluster.leader()
        add = messages.ChangeMembersCall((MemberChange("add", 2, address, "disk", 3),))
        with pytest.raises(ClusterRefused, match="no node can be reached there"):
            await leader.operator.perform(add, leader.operator.backups.begin())
        assert leader.replica.replicated.highest == 1


async def test_no_member_uses_up_the_numbers_of_later_ones(tmp_path: Path) -> None:
    """Broken if a mistyped number is added: the numbers below it are lost."""
    async with running(tmp_path, 1) as cluster:
        operator = (leader := await cluster.leader()).operator
        for number in (NUMBER_GAP_MAX + 2, messages.NODE_NUMBER_MAX):
            add = messages.ChangeMembersCall((MemberChange("add", number, "127.0.0.1:1", "disk", 3),))
            with pytest.raises(ClusterRefused, match="the next is 2, and 1001 the highest"):
                await operator.perform(add, operator.backups.begin())
        assert leader.replica.replicated.highest == 1


async def test_what_no_file_holds_is_asked_of_none(tmp_path: Path) -> None:
    """Broken if a number of an operator's question ends its request as a bug of the node's."""
    async with running(tmp_path, 1) as cluster:
        ledger = (await cluster.leader()).ledger
        for wrong in (0, -1, 2**63):
            with pytest.raises(UsageError):
                await ledger.transaction(TxId(1, NONCE, wrong))
            with pytest.raises(UsageError):
                await ledger.transactions(limit=1, before=TxId(1, NONCE, wrong))
        for limit in (-1, 2**63):
            with pytest.raises(UsageError):
                await ledger.transactions(limit=limit)
            with pytest.raises(UsageError):
                await ledger.acts(limit=limit)


async def test_an_exception_that_nobody_expected_is_answered_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if a bug that one request meets cuts the connection of all callers of a process."""

    def failing(*_: object) -> None:
        raise RuntimeError("a bug")

    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        session = await ledger.open_session("test", 60.0)
        monkeypatch.setattr((await cluster.leader()).ledger, "decide_command", failing)
        asked = [ledger.decide(session.txid(1), Decision.ABORT, BRANCHES), ledger.info()]
        failed, info = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failed, LedgerUnavailable)
        assert "RuntimeError: a bug" in str(failed)
        assert isinstance(info, LedgerInfo)


async def test_images_of_backups_are_few_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if each connection that has begun a backup keeps all of the ledger in memory."""
    monkeypatch.setattr("undoubt.coordinator.node.admin.PIECE_BYTES", 10)
    async with running(tmp_path, 1) as cluster:
        leader = await cluster.leader()
        await Signing(leader.ledger).open_session("test", 60.0)
        backups = leader.operator.backups
        begun = [backups.begin() for _ in range(IMAGES_MAX + 3)]
        for backup in begun:
            await backup.piece(leader.replica, 0)
        assert len(backups._held) == IMAGES_MAX
        assert sum(backup._image is not None for backup in begun) == IMAGES_MAX
        with pytest.raises(ClusterRefused, match="begin again"):
            await begun[0].piece(leader.replica, 10)
        assert len((await begun[-1].piece(leader.replica, 10)).data) == 10
        monkeypatch.setattr("undoubt.coordinator.node.admin.IMAGE_IDLE_S", 0.0)
        await begun[-2].piece(leader.replica, 10)
        begun[-1].end()  # its connection was lost
        async with asyncio.timeout(30):
            while backups._held:
                await asyncio.sleep(0.01)
        assert begun[-2]._image is None
