"""Nodes that say nothing: gone, or only slow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.errors import LedgerUnavailable
from coordinator.ledger.cluster.silence import SILENCE_S
from coordinator.node.clients import FromClient
from coordinator.paxos import Ask
from coordinator.quorum import Joint
from tests.coordinator.node.cluster import CLUSTER, Cluster, client, running


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
        link = ledger._route._link
        assert await ledger.transactions(limit=10) == []
        assert asked == 1
        assert ledger._route._link is link


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
            ledger._links.ask(3, question, answer)
            await asyncio.sleep(SILENCE_S / 5)
        assert all(isinstance(each, LedgerUnavailable) for each in answers)
        assert "does not answer" in str(answers[0])
