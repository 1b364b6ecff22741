"""Sound calls of every kind, each of which a real cluster carries out: what is then changed, value by
value."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tests.coordinator.ledger.signing import Signing
from undoubt.coordinator.ledger import agent_calls, calls, key_calls, lock_calls
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.cluster import messages
from undoubt.coordinator.ledger.cluster.acceptors import record_of
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import AcceptorCall
from undoubt.coordinator.ledger.commands import ReceiveState, SealLedger, SettleMove
from undoubt.coordinator.ledger.contract import Act, BranchRecord, Heuristic, Session
from undoubt.coordinator.ledger.ledger_call import IDS_MAX
from undoubt.coordinator.ledger.locks import LockRequest
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase
from undoubt.coordinator.paxos import FIRST, Ask, Ballot, BranchInstance, Phase1a, Phase2a, Value
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Claim, Decision, Settled
from undoubt.participants.ids import Gid, Protocol, TxId, new_nonce

BRANCHES = (
    BranchRecord(1, "orders", 2**40, 2**62, "00000001"),
    BranchRecord(2, "payments", 2**40, 2**62, "00000001"),
)
LONG = IDS_MAX + 1
LONG_IN_TURN = 1_001
"""How long a list is made where the longest one would only be slow."""

ACT = Act("f" * 16, "cluster add", "node 99", 1.0, "poison@host", "a note", "done", "operator")

Target = tuple[msgspec.Struct, int]
"""A call, and how long its lists are made."""


class Targets:
    """Of one cluster. Made by :meth:`of`."""

    def __init__(self, ledger: Signing) -> None:
        self._ledger = ledger
        self._seq = 0
        self._sessions: dict[str, Session] = {}

    @classmethod
    async def of(cls, ledger: Signing, *, nodes: bool = True) -> Targets:
        """``nodes``: it is a cluster's; else a file's, whose owner knows nothing of nodes and acceptors."""
        made = cls(ledger)
        for use in ("tagged", "closed", "kept", "old"):
            made._sessions[use] = await ledger.open_session(f"poison, {use}", 600.0)
        raw: ClusterLedger = ledger.ledger  # type: ignore[assignment]
        for use, bind in (("untagged", False), ("bound", True)):
            # As a client of version 0.1.0 opens one: its names carry no tags, so no tag refuses what is
            # changed.
            call = calls.OpenSessionCall(f"poison, {use}", 600.0, new_nonce(), bind and nodes)
            made._sessions[use] = await raw._call(call)
        return made

    def all(self) -> Iterator[Target]:
        yield from self.of_ledger()
        yield from ((call, LONG_IN_TURN) for call in (*self._on_nodes(), *self._on_acceptors()))

    def of_ledger(self) -> Iterator[Target]:
        """What every ledger is asked."""
        of_all = (*self._on_sessions(), *self._on_people(), *self._on_transactions())
        yield from ((call, LONG_IN_TURN) for call in of_all)
        ids = (self._txid("old"),)
        gid = self._gid("tagged")
        for call in (
            calls.RecordsCall(ids),
            calls.FinishCall(ids),
            calls.OutcomesCall(ids, Protocol.TWO_PHASE),
            calls.VerdictsCall((gid,)),
            calls.BackendsCall((Claim(gid.txid.session, 1, 1, "12345678"),)),
        ):
            yield call, LONG

    def _txid(self, use: str) -> TxId:
        self._seq += 1
        return self._sessions[use].txid(self._seq)

    def _gid(self, use: str, protocol: Protocol = Protocol.TWO_PHASE) -> Gid:
        return self._ledger.gid(self._txid(use), protocol)

    def _on_sessions(self) -> Iterator[msgspec.Struct]:
        yield calls.OpenSessionCall("name", 10.0, new_nonce(), False, "")
        yield calls.OpenSessionCall("name", 10.0, "", True, 2 * new_nonce())
        agent = AgentBinding("orders", 1, "history")
        yield calls.OpenSessionCall("name", 10.0, "", False, 2 * new_nonce(), agent)
        yield agent_calls.AgentKeysCall((self._txid("old"),))
        yield calls.KeepAliveCall(self._sessions["kept"].public, 1)
        yield calls.CloseSessionCall(self._sessions["closed"].public)
        yield calls.SessionsCall()
        yield calls.VotersCall()

    def _on_transactions(self) -> Iterator[msgspec.Struct]:
        for use, protocol in (
            ("tagged", Protocol.TWO_PHASE),
            ("untagged", Protocol.TWO_PHASE),
            ("untagged", Protocol.THREE_PHASE),
            ("bound", Protocol.PAXOS),
        ):
            txid = self._txid(use)
            tagged = tuple(self._ledger.tagged(txid, BRANCHES, protocol)) if use == "tagged" else BRANCHES
            yield calls.DecideCall(txid, Decision.COMMIT, tagged, protocol)
            yield calls.DecideCall(self._txid(use), Decision.ABORT, BRANCHES[:1], protocol, "a cause")
            yield calls.PrecommitCall(self._txid(use), tagged, protocol)
        yield calls.DoomCall(self._txid("untagged"), "a cause")
        yield calls.DoomedCall(self._txid("untagged"))
        yield from self._on_locks()
        yield from self._on_keys()
        yield from self._signed()

    def _signed(self) -> Iterator[msgspec.Struct]:
        """Numbers at their bounds under the right tag: no tag refuses these either."""
        for seq in (0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
            txid = self._sessions["tagged"].txid(seq)
            yield calls.DecideCall(
                txid,
                Decision.COMMIT,
                tuple(self._ledger.tagged(txid, BRANCHES, Protocol.TWO_PHASE)),
                Protocol.TWO_PHASE,
            )
        for number in (0, -1, 9_999, 10_000, 2**63, 2**64 - 1):
            txid = self._txid("tagged")
            branches = self._ledger.tagged(txid, [BranchRecord(number, "orders")], Protocol.TWO_PHASE)
            yield calls.DecideCall(txid, Decision.COMMIT, tuple(branches), Protocol.TWO_PHASE)

    def _on_locks(self) -> Iterator[msgspec.Struct]:
        session = self._sessions["tagged"]
        held = LockRequest("poison", session.id, session.nonce, 1, False, self._txid("tagged"), 1.0)
        yield lock_calls.LockCall(held, wait=True)
        yield lock_calls.LockCall(msgspec.structs.replace(held, number=2, shared=True), wait=False)
        yield lock_calls.LockEntryCall(held, 0.0)
        yield lock_calls.SessionLocksCall(session.id, session.nonce)
        yield lock_calls.LocksCall("", 10)
        yield lock_calls.RevokeLockCall("poison", 1)
        yield lock_calls.UnlockCall(held)

    def _on_keys(self) -> Iterator[msgspec.Struct]:
        yield key_calls.KeyHolderCall("poison")
        for key in ("claimed", "committed", "freed"):
            txid = self._txid("tagged")
            proof = self._ledger.key_proof(txid, key)
            yield key_calls.ClaimKeyCall(txid, key, proof)
            if key == "committed":
                branches = tuple(self._ledger.tagged(txid, BRANCHES, Protocol.TWO_PHASE))
                yield key_calls.CommitKeyCall(txid, key, proof, b"jtrue", branches)
            if key == "freed":
                yield key_calls.FreeKeyCall(txid, key, proof)

    def _on_people(self) -> Iterator[msgspec.Struct]:
        gid = self._gid("untagged")
        yield calls.RecordHeuristicCall(Heuristic(gid, Settled.HEURISTIC_COMMIT, Decision.ABORT, 1.0, "note"))
        yield calls.ForgetHeuristicCall(gid, new_nonce())
        yield calls.HeuristicsCall(include_forgotten=True)
        yield calls.TransactionCall(self._txid("old"))
        yield calls.TransactionsCall(10, None)
        yield calls.TransactionsCall(10, self._txid("old"))
        yield calls.UnfinishedCall()
        yield calls.InfoCall()
        yield calls.UnfinishedCall(10, self._txid("old"))
        yield calls.RecordActCall(ACT)
        yield calls.ActsCall(10)
        yield calls.BackupFileCall("/nowhere/backup")

    def _on_nodes(self) -> Iterator[msgspec.Struct]:
        yield messages.StatusCall()
        yield messages.ChangeMembersCall((messages.MemberChange("add", 1, "127.0.0.1:1", "disk", 3),))
        yield messages.ChangeMembersCall((messages.MemberChange("promote", 99),), ACT)
        yield messages.TransferCall(99, 99, ACT)
        yield messages.SnapshotCall()
        yield messages.BackupCall(1)
        yield messages.HeldCall((self._sessions["bound"].id,), self._txid("bound"))
        yield messages.MoveCall()
        yield messages.MoveCall(SettleMove("poison", MovePhase.MOVED))
        mark = MoveMark("poison", "sqlite:///elsewhere", 1.0, MovePhase.ARRIVING)
        yield messages.MoveCall(ReceiveState(mark, "abcdefghij", 0, b"poison", "00"))
        # Refused: sessions are open.
        yield messages.MoveCall(SealLedger(mark.into(MovePhase.SEALED)))

    def _on_acceptors(self) -> Iterator[msgspec.Struct]:
        session = self._sessions["bound"]
        acceptors = Joint(frozenset(session.acceptors))
        branches = tuple(BranchInstance(each.number, each.participant) for each in BRANCHES)
        values = tuple(Value(True, msgspec.msgpack.encode([1, 2, "00000001"])) for _ in branches)
        for branch, value in zip(branches, values, strict=True):
            record_of(branch, value)  # the evidence is sound
        yield AcceptorCall(Phase2a(self._txid("bound"), acceptors, FIRST, branches, values))
        yield AcceptorCall(Phase2a(self._txid("bound"), acceptors, Ballot(1, 7), branches, values))
        yield AcceptorCall(Phase1a(self._txid("bound"), acceptors, Ballot(1, 7)))
        yield AcceptorCall(Ask(self._txid("bound"), acceptors))


def removes_a_member(raw: bytes) -> bool:
    """Whether a changed call became one that soundly removes a node, which is no poison."""
    try:
        call = messages.decode_call(msgspec.Raw(raw))
    except (ValueError, RecursionError):
        return False
    return isinstance(call, messages.ChangeMembersCall) and any(
        wish.kind == "remove" and wish.node in {1, 2, 3} for wish in call.changes
    )
