"""What the log drives: the ledger's state machine, the addresses of the nodes, and the version that all of
them have agreed to know.

One entry of the log is a batch of commands, so that what many callers ask for in one turn of the loop costs
one append and one sync. An image is msgpack: format, addresses by node, the machine's own snapshot, the
highest number of a node, disks by node, the agreed version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.commands import FIRST_VERSION, Command, encode, since
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.raft import Change, ChangeKind, Entry, Kind, decode_change
from undoubt.coordinator.wire import VERSIONS, Versions

IMAGE_FORMAT = 1
HASH_INTERVAL_ENTRIES = 8_192
"""All nodes hash their state after each entry whose index is a multiple of it."""
HASHES_KEPT = 4
NEWER = "start it with a newer release of undoubt, and without a lower node.version_max"


class Agree(msgspec.Struct, frozen=True, array_like=True, tag="agree"):
    """Every member has said that it speaks ``version``: from here on the log may hold what came with it."""

    version: int


LogCommand = Command | Agree

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[LogCommand]] = msgspec.msgpack.Decoder(list[LogCommand])


class MemberContext(msgspec.Struct, frozen=True, array_like=True):
    """The context of a change that adds a node, or tells who joins of one that was there before. ``disk`` is
    what :class:`~undoubt.coordinator.node.storage.Identity` has: a number belongs to one disk for ever."""

    address: str
    disk: str


_decode_member = msgspec.msgpack.Decoder(MemberContext).decode


class _Image(msgspec.Struct, frozen=True, array_like=True):
    format: int
    addresses: dict[int, str]
    ledger: bytes
    highest: int = 0
    disks: dict[int, str] = {}
    version: int = FIRST_VERSION


def _read(image: bytes) -> _Image:
    """Raises ``msgspec.MsgspecError``."""
    found = msgspec.msgpack.decode(image, type=_Image)
    if found.format != IMAGE_FORMAT:
        raise msgspec.ValidationError(f"image format {found.format}, known is {IMAGE_FORMAT}")
    return found


def encode_command(command: LogCommand) -> msgspec.Raw:
    """Alone, before it is queued. Raises ``UsageError`` for what cannot be encoded."""
    if isinstance(command, Agree):
        return msgspec.Raw(_encoder.encode(command))
    return msgspec.Raw(encode(command))


def encode_batch(commands: Sequence[msgspec.Raw]) -> bytes:
    return _encoder.encode(commands)


class StateHashes:
    """Of this node's states at the last places of the log at which all nodes hash theirs:
    :mod:`.comparing` compares them."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}
        self.noted: Callable[[], None] = lambda: None

    def note(self, index: int, state: bytes) -> None:
        """``state``, when all up to the entry at ``index``, and no more, is applied; equal states are encoded
        alike."""
        self.known[index] = hashlib.sha256(state).hexdigest()
        while len(self.known) > HASHES_KEPT:
            del self.known[next(iter(self.known))]
        self.noted()


