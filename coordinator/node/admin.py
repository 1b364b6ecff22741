"""Executes an operator's calls: status, change of members, change of the leader, snapshot, backup.

Calls may be repeated: a change that is in force already is answered as done, so a call that was interrupted
by a change of leaders is repeated at the next leader. An impossible change raises ``ClusterRefused``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from undoubt.coordinator.errors import ClusterNotReady, ClusterRefused, UnknownNode
from undoubt.coordinator.ledger.cluster.messages import (
    BackupCall,
    BackupPiece,
    ChangeMembersCall,
    HeldCall,
    MemberChange,
    NodeStatus,
    OperatorCall,
    SnapshotCall,
    StatusCall,
    TransferCall,
)
from undoubt.coordinator.node.acceptor_retirement import AcceptorRetirement
from undoubt.coordinator.node.errors import NotLeading
from undoubt.coordinator.node.fsm import MemberContext
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.storage.contract import Snapshot
from undoubt.coordinator.quorum import majority_size
from undoubt.coordinator.raft import Change, ChangeKind, ConfigChange, ConfigRefused, ConfigTransition
from undoubt.coordinator.wire import Address

LOOK_S = 0.02
"""The pause between two checks whether a node answers, or another node leads."""
PATIENCE_S = 0.6
"""How long a call may wait for other nodes. Then it raises ``ClusterNotReady`` with the reason, and the
client repeats the call."""
NUMBER_GAP_MAX = 1_000
"""How far the number of a node that is added may be above the highest so far: a mistyped number would leave
none for later nodes."""
BEHIND_ENTRIES_MAX = 1_000
"""A node that is behind by at most this many entries may become a voter: it receives the rest within
moments."""
PIECE_BYTES = 1024 * 1024
IMAGES_MAX = 2
IMAGE_IDLE_S = 60.0
"""After this time without a call a backup is dropped; a client asks for the next piece immediately."""


class NodeAdmin:
    """Executes an operator's calls on one node. ``disks`` returns the disks that this node knows, including
    its own, by number."""

    def __init__(
        self,
        replica: Replica,
        status: Callable[[], NodeStatus],
        acceptors: AcceptorRetirement,
        disks: Callable[[], Mapping[int, str]],
    ) -> None:
        self.status = status
        self.backups = Backups()
        self._acceptors = acceptors
        self._disks = disks
        self._replica = replica
        self._raft = replica.raft
        self._changing = asyncio.Lock()
        """Held while the members are changed, so that the results of the checks stay valid until the change
        is done."""

    async def perform(self, call: OperatorCall, backup: BackupTransfer) -> object:
        """Execute ``call`` and return the answer, as in ``NODE_REPLY_TYPES``. ``backup`` is that of the
        connection. Raises ``NotLeading``, ``NodeStopped``, ``ClusterRefused``."""
        match call:
            case StatusCall():
                return self.status()
            case ChangeMembersCall():
                async with self._changing:
                    return await self._change(call)
            case TransferCall():
                return await self._transfer(call.to, call.leaves)
            case SnapshotCall():
                return await self._snapshot()
            case HeldCall(sessions=sessions, after=after):
                return self._replica.acceptors.held(sessions, after)
            case BackupCall():
                return await backup.piece(self._replica, call.offset)

    # Members.

    async def _change(self, call: ChangeMembersCall) -> NodeStatus:
        await self._replica.proposals.settled()
        await self._replica.read()
        since = self._raft.heartbeat_round  # a node that answers this round, or a later round, is alive now
        changes = [change for wish in call.changes if (change := self._missing(wish)) is not None]
        promoted = {change.node for change in changes if change.kind is ChangeKind.ADD_VOTER}
        await self._until_caught_up(promoted, since)
        await self._check_survivors(changes, since)
        gone = {change.node for change in changes if change.kind is ChangeKind.REMOVE}
        self._acceptors.ask_to_move(gone)
        await self._within(lambda: not self._acceptors.bound(gone, open_=True))
        await self._acceptors.settle(gone)  # most of it before the lock is taken
        async with self._acceptors.no_new_ones:
            await self._release(gone)
            if self._raft.node in gone:
                await self._leave_first(gone, since)
            self._check_versions(changes, call.changes)
            if changes:
                await self._reconfigure(changes, joint=bool(promoted))
        return self.status()

    async def _reconfigure(self, changes: Sequence[Change], *, joint: bool) -> None:
        voters = self._raft.configuration.incoming
        joint = joint or any(change.node in voters for change in changes)
        transition = ConfigTransition.JOINT if joint else ConfigTransition.AUTO
        if any(change.kind is ChangeKind.ADD_LEARNER for change in changes):
            changes = [*changes, *self._introductions()]
        try:
            await self._replica.proposals.reconfigure(ConfigChange(tuple(changes), transition))
        except ConfigRefused as error:
            raise ClusterRefused(f"the members cannot be changed: {error}") from None

    def _introductions(self) -> list[Change]:
        """Return changes that add the disks of the first members. A joining node does not know these disks;
        without them it could not recognize a member that was made again after its disk was lost."""
        replicated, met = self._replica.replicated, self._disks()
        return [
            _change(ChangeKind.UPDATE, node, replicated.members[node], met[node])
            for node in sorted(replicated.members.keys() & met.keys() - replicated.disks.keys())
        ]

    def _check_versions(self, changes: Iterable[Change], wishes: Iterable[MemberChange]) -> None:
        """Check that each new member supports the agreed version, and the version that is being agreed on.
        Raises ``ClusterRefused``."""
        floor, added = self._replica.agreement.floor, {change.node for change in changes}
        for wish in wishes:
            if wish.kind == "add" and wish.node in added and wish.version < floor:
                raise ClusterRefused(
                    f"node {wish.node} supports version {wish.version} at most, and the cluster has agreed on"
                    f" {floor}: add it with a newer release of undoubt, and without a lower node.version_max"
                )

    async def _leave_first(self, gone: set[int], since: int) -> None:
        """Transfer leadership before this leader is removed, to a voter that stays and answers, so that no
        election timeout has to pass; the client then repeats the call at the new leader. If the transfer
        fails, this leader is removed as in thesis §4.2.2."""
        staying = sorted(self._raft.configuration.incoming - gone)
        answering = [node for node in staying if self._raft.answered(node, since)]
        best = max(answering, key=self._raft.match, default=0)
        if best and self._raft.match(best):
            self._raft.transfer(best)
            self._replica.turns.wake()
            await self._within(lambda: False)  # raises NotLeading as soon as that is so

    def _missing(self, wish: MemberChange) -> Change | None:
        """Return the change for ``wish``; None if it is in force already. Raises ``ClusterRefused``,
        including ``UnknownNode``."""
        configuration, replicated = self._raft.configuration, self._replica.replicated
        node = wish.node
        member = node in configuration.incoming or node in configuration.learners
        if wish.kind == "add":
            if member and replicated.disks.get(node) == wish.disk:
                return None
            if node <= replicated.highest:
                raise ClusterRefused(
                    f"number {node} is or was another node's, and a number is never used again: the next is"
                    f" {replicated.highest + 1}"
                )
            if node > replicated.highest + NUMBER_GAP_MAX:
                raise ClusterRefused(
                    f"number {node} would use up all numbers below it, because none is used again: the next"
                    f" is {replicated.highest + 1}, and {replicated.highest + NUMBER_GAP_MAX} the highest"
                    " that can be added now"
                )
            _check_address(wish.address)
            return _change(ChangeKind.ADD_LEARNER, node, wish.address, wish.disk)
        if wish.kind == "remove":
            if not member and not replicated.removed(node):
                raise UnknownNode(f"node {node} is not a member of the cluster, and never was")
            return Change(ChangeKind.REMOVE, node) if member else None
        if not member:
            raise UnknownNode(f"node {node} is not a member: it joins with `undoubt cluster add`")
        return Change(ChangeKind.ADD_VOTER, node) if node in configuration.learners else None

    async def _until_caught_up(self, nodes: set[int], since: int) -> None:
        """Wait until ``nodes`` have caught up. A voter without entries would count for the size of every
        majority without contributing to one. Raises ``ClusterNotReady``."""

        def late() -> list[int]:
            return [node for node in sorted(nodes) if self._behind(node, since) > BEHIND_ENTRIES_MAX]

        if not await self._within(lambda: not late()):
            listed = _listed(late())
            raise ClusterNotReady(f"not caught up: node {listed}. Does it run? Promote it once it has")

    def _behind(self, node: int, since: int) -> int:
        match = self._raft.match(node)
        if not match or not self._raft.answered(node, since):
            return BEHIND_ENTRIES_MAX + 1  # a voter with an empty log grants no vote
        return self._raft.last_index - match

    async def _check_survivors(self, changes: Iterable[Change], since: int) -> None:
        """Check that a majority of the remaining voters answers: a cluster that has lost its majority cannot
        undo the change. Raises ``ClusterRefused`` or ``ClusterNotReady``."""
        voters = set(self._raft.configuration.incoming)
        for change in changes:
            if change.kind is ChangeKind.REMOVE:
                voters.discard(change.node)
            elif change.kind is ChangeKind.ADD_VOTER:
                voters.add(change.node)
        if not voters:
            raise ClusterRefused("no voter would be left")

        def silent() -> list[int]:
            return [node for node in sorted(voters) if not self._raft.answered(node, since)]

        def enough() -> bool:
            return len(voters) - len(silent()) >= majority_size(voters)

        if not await self._within(enough):
            raise ClusterNotReady(
                f"no majority of the voters that would be left ({_listed(voters)}) answers; silent:"
                f" {_listed(silent())}. Start them, or add others first"
            )

    async def _release(self, gone: set[int]) -> None:
        """Check that no session needs the nodes ``gone``. Transactions of Paxos Commit are decided by the
        voters at the time when their session was opened: a quorum of them must stay while a transaction of
        the session may be undecided. Raises ``ClusterNotReady``."""
        for book in self._acceptors.bound(gone, open_=True):
            raise ClusterNotReady(
                f"session {book.id} ({book.name}) is bound to the nodes {_listed(book.acceptors)}, of which"
                " too few would be left to end its transactions. Its coordinator was asked to move: it does"
                " so within a third of coordinator.session_ttl_s, and once what it has begun there has ended."
                " Try again then"
            )
        await self._acceptors.settle(gone)

    # The rest.

    async def _transfer(self, to: int, leaves: int) -> NodeStatus:
        await self._replica.read()
        raft = self._raft
        if raft.node != leaves and not to:
            return self.status()
        successor = to or raft.successor
        if not successor:
            raise ClusterRefused("there is no other voter that could lead")
        if successor == raft.node:
            return self.status()
        if successor not in self._replica.replicated.addresses:
            raise UnknownNode(f"node {successor} is not a member of the cluster")
        try:
            raft.transfer(successor)
        except ConfigRefused as error:
            raise ClusterRefused(str(error)) from None
        self._replica.turns.wake()
        if not await self._within(lambda: raft.leader not in {0, raft.node}, led=False):
            raise ClusterNotReady(f"node {successor} did not take over: does it run, and has it caught up?")
        return self.status()

    async def _snapshot(self) -> int:
        if not self._raft.applied_index:
            raise ClusterRefused(f"node {self._raft.node} has joined, and has nothing yet")
        return await self._replica.snapshot()

    async def _within(self, holds: Callable[[], bool], *, led: bool = True) -> bool:
        """Wait until ``holds`` returns True, for at most ``PATIENCE_S``; return whether it did. ``led``:
        raise ``NotLeading`` once this node does not lead."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        while True:
            if led and not self._raft.leads:
                raise NotLeading(self._raft.leader)
            if holds():
                return True
            if loop.time() >= end:
                return False
            await asyncio.sleep(LOOK_S)


