"""Three-phase commit with a coordinator that dies and a network that falls apart, as a scenario.

::

    transaction RULE NAME…      enlisted and prepared in these participants, to be ended by that rule
    precommit NAME…             its coordinator has told these, and nobody else, before it died
    partition NAME… | NAME…     from now on whoever works on one side reaches that side only
    heal                        everybody reaches everybody again
    terminate NAME              whoever finds the branch of NAME runs one round, and finishes what it reaches
    state                       every row and what has become of its branch

Works on any participants: on scripted ones in the tests, on real databases in the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tests.scenarios.story import Play
from undoubt.coordinator.protocols.termination import Round
from undoubt.coordinator.protocols.termination_rules import Move
from undoubt.participants.contract import Decision, Participant
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.three_phase import Charter, Event, StateRow, Termination

LEDGER = "abcdefghij"
NONCE = "0123456789abcdef"
KEY = SessionKey(b"of a scenario")
ORDERS = {Move.COMMIT: Decision.COMMIT, Move.ABORT: Decision.ABORT}


class ThreePhase:
    """One story over ``participants``, whose branches write something."""

    def __init__(self, participants: Mapping[str, Participant], number: int = 1) -> None:
        self._participants = participants
        self._txid = TxId(1, NONCE, number)
        self._gids: dict[str, Gid] = {}
        self._sides: list[set[str]] = []

    async def play(self, command: str, words: list[str]) -> list[str]:
        commands: dict[str, Play] = {
            "transaction": lambda _, words: self._transaction(Termination(words[0]), words[1:]),
            "precommit": lambda _, words: self._precommit(words),
            "partition": lambda _, words: self._partition(words),
            "heal": lambda _, words: self._partition([]),
            "terminate": lambda _, words: self._terminate(words[0]),
            "state": lambda _, words: self._state(),
        }
        return await commands[command](command, words)

    async def _transaction(self, rule: Termination, names: list[str]) -> list[str]:
        for number, name in enumerate(names, 1):
            self._gids[name] = Gid(LEDGER, Protocol.THREE_PHASE, self._txid, number, name).tagged(KEY)
        charter = Charter(tuple(self._gids[name] for name in names), rule)
        for name in names:
            gid = self._gids[name]
            participant = self._participants[name]
            branch = await participant.begin(gid, timeout_s=60, key=KEY)
            await write(branch.connection, str(self._txid))
            assert await participant.states.enlist(gid, charter, KEY.note(gid))
            await branch.prepare()
            await branch.release()
        return await self._state()

    async def _precommit(self, names: Iterable[str]) -> list[str]:
        for name in names:
            assert await self._participants[name].states.attempt(self._gids[name], 1, Event.TRY_COMMIT)
        return await self._state()

    async def _partition(self, words: list[str]) -> list[str]:
        self._sides = [set(side.split()) for side in " ".join(words).split("|")] if words else []
        return [f"side: {' '.join(sorted(side))}" for side in self._sides]

    async def _terminate(self, name: str) -> list[str]:
        reached = next((side for side in self._sides if name in side), set(self._gids))
        row = await self._participants[name].states.read(self._gids[name])
        assert row is not None

        def find(other: str) -> Participant | None:
            return self._participants[other] if other in reached else None

        ended = await Round(row.charter, find).run()
        order = ORDERS.get(ended.move)
        for other in sorted(reached) if order is not None else []:
            if await self._prepared(other):
                await self._participants[other].settle(self._gids[other], order or Decision.ABORT, None)
        return [f"{ended.move}", *await self._state()]

    async def _state(self) -> list[str]:
        lines = []
        for name, gid in self._gids.items():
            row = await self._participants[name].states.read(gid)
            lines.append(f"{name}: {await self._xact_status(name, row)}")
        return lines

    async def _xact_status(self, name: str, row: StateRow | None) -> str:
        assert row is not None
        told = f"{row.state} elected={row.last_elected} attempt={row.last_attempt}"
        if await self._prepared(name):
            return f"{told} prepared"
        return f"{told} committed" if row.state == "c" else f"{told} rolled back"

    async def _prepared(self, name: str) -> bool:
        return any(branch.gid == self._gids[name] for branch in await self._participants[name].in_doubt())

    async def outcomes(self) -> set[str]:
        """What has become of the branches: ``committed``, ``rolled back``, ``prepared``."""
        lines = await self._state()
        return {
            xact_status
            for xact_status in ("committed", "rolled back", "prepared")
            for line in lines
            if xact_status in line
        }


async def write(connection: object, text: str) -> None:
    """One row, where there is a database behind it; scripted ones write by being asked to prepare."""
    execute: Callable[..., object] | None = getattr(connection, "execute", None)
    if execute is not None:
        await execute("insert into note (text) values ($1)", text)  # type: ignore[misc]