class NodeStateMachine:
    """Equal on every node that has applied as much. ``addresses`` alone may run ahead: a node can be spoken
    to from the moment its change is in the log."""

    def __init__(
        self,
        machine: Machine,
        addresses: dict[int, str],
        *,
        version: int = FIRST_VERSION,
        speaks: Versions = VERSIONS,
    ) -> None:
        """``speaks``: what this node knows."""
        self.machine = machine
        self.hashes = StateHashes()
        self.speaks = speaks
        self.version = version
        """What all members have agreed to know. It only rises, and never above what this node speaks."""
        self.addresses = addresses
        self.members = dict(addresses)
        """``addresses`` without what runs ahead."""
        self.highest = max(addresses, default=0)
        """The highest number that any node has or had; none up to it is given again."""
        self.disks: dict[int, str] = {}
        """Of the members that were added, and of the first ones as far as whoever added one has met them."""

    def apply(self, entry: Entry) -> list[object]:
        """The results of the entry's commands, in their order; errors are values. Raises what it must not
        go on after: ``LedgerUnusable`` for commands that this version does not know."""
        results: list[object] = []
        if entry.kind is Kind.CONFIG:
            for change in decode_change(entry.data).changes:
                self._follow(change)
            results = [None]
        elif entry.kind is Kind.DATA:
            apply = self.machine.apply
            results = [
                self._agreed(command) if type(command) is Agree else apply(command)
                for command in self._decoded(entry)
            ]
        if not entry.index % HASH_INTERVAL_ENTRIES:
            self.hashes.note(entry.index, self.machine.snapshot())
        return results

    def _decoded(self, entry: Entry) -> list[Any]:
        try:
            commands = _decoder.decode(entry.data)
        except msgspec.MsgspecError as error:
            raise LedgerUnusable(f"{self._unknown(entry)} ({error})") from error
        if self.speaks.highest < VERSIONS.highest and any(map(self._is_unknown, commands)):
            raise LedgerUnusable(self._unknown(entry))
        return commands

    def _is_unknown(self, command: LogCommand) -> bool:
        """Whether a node that speaks no more than this one could not read it, or not all of it."""
        return not isinstance(command, Agree) and since(command) > self.speaks.highest

    def _unknown(self, entry: Entry) -> str:
        return (
            f"entry {entry.index} of the log is newer than version {self.speaks.highest}, which this node"
            f" speaks at most: {NEWER}"
        )

    def _check_version(self, agreed: int) -> None:
        if agreed > self.speaks.highest:
            raise LedgerUnusable(
                f"the cluster has agreed on version {agreed}, and this node speaks {self.speaks.highest} at"
                f" most: {NEWER}"
            )

    def _agreed(self, command: Agree) -> int:
        self._check_version(command.version)
        self.version = max(self.version, command.version)
        return self.version

    def _follow(self, change: Change) -> None:
        if change.kind is ChangeKind.REMOVE:
            self.addresses.pop(change.node, None)
            self.members.pop(change.node, None)
            self.disks.pop(change.node, None)
        elif change.context:
            member = _decode_member(change.context)
            self.addresses[change.node] = self.members[change.node] = member.address
            self.disks[change.node] = member.disk
        self.highest = max(self.highest, change.node)

    def rename(self, addresses: dict[int, str]) -> None:
        """Other nodes keep this from now on: those of a new cluster."""
        self.addresses, self.members, self.disks = dict(addresses), dict(addresses), {}
        self.highest = max(addresses)

    def removed(self, node: int) -> bool:
        """Whether it was a member and is none any more."""
        return node <= self.highest and node not in self.addresses

    def judge(self, entries: Sequence[Entry]) -> None:
        """Raises ``ValueError`` for a peer's change of the members that says nothing of use. An entry that is
        damaged is not looked at: the core asks for it again."""
        for entry in entries:
            if entry.kind is Kind.CONFIG and entry.intact:
                for change in decode_change(entry.data).changes:
                    if change.context:
                        _decode_member(change.context)

    def judge_image(self, image: bytes) -> None:
        """Raises ``ValueError`` for what :meth:`restore` could not read. One of a newer version passes: that
        stops this node, with what to do."""
        found = _read(image)
        if found.version <= self.speaks.highest:
            Machine("").restore(found.ledger)

    def learn(self, entries: Sequence[Entry]) -> None:
        """Addresses from changes of the configuration that are in the log, committed or not."""
        for entry in entries:
            if entry.kind is Kind.CONFIG:
                for change in decode_change(entry.data).changes:
                    if change.kind is not ChangeKind.REMOVE and change.context:
                        self.addresses[change.node] = _decode_member(change.context).address

    def image(self) -> bytes:
        members, disks = dict(sorted(self.members.items())), dict(sorted(self.disks.items()))
        return _encoder.encode(
            _Image(IMAGE_FORMAT, members, self.machine.snapshot(), self.highest, disks, self.version)
        )

    def restore(self, image: bytes) -> None:
        """Raises ``msgspec.MsgspecError`` for what is no image, or one of a newer format; ``LedgerUnusable``
        for one of a newer version than this node speaks."""
        found = _read(image)
        self._check_version(found.version)
        self.version = found.version
        self.machine.restore(found.ledger)
        self.addresses, self.members = dict(found.addresses), found.addresses
        self.highest = max(found.highest, *found.addresses, 0)
        self.disks = found.disks
