"""The calls of the contract about keys, over a state machine in this process."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undoubt.coordinator.errors import Impostor
from undoubt.coordinator.ledger.commands import (
    ClaimKey,
    Command,
    CommitKey,
    FreeKey,
    check_command,
    check_key,
)
from undoubt.coordinator.ledger.keys import KeyHolder
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.contract import BranchRecord
    from undoubt.coordinator.ledger.machine import Machine
    from undoubt.coordinator.ledger.rules import Names


class KeyedLedger(abc.ABC):
    """The part of :class:`~undoubt.coordinator.ledger.state_machine_ledger.StateMachineLedger` that is about
    keys."""

    machine: Machine

    @property
    @abc.abstractmethod
    def names(self) -> Names: ...

    @abc.abstractmethod
    async def _up_to_date(self) -> None: ...

    @abc.abstractmethod
    async def _run_checked(self, command: Command) -> Any: ...

    @abc.abstractmethod
    def _now_s(self) -> float:
        """The wall clock, in seconds since 1970."""

    async def claim_key(self, txid: TxId, key: str, proof: str) -> KeyHolder:
        command = ClaimKey(txid, key)
        check_command(command)
        self._check_proof(txid, key, proof)
        await self._up_to_date()
        known = self.machine.key_holder(key)
        if known is not None and known.txid != txid:
            return known  # without a command: a caller that waits for the key may ask often
        holder: KeyHolder = await self._run_checked(command)
        return holder

    async def key_holder(self, key: str) -> KeyHolder | None:
        check_key(key)
        await self._up_to_date()
        return self.machine.key_holder(key)

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        command = CommitKey(txid, key, result, tuple(branches), self._now_s())
        check_command(command)
        self._check_proof(txid, key, proof)
        self.names.check(txid, Protocol.TWO_PHASE, Decision.COMMIT, branches, tagged=bool(branches))
        decision: Decision = await self._run_checked(command)
        return decision

    async def free_key(self, txid: TxId, key: str, proof: str) -> Decision:
        command = FreeKey(txid, key)
        check_command(command)
        self._check_proof(txid, key, proof)
        decision: Decision = await self._run_checked(command)
        return decision

    def _check_proof(self, txid: TxId, key: str, proof: str) -> None:
        if not self.names.proves_key(txid, key, proof):
            raise Impostor(f"nothing proves that transaction {txid} may use a key: its proof is wrong")
