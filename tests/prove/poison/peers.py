"""A member of a cluster that sends the others what no sound member would.

It is a learner, so nothing that it says counts. It does not say in sound words that it leads a later term:
that would be a lie which Raft does not survive, and no damage."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.prove.poison.frames import poisoned
from tests.prove.poison.sender import throw
from undoubt.coordinator.errors import ClusterRefused
from undoubt.coordinator.ledger.cluster.admin import change_members
from undoubt.coordinator.ledger.cluster.messages import MemberChange
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.raft import (
    Append,
    AppendReply,
    Change,
    ChangeKind,
    ConfigChange,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Kind,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    RequestVoteReply,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    decode,
    encode,
)
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Listener,
    PeerIdentity,
    PeerRole,
    WireSettings,
    serve,
)
from undoubt.coordinator.wire.connection import header
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, Hello

DISK = "0123456789abcdef"


class Peer:
    """Made by :meth:`joined`."""

    def __init__(self, cluster: str, number: int) -> None:
        self._number = number
        self._me = PeerIdentity(PeerRole.NODE, cluster, number, disk=DISK)
        self._listener: Listener | None = None
        self._term = 1
        self._commit = 1

    @classmethod
    async def joined(cls, settings: LedgerSettings, cluster: str) -> Peer:
        number = await _free_number(settings)
        peer = cls(cluster, number)
        peer._listener = await serve(Address("127.0.0.1", 0), peer._me, lambda _: _Deaf(), WireSettings())
        address = f"127.0.0.1:{peer._listener.port}"
        await change_members(settings, [MemberChange("add", number, address, DISK, VERSIONS.highest)])
        await peer.look(settings)
        return peer

    async def look(self, settings: LedgerSettings) -> None:
        """Which term it is: what is said in an earlier one is not looked at any further."""
        for one in (await survey(settings)).nodes:
            if one.status is not None:
                self._term = max(self._term, one.status.term)
                self._commit = max(self._commit, one.status.commit_index)

    def frames(self, to: int) -> Iterator[tuple[str, Iterator[bytes]]]:
        """To that node, by the type of what is changed: first the handshake's, then those behind it."""
        said = Hello(self._me.cluster_id, PeerRole.NODE, self._number, "", VERSIONS, 0, "", DISK, 1)
        raws = poisoned(said, long=1_001)
        yield Hello.__name__, (header(raw, HANDSHAKE_VERSION) + raw for raw in raws)
        for message in self._sound(to):
            raws = (raw for raw in poisoned(message, long=1_001) if not self._leads(raw))
            yield type(message).__name__, (header(raw, VERSIONS.highest) + raw for raw in raws)

    def _sound(self, to: int) -> Iterator[Message]:
        head = (to, self._number, self._term)
        change = encode(ConfigChange((Change(ChangeKind.ADD_LEARNER, self._number + 1, b""),)))
        last = self._commit
        yield PreVote(*head, last, 1)
        yield PreVoteReply(*head, granted=True)
        yield RequestVote(*head, last, 1)
        yield RequestVoteReply(*head, granted=True)
        yield Append(*head, last, self._term, (Entry.make(last + 1, self._term, change, Kind.CONFIG),), last)
        yield AppendReply(*head, last)
        yield AppendReply(*head, last, rejected=True, hint_index=last, hint_term=1)
        yield Heartbeat(*head, last, 1)
        yield HeartbeatReply(*head, 0)
        meta = SnapshotMeta(last + 100, self._term, Configuration(frozenset({1, 2, 3})))
        yield SnapshotChunk(*head, meta, 0, b"no image", done=True)
        yield SnapshotReply(*head, last, 1)
        yield TimeoutNow(*head)

    def _leads(self, raw: bytes) -> bool:
        try:
            message = decode(raw)
        except ValueError:
            return False
        claims = isinstance(message, Append | Heartbeat | SnapshotChunk)
        return claims and self._term < message.term <= self._term + 2**33

    async def say(self, address: str, data: bytes) -> bool:
        """Whether the node ends the connection within its time, once it is over on this side."""
        me = self._me if data[4] == VERSIONS.highest else None
        return await throw(Address.parse(address), data, me)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()


async def _free_number(settings: LedgerSettings) -> int:
    """The lowest one that no node has or had, as the refusal of a used one tells it."""
    used = MemberChange("add", 1, "127.0.0.1:1", DISK, VERSIONS.highest)
    try:
        await change_members(settings, [used])
    except ClusterRefused as refused:
        if found := re.search(r"the next is (\d+)", str(refused)):
            return int(found[1])
        raise
    raise RuntimeError("the number of a node that is there was taken again")


class _Deaf:
    """A Receiver."""

    def received(self, payload: bytes) -> None:
        pass

    def lost(self, why: str) -> None:
        pass
