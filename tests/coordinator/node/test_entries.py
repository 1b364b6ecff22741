"""One entry of the log is bounded: what fits into no frame would stop whoever leads, one node after the
other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.cluster import running
from undoubt.coordinator.errors import ClusterRefused
from undoubt.coordinator.ledger.commands import RULES, KeepAlive, OpenSession
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.node.proposals import ENTRY_BYTES_MAX
from undoubt.coordinator.raft import Entry
from undoubt.coordinator.wire import WireSettings
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError

COMMIT = Decision.COMMIT


def test_an_entry_fits_into_a_frame() -> None:
    """With all that an append has besides."""
    assert WireSettings().frame_bytes_max > ENTRY_BYTES_MAX + 1024 * 1024


async def test_many_large_commands_are_several_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if only their number is bounded."""
    monkeypatch.setattr("undoubt.coordinator.node.proposals.ENTRY_BYTES_MAX", 10_000)
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        ledger = Signing(leader.ledger)
        session = await ledger.open_session("test", 60.0)
        raft, sizes = leader.replica.raft, list[int]()
        propose = raft.propose

        def proposed(data: bytes) -> Entry:
            sizes.append(len(data))
            return propose(data)

        raft.propose = proposed  # type: ignore[method-assign]
        many = [BranchRecord(number, "some-participant") for number in range(1, 101)]
        decides = (ledger.decide(session.txid(seq), COMMIT, many) for seq in range(1, 51))
        assert set(await asyncio.gather(*decides)) == {COMMIT}
        assert max(sizes) <= 10_000
        await cluster.settled()
        assert len(cluster.images()) == 1


async def test_a_command_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked is told; the others, in the same turn, are answered as ever."""
    monkeypatch.setattr("undoubt.coordinator.node.proposals.ENTRY_BYTES_MAX", 10_000)
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        ledger = Signing(leader.ledger)
        session = await ledger.open_session("test", 60.0)
        huge = [BranchRecord(number, "some-participant") for number in range(1, 1_001)]
        usual = [BranchRecord(1, "orders"), BranchRecord(2, "payments")]
        told = await asyncio.gather(
            ledger.decide(session.txid(1), COMMIT, usual),
            ledger.decide(session.txid(2), COMMIT, huge),
            ledger.decide(session.txid(3), COMMIT, usual),
            return_exceptions=True,
        )
        assert (told[0], told[2]) == (COMMIT, COMMIT)
        assert isinstance(told[1], ClusterRefused)
        assert "the maximum is 10000" in str(told[1])
        assert not leader.failed.done()


async def test_a_command_that_cannot_be_encoded_is_refused_alone(tmp_path: Path) -> None:
    """Broken if it fails the batch that it is encoded with: one caller's bad input would stop the node, and
    the next leader after it. Past all checks, as if one were missing."""
    async with running(tmp_path) as cluster:
        leader = await cluster.leader()
        ledger = Signing(leader.ledger)
        session = await ledger.open_session("test", 60.0)
        answers: list[object] = []
        for bad in (
            OpenSession("99b2" * 4, "name", 10**30),
            OpenSession("99b2" * 4, "\ud800", 1000),
            KeepAlive(session.id, session.nonce, -(2**70)),
        ):
            leader.replica.proposals.propose(bad, answers.append)
        usual = [BranchRecord(1, "orders"), BranchRecord(2, "payments")]
        decided = asyncio.ensure_future(ledger.decide(session.txid(1), COMMIT, usual))
        either: list[asyncio.Future[Any]] = [decided, leader.failed]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        assert not leader.failed.done()
        assert await decided is COMMIT
        assert [type(answer) for answer in answers] == [UsageError] * 3
        await leader.ledger.agree_on_rules()
        assert leader.ledger.machine.state.rules == RULES
        await cluster.settled()
        assert len(cluster.images()) == 1
