"""The ledger in etcd against the model that the state machine is held against, while details are deleted."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.ledger.test_machine_properties import LedgerAgainstModel
from tests.coordinator.ledger.test_postgres_model import Rows, Stage
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger import commands as c
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.contract import Session
from undoubt.coordinator.ledger.etcd import ledger as ledger_module
from undoubt.coordinator.ledger.etcd import maintenance as upkeep
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.keyspace import Era, decode, encode
from undoubt.coordinator.ledger.etcd.ledger import EtcdLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import TxId

FOR_EVER_S = 1e6


class EtcdStage(Stage):
    """A prefix and a ledger for each example, in one loop."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self._cluster = cluster

    @contextlib.asynccontextmanager
    async def _fresh(self) -> AsyncIterator[Signing]:
        url = f"{self._cluster.url}/model-{secrets.token_hex(4)}"
        found = LedgerSettings(url=url, history_s=0.0, request_timeout_s=30.0)
        await maintenance.init(found)
        opened = await EtcdLedger.open(found, clock=lambda: 0.0)
        await opened.upkeep.stop()
        yield Signing(opened)
        await opened.close()

    def empty(self) -> None:
        self.run(self._stack.aclose())
        self.ledger = self.run(self._stack.enter_async_context(self._fresh()))


class Keys(Rows):
    """What the machine's tests ask of a machine, asked of the ledger."""

    def apply(self, command: c.Command) -> object:
        """As coordinators do, repeated until it is answered."""
        while isinstance(answer := super().apply(command), LedgerUnavailable):
            pass
        return answer

    async def _applied(self, command: c.Command) -> object:
        ledger = self._ledger
        match command:
            case c.ExpireSession():
                await self._revoke(ledger.store.keys.all("lease", command.session))
                await ledger.upkeep.note_ends()
                return None
            case c.Restore():
                keys = ledger.store.keys
                era = decode((await ledger.store.read([keys.era]))[keys.era] or b"", Era)
                elsewhere = encode(msgspec.structs.replace(era, cluster_id=era.cluster_id + 1))
                put = messages.put(keys.era, elsewhere)
                await ledger.client.transact(messages.EtcdTransaction(success=[put]))
                restored = await ledger.info()
                await self._revoke(keys.all("lease"))
                return restored.incarnation
            case _:
                return await super()._applied(command)

    async def _revoke(self, prefix: bytes) -> None:
        """Revoke the leases of the sessions whose keys begin with ``prefix``."""
        for kv in await self._ledger.store.every(prefix):
            await self._ledger.client.revoke(kv.lease)

    async def _opened(self, command: c.OpenSession) -> Session:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ledger_module, "new_nonce", lambda: command.nonce)
            return await self._ledger.open_session(command.name, FOR_EVER_S)

    def summarize(self) -> None:
        self._stage.run(self._ledger.upkeep.summarize(most=0))


class EtcdAgainstModel(LedgerAgainstModel):
    def __init__(self, stage: EtcdStage) -> None:
        super().__init__()
        stage.empty()
        self.machine: Any = Keys(stage)

    @rule()
    def restart(self) -> None:
        """Details are deleted wherever they may be."""
        self.machine.summarize()

    @invariant()
    def verdicts_agree(self) -> None:
        txids = [
            TxId(number, nonce, seq)
            for number, known in self.model.sessions.items()
            for nonce in (known.nonce, "e" * 16)
            for seq in range(1, 8)
        ]
        self.machine.look_up(txids)
        super().verdicts_agree()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_ledger_in_etcd_against_the_model(etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a sequence of commands exists after which keys tell something else than the rules say."""
    monkeypatch.setattr(upkeep, "KEPT_LONGER_S", 0.0)
    stage = EtcdStage(etcd)

    class OnStage(EtcdAgainstModel):
        def __init__(self) -> None:
            super().__init__(stage)

    try:
        run_state_machine_as_test(
            OnStage,
            settings=settings(
                max_examples=8,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        stage.close()
