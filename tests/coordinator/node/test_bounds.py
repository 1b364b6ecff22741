"""What one connection of a client can make a node keep is bounded before it is made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.errors import ClusterRefused
from coordinator.ledger import calls
from coordinator.ledger.cluster import messages
from coordinator.ledger.contract import BranchRecord, Decision
from coordinator.node.clients import REQUESTS_PER_CONNECTION_MAX, FromClient
from coordinator.node.operator import IMAGES_MAX
from coordinator.wire import RemoteProtocolError
from participants.ids import TxId
from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import running

NONCE = "99b2" * 4


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_the_size_of_a_frame_is_read_from_its_head(count: int) -> None:
    assert messages.size(msgspec.msgpack.encode([0] * count)) == count


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x81\x01\x01", b"\xc0"])
def test_what_is_no_list_has_no_size(payload: bytes) -> None:
    with pytest.raises(ValueError, match="no list"):
        messages.size(payload)


def test_a_frame_of_too_many_requests_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if 63 MiB become millions of objects before anybody counts them."""
    decoded: list[bytes] = []
    monkeypatch.setattr(messages, "decode_requests", decoded.append)
    one = msgspec.msgpack.encode(messages.Request(1, calls.InfoCall()))
    count = REQUESTS_PER_CONNECTION_MAX + 1
    frame = b"\xdd" + count.to_bytes(4) + one * count
    receiver: Any = object.__new__(FromClient)
    with pytest.raises(RemoteProtocolError, match="a frame of more than"):
        receiver.received(frame)
    assert not decoded


@pytest.mark.parametrize(
    "call",
    [
        calls.RecordsCall((TxId(1, NONCE, 1),) * (calls.IDS_MAX + 1)),
        calls.FinishCall((TxId(1, NONCE, 1),) * (calls.IDS_MAX + 1)),
        calls.OutcomesCall((TxId(1, NONCE, 1),) * (calls.IDS_MAX + 1), "2"),
        calls.DecideCall(TxId(1, NONCE, 1), Decision.ABORT, (BranchRecord(1, "a"),) * 10_000, "2"),
    ],
    ids=lambda call: type(call).__name__,
)
def test_a_list_in_a_call_is_bounded(call: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match="of length <="):
        messages.decode_call(msgspec.Raw(calls.encode(call)))


async def test_images_of_backups_are_few_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if each connection that has begun a backup keeps all of the ledger in memory."""
    monkeypatch.setattr("coordinator.node.operator.PIECE_BYTES", 10)
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
        monkeypatch.setattr("coordinator.node.operator.IMAGE_IDLE_S", 0.0)
        await begun[-2].piece(leader.replica, 10)
        begun[-1].end()  # its connection was lost
        async with asyncio.timeout(30):
            while backups._held:
                await asyncio.sleep(0.01)
        assert begun[-2]._image is None
