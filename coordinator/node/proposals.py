"""Keeps the callers that wait for an entry of the log: for the result of a command, or for a change of the
members.

All commands that are proposed in one turn of the event loop become one entry. An entry that this node
appended is committed if an entry with its index *and its term* is applied; if the term is another one,
another leader's entry took its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from undoubt.coordinator.errors import ClusterRefused
from undoubt.coordinator.ledger.commands import Command, since
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.fsm import Agree, LogCommand, NodeStateMachine, encode_batch, encode_command
from undoubt.coordinator.node.read_index import ReadQueue
from undoubt.coordinator.node.versions import Agreement
from undoubt.coordinator.raft import ConfigChange, Entry, NotLeader, ProposalRefused, Raft, Refusal
from undoubt.coordinator.rpc.client import into
from undoubt.coordinator.wire import VERSIONS
from undoubt.participants.errors import UsageError

BATCH_COMMANDS_MAX = 1_000
"""The limit for the commands in one entry."""
ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""The limit for the size of an entry: an entry that fits into no frame would stop one leader after
another."""
BATCH_BYTES = 5
"""The maximum size of the header that msgpack writes before a batch."""

ResultCallback = Callable[[object], None]
"""Called with a command's result once the command is durable on a majority and applied on this node; an error
is a result too."""


