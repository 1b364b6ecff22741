"""Applies the entries of the log: to the ledger's state machine, the addresses of the nodes, and the version
that all nodes have agreed on.

One entry of the log is a batch of commands, so that the calls of many callers in one turn of the loop cost
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
"""All nodes hash their state after each entry whose index is a multiple of this."""
HASHES_KEPT = 4
NEWER = "start it with a newer release of undoubt, and without a lower node.version_max"


class Agree(msgspec.Struct, frozen=True, array_like=True, tag="agree"):
    """A command of the log: every member supports ``version``, and later entries may contain commands of that
    version."""

    version: int


LogCommand = Command | Agree

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[LogCommand]] = msgspec.msgpack.Decoder(list[LogCommand])


class MemberContext(msgspec.Struct, frozen=True, array_like=True):
    """The context of a change that adds a node, or that describes an earlier member to a joining node.
    ``disk`` is as in :class:`~undoubt.coordinator.node.storage.contract.DiskIdentity`: a number belongs to
    one disk for ever."""

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
    """Decode an image. Raises ``msgspec.MsgspecError``."""
    found = msgspec.msgpack.decode(image, type=_Image)
    if found.format != IMAGE_FORMAT:
        raise msgspec.ValidationError(f"image format {found.format}, known is {IMAGE_FORMAT}")
    return found


def encode_command(command: LogCommand) -> msgspec.Raw:
    """Encode one command, before it is queued. Raises ``UsageError`` if it cannot be encoded."""
    if isinstance(command, Agree):
        return msgspec.Raw(_encoder.encode(command))
    return msgspec.Raw(encode(command))


def encode_batch(commands: Sequence[msgspec.Raw]) -> bytes:
    return _encoder.encode(commands)


class StateHashes:
    """The hashes of this node's state at the last indexes of the log at which all nodes hash theirs;
    :mod:`.divergence` compares them."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}
        self.noted: Callable[[], None] = lambda: None

    def note(self, index: int, state: bytes) -> None:
        """Add the hash of ``state``, in which exactly the entries up to ``index`` are applied; equal states
        have equal encodings."""
        self.known[index] = hashlib.sha256(state).hexdigest()
        while len(self.known) > HASHES_KEPT:
            del self.known[next(iter(self.known))]
        self.noted()


class NodeStateMachine:
    """The state machine of a node, which is equal on all nodes that have applied the same entries. Only
    ``addresses`` may be ahead: a node is connected to as soon as its change is in the log."""

    def __init__(
        self,
        machine: Machine,
        addresses: dict[int, str],
        *,
        version: int = FIRST_VERSION,
        supported: Versions = VERSIONS,
    ) -> None:
        """``supported``: the versions that this node supports."""
        self.machine = machine
        self.hashes = StateHashes()
        self.supported = supported
        self.version = version
        """The version that all members have agreed on. It never decreases, and never exceeds the versions
        that this node supports."""
        self.addresses = addresses
        self.members = dict(addresses)
        """The addresses from applied entries only."""
        self.highest = max(addresses, default=0)
        """The highest number that any node has or had; no number up to it is given again."""
        self.disks: dict[int, str] = {}
        """The disks of the members that were added, and of the first members as far as the leader that added
        a node knew them."""

    def apply(self, entry: Entry) -> list[object]:
        """Apply ``entry``; return the results of its commands, in order; errors are results too. Raises
        ``LedgerUnusable`` for commands that this version cannot decode; then the node must stop."""
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
        if self.supported.highest < VERSIONS.highest and any(map(self._is_unknown, commands)):
            raise LedgerUnusable(self._unknown(entry))
        return commands

    def _is_unknown(self, command: LogCommand) -> bool:
        """Whether a node with only the versions of this node could not decode ``command`` completely."""
        return not isinstance(command, Agree) and since(command) > self.supported.highest

    def _unknown(self, entry: Entry) -> str:
        return (
            f"entry {entry.index} of the log is newer than version {self.supported.highest}, which this node"
            f" supports at most: {NEWER}"
        )

    def _check_version(self, agreed: int) -> None:
        if agreed > self.supported.highest:
            raise LedgerUnusable(
                f"the cluster has agreed on version {agreed}, and this node supports {self.supported.highest}"
                f" at most: {NEWER}"
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
        """Replace all members by the nodes of a new cluster."""
        self.addresses, self.members, self.disks = dict(addresses), dict(addresses), {}
        self.highest = max(addresses)

    def removed(self, node: int) -> bool:
        """Whether ``node`` was a member and no longer is."""
        return node <= self.highest and node not in self.addresses

    def judge(self, entries: Sequence[Entry]) -> None:
        """Check a peer's changes of the members. Raises ``ValueError`` for a change whose context cannot be
        decoded. A damaged entry is not checked: the core does not accept it, and the leader sends it
        again."""
        for entry in entries:
            if entry.kind is Kind.CONFIG and entry.intact:
                for change in decode_change(entry.data).changes:
                    if change.context:
                        _decode_member(change.context)

    def judge_image(self, image: bytes) -> None:
        """Check a peer's image. Raises ``ValueError`` if :meth:`restore` could not read it. An image of a
        newer version passes; installing it stops this node with a message that says what to do."""
        found = _read(image)
        if found.version <= self.supported.highest:
            Machine("").restore(found.ledger)

    def learn(self, entries: Sequence[Entry]) -> None:
        """Take addresses from changes of the configuration that are in the log, committed or not."""
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
        """Replace the state by ``image``. Raises ``msgspec.MsgspecError`` if it is not an image or has a
        newer format; ``LedgerUnusable`` if it has a newer version than this node supports."""
        found = _read(image)
        self._check_version(found.version)
        self.version = found.version
        self.machine.restore(found.ledger)
        self.addresses, self.members = dict(found.addresses), found.addresses
        self.highest = max(found.highest, *found.addresses, 0)
        self.disks = found.disks
