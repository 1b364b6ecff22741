"""Nodes that say nothing: gone, or only slow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running
from tests.coordinator.node.test_members import added
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger.cluster.admin import change_members, transfer
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.node.clients import FromClient
from undoubt.coordinator.paxos import Ask, Phase2b
from undoubt.coordinator.quorum import Joint
from undoubt.coordinator.rpc.client import SILENCE_S


async def test_a_slow_answer_is_waited_for(tmp_path: Path) -> None:
    """A client that took it for silence would go away and ask again, and never be answered."""
    async with running(tmp_path, 1) as cluster, client(cluster) as ledger:
        (storage,) = cluster.storages.values()
        history, asked = storage.history, 0

        def slowly(*arguments: object) -> asyncio.Future[object]:
            async def later() -> object:
                nonlocal asked
                asked += 1
                await asyncio.sleep(2.5 * SILENCE_S)
                return await history(*arguments)  # type: ignore[arg-type]

            return asyncio.ensure_future(later())

        storage.history = slowly  # type: ignore[method-assign, assignment]
        link = ledger.leader_client.link
        assert await ledger.transactions(limit=10) == []
        assert asked == 1
        assert ledger.leader_client.link is link


def paused(cluster: Cluster, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on that node is there, and does nothing: its machine takes what it is sent, no more."""
    received, ledger = FromClient.received, cluster.nodes[number].ledger

    def deaf(self: FromClient, payload: bytes) -> None:
        if self._ledger is not ledger:
            received(self, payload)

    monkeypatch.setattr(FromClient, "received", deaf)
    cluster.cut(number)


async def test_a_leader_that_falls_silent_is_left_however_much_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if silence is counted from the last question: a client of which somebody wants something every
    moment would stay with a leader that is paused, or cut off, while the others have another."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        leader = await cluster.leader()
        paused(cluster, leader.identity.node, monkeypatch)
        asked = [asyncio.ensure_future(ledger.info())]
        while not asked[0].done():
            await asyncio.sleep(SILENCE_S / 5)
            asked.append(asyncio.ensure_future(ledger.info()))
        assert {info.ledger_id for info in await asyncio.gather(*asked)} == {CLUSTER}


async def test_an_acceptor_that_falls_silent_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if everything that a node is asked is kept for as long as its machine takes it, hours perhaps;
    and the connection with it, which does not come to life again soon after the network has."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        session = await ledger.acceptors.open_session("shop", 60.0)
        paused(cluster, 3, monkeypatch)
        answered = asyncio.Event()
        answers: list[object] = []

        def answer(given: object) -> None:
            answers.append(given)
            answered.set()

        question = Ask(session.txid(1), Joint(frozenset(session.acceptors)))
        while not answered.is_set():
            ledger.acceptor_client.ask(3, question, answer)
            await asyncio.sleep(SILENCE_S / 5)
        assert all(isinstance(each, LedgerUnavailable) for each in answers)
        assert "does not answer" in str(answers[0])


async def test_a_node_that_was_left_behind_does_not_hide_the_others(tmp_path: Path) -> None:
    """One of the ledger's URL slept, or was removed, while others joined, and is the first to say who is
    there. Broken if those that it has not heard of are never asked for their votes."""
    async with running(tmp_path) as cluster, client(cluster) as ledger:
        if cluster.nodes[1].leads:
            await transfer(cluster.settings, 2)
        cluster.cut(1)
        await added(cluster, 4)
        await change_members(cluster.settings, [MemberChange("promote", 4)], wait_s=30.0)
        session = await ledger.acceptors.open_session("shop", 60.0)
        assert session.acceptors == (1, 2, 3, 4)
        said, members = asyncio.Event(), ledger.client._members

        async def last_of_all(address: str) -> Mapping[int, str]:
            told = await members(address)
            if address == cluster.addresses[1]:
                said.set()
            else:
                await said.wait()
                await asyncio.sleep(0)
            return told

        ledger.client._members = last_of_all  # type: ignore[method-assign]
        question, told = Ask(session.txid(1), Joint(frozenset(session.acceptors))), list[object]()
        while not told or "does not have session" in str(told[-1]):
            answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            ledger.acceptor_client.ask(4, question, answered.set_result)
            told.append(await answered)
        assert isinstance(told[-1], Phase2b)
        cluster.heal(1)