def _check_address(text: str) -> None:
    """Check an address before it is in the log, after which every member connects to it. Raises
    ``ClusterRefused``."""
    try:
        Address.parse(text)
    except ValueError as error:
        raise ClusterRefused(f"no node can be reached there: {error}") from None


def _change(kind: ChangeKind, node: int, address: str, disk: str) -> Change:
    return Change(kind, node, msgspec.msgpack.encode(MemberContext(address, disk)))


def _listed(nodes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(nodes)))


class Backups:
    """The images of running backups. An image is as large as the ledger, so their number is limited for all
    connections together, and an image is dropped if its next piece is not asked for in time."""

    def __init__(self) -> None:
        self._held: list[BackupTransfer] = []

    def begin(self) -> BackupTransfer:
        """Return the backup of one connection, without an image yet."""
        return BackupTransfer(self)

    def hold(self, backup: BackupTransfer) -> None:
        """Note that ``backup`` was just used. If there are too many images, the one that was not used for the
        longest time is dropped."""
        self.let_go(backup)
        self._held.append(backup)
        while len(self._held) > IMAGES_MAX:
            self._held[0].end()

    def let_go(self, backup: BackupTransfer) -> None:
        self._held = [each for each in self._held if each is not backup]


class BackupTransfer:
    """The backup of one connection."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups
        self._image: Snapshot | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def piece(self, replica: Replica, offset: int) -> BackupPiece:
        """Return the piece at ``offset``; at 0 a new image is made. Raises ``NotLeading``,
        ``ClusterRefused``."""
        if offset == 0:
            await replica.read()
            self._image = replica.snapshots.image()
        if self._image is None or not 0 <= offset <= len(self._image.image):
            raise ClusterRefused("no backup is running on this connection; begin again")
        meta, image = self._image.meta, self._image.image
        end = min(offset + PIECE_BYTES, len(image))
        self._touched()
        if end == len(image):
            self.end()
        return BackupPiece(meta.index, meta.term, len(image), image[offset:end])

    def _touched(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IMAGE_IDLE_S, self.end)
        self._backups.hold(self)

    def end(self) -> None:
        """Drop the image. May be repeated."""
        self._image = None
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._backups.let_go(self)
