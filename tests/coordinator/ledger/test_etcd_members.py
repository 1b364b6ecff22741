"""A ledger in an etcd whose members are killed, stopped, compacted and set back, or that has users. Each
test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.coordinator.ledger.etcd_stage import Place, place_in, store_of
from tests.coordinator.ledger.signing import Signing
from tests.coordinator.ledger.test_etcd import ABORT, BRANCHES, COMMIT, verdict_of
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.contract import RecordedDecision, SessionState, Verdict
from undoubt.participants.contract import Decision


@pytest.fixture
def members(tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three members that a test may stop."""
    cluster = EtcdCluster(tmp_path / "etcd", heartbeat_ms=200)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def place(members: EtcdCluster) -> AsyncIterator[Place]:
    async with place_in(members) as made:
        yield made


@pytest.fixture
async def ledger(place: Place) -> Signing:
    return await place.open()


async def decided(ledger: Signing, session: object, seqs: range) -> list[Decision]:
    """EtcdDecisions, some of which are repeated, as a coordinator does until it is answered."""

    async def one(seq: int) -> Decision:
        while True:
            try:
                decision: Decision = await ledger.decide(session.txid(seq), COMMIT, BRANCHES)  # type: ignore[attr-defined]
            except LedgerUnavailable:
                continue
            return decision

    return await asyncio.gather(*map(one, seqs))


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_decisions_survive_the_leader(members: EtcdCluster, ledger: Signing, how: str) -> None:
    """A decision that was answered is lost, or recorded otherwise, when etcd elects another leader."""
    session = await ledger.open_session("test", 600)
    before = await decided(ledger, session, range(1, 51))
    leader = members.leader()
    running = asyncio.create_task(decided(ledger, session, range(51, 301)))
    await asyncio.sleep(0)
    getattr(members, how)(leader)
    during = await running
    assert {*before, *during} == {COMMIT}
    if how == "pause":
        members.resume(leader)
    else:
        members.start(leader)
    members.wait()
    txids = [session.txid(seq) for seq in range(1, 301)]
    assert set((await ledger.records(txids)).values()) == {RecordedDecision.COMMIT}


async def test_without_a_majority_nothing_is_answered(
    members: EtcdCluster, place: Place, ledger: Signing
) -> None:
    """A member that was left behind answers from its own state: a recorded decision is not there, and a
    transaction counts as undecided."""
    session = await ledger.open_session("test", 600)
    await decided(ledger, session, range(1, 3))
    members.kill("one", "two")
    alone = await asyncio.gather(
        ledger.records([session.txid(1)]),
        ledger.sessions(),
        ledger.unfinished(),
        ledger.transactions(limit=10),
        ledger.heuristics(),
        ledger.acts(limit=1),
        ledger.locks(),
        ledger.decide(session.txid(3), COMMIT, BRANCHES),
        return_exceptions=True,
    )
    assert {type(answer) for answer in alone} == {LedgerUnavailable}
    members.start("one", "two")
    assert await decided(ledger, session, range(3, 4)) == [COMMIT]
    assert (await ledger.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.COMMIT


async def test_compaction_takes_nothing(members: EtcdCluster, ledger: Signing) -> None:
    """An etcd that compacts itself makes pages of the ledger fail."""
    session = await ledger.open_session("test", 600)
    await decided(ledger, session, range(1, 31))
    first = await ledger.unfinished(limit=10)
    members.compact()
    rest = await ledger.unfinished(after=first[-1].txid)
    assert [record.txid.seq for record in (*first, *rest)] == list(range(1, 31))
    assert len(await ledger.transactions(limit=100)) == 30
    assert await ledger.decide(session.txid(31), COMMIT, BRANCHES) is COMMIT


async def test_a_lease_that_is_not_renewed_ends(ledger: Signing) -> None:
    """Branches of a dead coordinator stay locked for ever."""
    session = await ledger.open_session("test", 0.1)
    while await verdict_of(ledger, session.txid(1)) is Verdict.ACTIVE:
        await asyncio.sleep(0.1)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.ABORTED
    assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is ABORT
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    [info] = await ledger.sessions()
    assert info.state is SessionState.EXPIRED


async def test_an_etcd_whose_folders_were_set_back_begins_an_incarnation(
    members: EtcdCluster, place: Place, ledger: Signing, tmp_path: Path
) -> None:
    """What recovery has presumed aborted since the snapshot is committed by a coordinator that was open in
    it."""
    session = await ledger.open_session("test", 600)
    await decided(ledger, session, range(1, 4))
    members.kill(*members.names)
    shutil.copytree(members.folder, tmp_path / "snapshot")
    members.start()
    await decided(ledger, session, range(4, 6))
    later = await ledger.open_session("later", 600)
    gid = ledger.gid(later.txid(1))
    members.kill(*members.names)
    shutil.rmtree(members.folder)
    shutil.copytree(tmp_path / "snapshot", members.folder)
    members.start()
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(6), COMMIT, BRANCHES)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.COMMITTED
    assert await verdict_of(ledger, session.txid(4)) is Verdict.FORGOTTEN
    assert (await ledger.info()).incarnation == 2
    # Of another process, which has seen nothing of what is lost:
    other = await place.open()
    assert await other.ledger.outcomes([gid]) == {gid: Verdict.FORGOTTEN}
    assert (await other.open_session("again", 600)).id > later.id