class Proposals:
    """Makes entries of commands, and answers their callers. ``wake`` makes the driver call
    :meth:`propose_waiting` in the next turn of the event loop."""

    def __init__(
        self,
        raft: Raft,
        replicated: NodeStateMachine,
        agreement: Agreement,
        reads: ReadQueue,
        wake: Callable[[], None],
    ) -> None:
        self.led_term = 0
        """The term in which this node leads, as last given to :meth:`follow`; 0 if it does not lead."""
        self._raft = raft
        self._replicated = replicated
        self._agreement = agreement
        self._reads = reads
        self._wake = wake
        self._waiting: list[tuple[msgspec.Raw, ResultCallback]] = []
        """Encoded commands that are in no entry yet, with their callers."""
        self._proposed: dict[int, tuple[int, Sequence[ResultCallback]]] = {}
        """For each index of a proposed entry: its term, and the waiting callers. Only while this node
        leads."""
        self._settling: list[ResultCallback] = []
        """Callers that wait until the next change of the configuration is applied, while this node leads."""
        self._stopped: NodeStopped | None = None

    # Calls of waiting callers.

    def propose(self, command: Command, answer: ResultCallback) -> None:
        """Propose ``command``, in one entry with all commands of this turn, and call ``answer`` with its
        result."""
        if self._stopped is not None:
            answer(self._stopped)
        elif self._replicated.version < VERSIONS.highest and since(command) > self._replicated.version:
            self._propose_if_known(command, answer)
        else:
            self._queue(command, answer)

    def agree_on(self, version: int) -> None:
        """Propose that the log may contain commands of ``version`` from then on."""
        self._queue(Agree(version), self._note_version)

    def _note_version(self, result: object) -> None:
        if isinstance(result, Exception):
            self._agreement.proposed = 0  # otherwise it would not be proposed again while this node leads

    def _queue(self, command: LogCommand, answer: ResultCallback) -> None:
        """Queue ``command``. Each command is encoded separately, so that a command that cannot be encoded
        fails only its own caller."""
        try:
            encoded = encode_command(command)
        except UsageError as error:
            answer(error)
            return
        if len(encoded) > ENTRY_BYTES_MAX - BATCH_BYTES:
            answer(_too_large(len(encoded)))
            return
        self._waiting.append((encoded, answer))
        self._wake()

    def _propose_if_known(self, command: Command, answer: ResultCallback) -> None:
        """Propose ``command`` if its version is agreed on; otherwise answer why not. Only a confirmed leader
        that is up to date can decide that a command is too new for the log."""

        def up_to_date(reading: asyncio.Future[None]) -> None:
            if reading.cancelled():  # the loop is ending
                return
            if (error := reading.exception()) is not None:
                answer(error)
            elif since(command) > self._replicated.version:
                answer(self._agreement.held_back(since(command)))
            else:
                self.propose(command, answer)

        self._reads.ask(asyncio.get_running_loop()).add_done_callback(up_to_date)
        self._wake()

    async def reconfigure(self, change: ConfigChange) -> None:
        """Return once ``change`` is committed and the configuration is no longer joint. Raises
        ``ConfigRefused``, ``NotLeading``, ``NodeStopped``."""
        if self._stopped is not None:
            raise self._stopped
        try:
            entry = self._raft.propose_config(change)
        except NotLeader as error:
            raise NotLeading(error.leader) from None
        except ProposalRefused as error:
            raise self._takes_nothing(error) from None
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._proposed[entry.index] = (entry.term, [into(applied)])
        self._wake()
        await applied
        await self.settled()

    async def settled(self) -> None:
        """Return once no change of the configuration is unfinished. Raises ``NotLeading``,
        ``NodeStopped``."""
        while self._raft.leads and self._raft.changing:
            applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settling.append(into(applied))
            await applied
        if not self._raft.leads:
            raise NotLeading(self._raft.leader)

    # Calls of the driver.

    def propose_waiting(self) -> None:
        """Give all waiting commands to the core, in as few entries as possible."""
        most = BATCH_COMMANDS_MAX
        while self._waiting:
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            answers = [answer for _, answer in batch]
            data = encode_batch([command for command, _ in batch])
            if len(data) > ENTRY_BYTES_MAX:
                most = len(batch) // 2  # a single command fits: its size was checked before it was queued
                self._waiting = [*batch, *self._waiting]
                continue
            try:
                entry = self._raft.propose(data)
            except NotLeader as error:
                answer_all(answers, NotLeading(error.leader))
            except ProposalRefused as error:
                if error.reason is Refusal.DISK_FULL:
                    answer_all(answers, self._takes_nothing(error))
                    continue
                # The commands wait here until fewer bytes are uncommitted, or another node leads.
                self._waiting = [*batch, *self._waiting]
                return
            else:
                self._proposed[entry.index] = (entry.term, answers)

    def _takes_nothing(self, error: ProposalRefused) -> NotLeading:
        return NotLeading(0, f"node {self._raft.node} takes no entries now: {error}")

    def applied(self, entry: Entry, results: Sequence[object]) -> None:
        """Answer the callers of ``entry``, which was applied with ``results``, one for each command."""
        term, answers = self._proposed.pop(entry.index, (0, ()))
        if term == entry.term:
            for answer, result in zip(answers, results, strict=True):
                answer(result)
        elif answers:
            answer_all(answers, NotLeading(self._raft.leader, "another leader's entry took its place"))

    def reconfigured(self) -> None:
        """Answer the callers that wait for a change of the configuration, which was applied."""
        settling, self._settling = self._settling, []
        answer_all(settling, None)

    def follow(self, led_term: int) -> None:
        """Note that this node leads in term ``led_term`` from now on; 0: it does not lead. Callers that wait
        for an entry of an earlier term are answered with ``NotLeading``, since this node may never learn
        whether the entry is committed."""
        self.led_term = led_term
        proposed, self._proposed = self._proposed, {}
        settling, self._settling = self._settling, []
        for answers in [*(answers for _, answers in proposed.values()), settling]:
            answer_all(answers, NotLeading(self._raft.leader, f"node {self._raft.node} ceased to lead"))

    def stop(self, error: NodeStopped) -> None:
        """Answer all callers with ``error``, and propose nothing from now on."""
        self._stopped = error
        waiting, self._waiting = self._waiting, []
        proposed, self._proposed = self._proposed, {}
        settling, self._settling = self._settling, []
        answer_all([answer for _, answer in waiting], error)
        for answers in [*(answers for _, answers in proposed.values()), settling]:
            answer_all(answers, error)


def answer_all(answers: Sequence[ResultCallback], result: object) -> None:
    for answer in answers:
        answer(result)


def _too_large(size: int) -> ClusterRefused:
    return ClusterRefused(
        f"a command of {size} bytes cannot be recorded, the maximum is {ENTRY_BYTES_MAX}: use fewer branches,"
        " or shorter texts"
    )
