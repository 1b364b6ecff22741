"""Idempotency keys, on every backend. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from undoubt.coordinator.errors import BranchListMismatch, Impostor, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger.contract import BranchRecord, RecordedDecision, Session, Verdict
from undoubt.coordinator.ledger.keys import (
    KEY_CHARACTERS_MAX,
    RESULT_BYTES_MAX,
    KeptKey,
    KeyHolder,
    Keys,
    KeyState,
)
from undoubt.coordinator.ledger.rules import Names
from undoubt.coordinator.ledger.state_machine_ledger import TIME_STEP_S, TIME_STEP_S_MAX
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId

from .conftest import Backend, Sqlite
from .signing import Signing

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (BranchRecord(1, "orders", 2**40, 2**62, "00000001"),)


class Client:
    """A coordinator's side: its session, and the proofs that its session's key makes."""

    def __init__(self, ledger: Signing, session: Session) -> None:
        self.ledger = ledger
        self.session = session
        self._key = SessionKey(session.key)

    @classmethod
    async def opened(cls, ledger: Signing, ttl_s: float = 10.0) -> Client:
        return cls(ledger, await ledger.open_session("test", ttl_s))

    def txid(self, seq: int) -> TxId:
        return self.session.txid(seq)

    def proof(self, seq: int, key: str) -> str:
        return self._key.key_proof(self.txid(seq), key)

    async def claim(self, seq: int, key: str) -> KeyHolder:
        holder: KeyHolder = await self.ledger.claim_key(self.txid(seq), key, self.proof(seq, key))
        return holder

    async def commit(
        self, seq: int, key: str, result: bytes, branches: tuple[BranchRecord, ...] = BRANCHES
    ) -> Decision:
        tagged = self.ledger.tagged(self.txid(seq), branches, Protocol.TWO_PHASE)
        decision: Decision = await self.ledger.commit_key(
            self.txid(seq), key, self.proof(seq, key), result, tagged
        )
        return decision

    async def free(self, seq: int, key: str) -> Decision:
        decision: Decision = await self.ledger.free_key(self.txid(seq), key, self.proof(seq, key))
        return decision


@pytest.fixture
async def one(ledger: Signing) -> Client:
    return await Client.opened(ledger)


@pytest.fixture
async def other(ledger: Signing) -> Client:
    return await Client.opened(ledger)


async def test_a_committed_key_returns_its_transaction_and_result(
    backend: Backend, one: Client, other: Client
) -> None:
    """Otherwise a repetition runs again, or is told another result than the first run."""
    assert await one.claim(1, "k") == KeyHolder(one.txid(1), KeyState.RUNNING)
    assert await one.commit(1, "k", b"result") is COMMIT
    kept = KeyHolder(one.txid(1), KeyState.COMMITTED, b"result")
    assert await other.claim(1, "k") == kept
    assert await one.claim(2, "k") == kept
    assert await one.ledger.key_holder("k") == kept
    assert await one.ledger.key_holder("another") is None
    await one.ledger.finish([one.txid(1)])
    assert await key_shown(one.ledger, one.txid(1)) == "k"
    if backend.durable:
        await backend.reopen()
    assert await backend.ledger.key_holder("k") == kept
    assert await key_shown(backend.ledger, one.txid(1)) == "k"


async def key_shown(ledger: Any, txid: TxId) -> str:
    """What ``undoubt tx show`` tells operators."""
    info = await ledger.transaction(txid)
    assert info is not None
    return str(info.key)


async def test_a_key_is_shown_of_the_transaction_that_has_committed_with_it(one: Client) -> None:
    """An operator who has the key of a request finds the wrong transaction."""
    await one.claim(1, "k")
    assert await one.free(1, "k") is ABORT
    await one.claim(2, "k")
    assert await one.commit(2, "k", b"") is COMMIT
    assert await key_shown(one.ledger, one.txid(1)) == ""
    assert await key_shown(one.ledger, one.txid(2)) == "k"
    [newest, *_] = await one.ledger.transactions(limit=10)
    assert (newest.txid, newest.key) == (one.txid(2), "k")


def test_a_snapshot_tells_which_transaction_has_committed_with_a_key() -> None:
    """A node that starts from its snapshot shows no key, or cannot drop what is old."""
    txid = TxId(1, "0123456789abcdef", 1)
    keys = Keys()
    keys.claim("k", txid)
    keys.committed(txid, b"result", 5)
    loaded = Keys.loaded(keys.stored())
    assert loaded.kept_of(txid) == "k"
    loaded.drop(5)
    assert loaded == Keys()


async def test_only_one_of_concurrent_claims_has_the_key(ledger: Signing) -> None:
    """Two transactions with one key would both run."""
    clients = [await Client.opened(ledger) for _ in range(3)]
    for key in ("a", "b", "c"):
        seq = ord(key)
        holders = await asyncio.gather(*(client.claim(seq, key) for client in clients))
        assert len({holder.txid for holder in holders}) == 1
        assert {holder.state for holder in holders} == {KeyState.RUNNING}
        winner = next(client for client in clients if client.txid(seq) == holders[0].txid)
        for client in clients:
            expected = COMMIT if client is winner else ABORT
            assert await client.commit(seq, key, b"1") is expected
        assert (await ledger.key_holder(key)).txid == holders[0].txid


async def test_a_claim_may_be_repeated(one: Client) -> None:
    """The answer to the first call may be lost; the caller must not wait for itself."""
    for _ in range(2):
        assert await one.claim(1, "k") == KeyHolder(one.txid(1), KeyState.RUNNING)
    for _ in range(2):
        assert await one.commit(1, "k", b"r") is COMMIT
    with pytest.raises(BranchListMismatch):
        await one.commit(1, "k", b"r", (BranchRecord(2, "payments"),))
    assert await one.free(1, "k") is COMMIT
    assert await one.ledger.key_holder("k") == KeyHolder(one.txid(1), KeyState.COMMITTED, b"r")


async def test_a_key_without_a_claim_commits_nothing(one: Client, other: Client) -> None:
    """A transaction whose claim another one has replaced would commit beside that one."""
    assert await one.commit(1, "k", b"r") is ABORT
    assert await one.ledger.key_holder("k") is None
    assert await one.commit(1, "k", b"r", ()) is ABORT
    assert [record.txid for record in await one.ledger.unfinished()] == [one.txid(1)]
    await other.claim(1, "k")
    assert await one.commit(2, "k", b"r") is ABORT
    assert await other.commit(1, "k", b"s") is COMMIT


async def test_an_undecided_transaction_keeps_its_key(backend: Backend, one: Client, other: Client) -> None:
    """Its first run may still commit, however long it takes."""
    await one.claim(1, "k")
    for _ in range(3):
        await backend.elapse(5.0)
        await one.ledger.keep_alive(one.session, 1)
        await other.ledger.keep_alive(other.session, 1)
        assert (await other.claim(1, "k")).txid == one.txid(1)
    assert await one.commit(1, "k", b"r") is COMMIT


async def test_a_freed_key_belongs_to_an_aborted_transaction(one: Client, other: Client) -> None:
    """A key that is free while its transaction can commit would run twice."""
    await one.claim(1, "k")
    assert await one.free(1, "k") is ABORT
    assert (await one.ledger.records([one.txid(1)]))[one.txid(1)] is RecordedDecision.ABORT
    assert await one.commit(1, "k", b"late") is ABORT
    assert not await one.ledger.unfinished()
    assert await other.claim(1, "k") == KeyHolder(other.txid(1), KeyState.RUNNING)
    assert await one.free(1, "k") is ABORT  # a repeated call
    assert await other.commit(1, "k", b"r") is COMMIT


async def test_a_recorded_abort_frees_the_key(one: Client, other: Client) -> None:
    """A recovery or an operator that has aborted the first run would block its key until the session ends."""
    await one.claim(1, "k")
    assert await one.ledger.decide(one.txid(1), ABORT, BRANCHES) is ABORT
    assert await one.ledger.key_holder("k") is None
    assert (await other.claim(1, "k")).txid == other.txid(1)
    with pytest.raises(SessionLost):
        await one.claim(1, "k2")


@pytest.mark.parametrize("end", ["close", "expire", "floor"])
async def test_presumed_abort_frees_the_key(backend: Backend, one: Client, other: Client, end: str) -> None:
    """A coordinator that dies would block its keys for ever; or its late COMMIT would run beside the second
    run."""
    await one.claim(1, "k")
    match end:
        case "close":
            await one.ledger.close_session(one.session)
        case "floor":
            await one.ledger.keep_alive(one.session, 2)
        case _:
            await backend.elapse(6.0)
            await other.ledger.keep_alive(other.session, 1)
            await backend.elapse(6.0)
    assert await one.ledger.key_holder("k") is None
    assert await other.claim(1, "k") == KeyHolder(other.txid(1), KeyState.RUNNING)
    assert await one.commit(1, "k", b"late") is ABORT
    assert await other.commit(1, "k", b"r") is COMMIT
    if end == "floor":
        with pytest.raises(SessionLost):
            await one.claim(1, "another")


async def test_a_key_is_dropped_after_the_retention_and_not_earlier(backend: Backend, one: Client) -> None:
    """Keys would fill the memory of nodes; or a repetition within the retention would run again."""
    await one.claim(1, "k")
    await one.commit(1, "k", b"r")
    await one.ledger.finish([one.txid(1)])
    await one.ledger.close_session(one.session)
    await backend.elapse(backend.retention_s / 2)
    later = await Client.opened(backend.ledger)
    await later.claim(1, "later")
    await later.commit(1, "later", b"s")
    await later.ledger.finish([later.txid(1)])
    assert await backend.ledger.key_holder("k") == KeyHolder(one.txid(1), KeyState.COMMITTED, b"r")
    await backend.elapse(backend.retention_s / 2 + TIME_STEP_S_MAX)
    assert await backend.ledger.key_holder("k") is None
    assert await backend.ledger.key_holder("later") is not None
    again = await Client.opened(backend.ledger)
    assert (await again.claim(1, "k")).txid == again.txid(1)


@pytest.mark.parametrize("since_s", [TIME_STEP_S - 1, 7200.0])
async def test_a_key_is_kept_for_the_retention_from_its_commit_on(tmp_path: Path, since_s: float) -> None:
    """Broken if a key counts from the last time that ledger time was advanced, a minute before its commit, or
    hours if the process was stopped meanwhile: a repetition would run again at once."""
    backend = Sqlite(tmp_path)
    await backend.open()
    try:
        one = await Client.opened(backend.ledger)
        await one.claim(1, "k")
        backend.now_s += since_s
        await one.ledger.keep_alive(one.session, 1)
        await one.commit(1, "k", b"r")
        await backend.elapse(backend.retention_s - 1)
        assert await backend.ledger.key_holder("k") == KeyHolder(one.txid(1), KeyState.COMMITTED, b"r")
        await backend.elapse(2 * TIME_STEP_S_MAX)
        assert await backend.ledger.key_holder("k") is None
    finally:
        await backend.close()


async def test_a_key_alone_can_be_committed(one: Client) -> None:
    """A transaction without a write would leave no result, and run again."""
    await one.claim(1, "k")
    assert await one.commit(1, "k", b"r", ()) is COMMIT
    assert (await one.ledger.outcomes([one.txid(1)]))[one.txid(1)] is Verdict.COMMITTED
    await one.ledger.finish([one.txid(1)])
    assert not await one.ledger.unfinished()


async def test_a_key_alone_leaves_nothing_to_finish(one: Client) -> None:
    """A ledger without a recovery would keep the session of a transaction without branches for ever."""
    await one.claim(1, "k")
    assert await one.commit(1, "k", b"r", ()) is COMMIT
    assert await one.commit(2, "another", b"r", ()) is ABORT  # without a claim
    assert not await one.ledger.unfinished()


async def test_one_transaction_has_one_key(one: Client) -> None:
    """COMMIT records one key: the other one would stay claimed, and be free without an abort."""
    await one.claim(1, "k")
    with pytest.raises(UsageError):
        await one.claim(1, "another")
    assert await one.ledger.key_holder("another") is None


async def test_only_the_coordinator_of_a_transaction_uses_its_key(one: Client, other: Client) -> None:
    """Another client of the ledger could commit, or abort, a transaction by its number."""
    await one.claim(1, "k")
    for proof in ("", other.proof(1, "k"), one.proof(1, "x"), one.proof(2, "k"), "ü"):
        with pytest.raises(Impostor):
            await one.ledger.claim_key(one.txid(1), "k", proof)
        with pytest.raises(Impostor):
            await one.ledger.commit_key(one.txid(1), "k", proof, b"", ())
        with pytest.raises(Impostor):
            await one.ledger.free_key(one.txid(1), "k", proof)
    with pytest.raises(Impostor):
        await one.ledger.commit_key(
            one.txid(1), "k", one.proof(1, "k"), b"", [BranchRecord(1, "orders", tag="0" * 20)]
        )
    assert await one.commit(1, "k", b"r") is COMMIT


@pytest.mark.parametrize("key", ["", "x" * (KEY_CHARACTERS_MAX + 1), "a\0b", "a\nb", "a\x7f"])
async def test_a_key_out_of_bounds_is_refused(one: Client, key: str) -> None:
    """It would stop the ledger of everybody, or not be the same text on each backend."""
    with pytest.raises(UsageError):
        await one.claim(1, key)
    with pytest.raises(UsageError):
        await one.ledger.key_holder(key)


async def test_bounds_are_within_what_is_accepted(one: Client) -> None:
    """Broken if a key or a result that the documentation promises is refused."""
    key = "ключ €" + "x" * (KEY_CHARACTERS_MAX - 6)
    await one.claim(1, key)
    with pytest.raises(UsageError):
        await one.commit(1, key, bytes(RESULT_BYTES_MAX + 1))
    result = bytes(range(256)) * (RESULT_BYTES_MAX // 256)
    assert await one.commit(1, key, result) is COMMIT
    assert await one.ledger.key_holder(key) == KeyHolder(one.txid(1), KeyState.COMMITTED, result)


def test_keys_are_the_same_after_a_snapshot() -> None:
    """Nodes that began from a snapshot would answer otherwise than the others."""
    keys = Keys()
    first, second, third = (TxId(1, "n" * 16, seq) for seq in (1, 2, 3))
    for key, txid in (("b", first), ("a", second), ("c", third)):
        keys.claim(key, txid)
    keys.committed(second, b"r", 5)
    stored = msgspec.msgpack.encode(keys.stored())
    loaded = Keys.loaded(msgspec.msgpack.decode(stored, type=type(keys.stored())))
    assert loaded == keys
    assert list(loaded.kept.values()) == [KeptKey("a", second, b"r", 5)]
    loaded.free(first)
    assert loaded.key_of(first) is None
    assert list(loaded.claimed) == ["c"]


async def test_a_key_is_lost_when_the_ledger_is_set_back(backend: Backend) -> None:
    """Its transaction may have committed after the backup: the key must not be free, nor run for ever."""
    one = await Client.opened(backend.ledger)
    await one.claim(1, "k")
    await one.claim(2, "committed")
    assert await one.commit(2, "committed", b"r") is COMMIT
    await one.ledger.finish([one.txid(2)])
    await _set_back(backend)
    later = await Client.opened(backend.ledger)
    assert await later.claim(1, "k") == KeyHolder(one.txid(1), KeyState.LOST)
    assert await later.claim(1, "committed") == KeyHolder(one.txid(2), KeyState.COMMITTED, b"r")
    with pytest.raises(OutcomeUnknown):
        await one.commit(1, "k", b"r")
    with pytest.raises(OutcomeUnknown):
        await one.free(1, "k")
    await backend.elapse(backend.retention_s + TIME_STEP_S_MAX)
    assert await backend.ledger.key_holder("k") is None


async def _set_back(backend: Backend) -> None:
    """A right tag of a session that was never issued proves that records were lost."""
    ledger = backend.ledger
    number, nonce = 1_000_000, "0123456789abcdef"
    gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, TxId(number, nonce, 1), 1, "orders")
    key = Names(ledger.ledger_id, backend.secret()).key(number, nonce)
    await ledger.outcomes([gid.tagged(key)])