async def test_a_snapshot_that_is_restored_begins_an_incarnation(
    members: EtcdCluster, place: Place, ledger: Signing, tmp_path: Path
) -> None:
    """As above, by the procedure of etcd's manual, and with the command that the documentation tells."""
    session = await ledger.open_session("test", 600)
    await decided(ledger, session, range(1, 4))
    await asyncio.to_thread(members.save, tmp_path / "snapshot")
    await decided(ledger, session, range(4, 6))
    before = await ledger.info()
    members.kill(*members.names)
    await asyncio.to_thread(members.restore, tmp_path / "snapshot")
    members.start()
    restored = await maintenance.restore(place.settings, None)
    assert restored.ledger_id == before.ledger_id
    assert restored.incarnation > 1
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(6), COMMIT, BRANCHES)
    assert await verdict_of(ledger, session.txid(3)) is Verdict.COMMITTED
    assert await verdict_of(ledger, session.txid(4)) is Verdict.FORGOTTEN
    with pytest.raises(SessionLost):
        await ledger.keep_alive(session, 1)
    again = await ledger.open_session("again", 600)
    assert again.id > session.id + 2**31
    assert await ledger.decide(again.txid(1), COMMIT, BRANCHES) is COMMIT


async def test_restore_accepts_an_etcd_as_it_is(place: Place, ledger: Signing) -> None:
    """After a snapshot was restored, sessions that it contains go on as if nothing had been lost."""
    session = await ledger.open_session("test", 600)
    restored = await maintenance.restore(place.settings, None)
    assert (restored.incarnation, restored.sessions_closed) == (2, 1)
    with pytest.raises(OutcomeUnknown):
        await ledger.decide(session.txid(1), COMMIT, BRANCHES)
    assert await verdict_of(ledger, session.txid(1)) is Verdict.FORGOTTEN


def _auth(members: EtcdCluster) -> None:
    """A user ``root``, and a user ``undoubt`` with the rights on keys that begin with ``test``."""
    ask, name = members.ask, members.names[0]
    for user, password in (("root", "r"), ("undoubt", "p@ss/word")):
        ask(name, "auth/user/add", name=user, password=password).raise_for_status()
    for role in ("root", "ledger"):
        ask(name, "auth/role/add", name=role).raise_for_status()
    begin, end = (base64.b64encode(key).decode() for key in (b"test", b"tesu"))
    permission = {"permType": "READWRITE", "key": begin, "range_end": end}
    ask(name, "auth/role/grant", name="ledger", perm=permission).raise_for_status()
    for user, role in (("root", "root"), ("undoubt", "ledger")):
        ask(name, "auth/user/grant", user=user, role=role).raise_for_status()
    ask(name, "auth/enable").raise_for_status()


async def test_users_and_tokens_that_expire(members: EtcdCluster) -> None:
    """A ledger behind a password cannot be used; or only until its first token expires."""
    await asyncio.to_thread(_auth, members)
    url = members.url.replace("etcd://", "etcd://undoubt:p%40ss%2Fword@")
    async with place_in(members, url=f"{url}/test-auth") as place:
        ledger = await place.open()
        session = await ledger.open_session("test", 600)
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        store_of(ledger).client.token = "made-up.1"  # as one that has expired
        assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is COMMIT
        await ledger.keep_alive(session, 2)
        for wrong in ("etcd://undoubt:wrong@", "etcd://"):
            with pytest.raises(LedgerUnusable) as caught:
                await place.open(url=place.settings.url.replace("etcd://undoubt:p%40ss%2Fword@", wrong))
            assert "wrong" not in str(caught.value)
        with pytest.raises(LedgerUnusable, match="readwrite"):
            await place.open(url=place.settings.url.replace("/test-auth", "/elsewhere"))
