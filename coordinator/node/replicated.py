"""What the log drives: the ledger's state machine, and the addresses of the nodes.

One entry of the log is a batch of commands, so that what many callers ask for in one turn of the loop costs
one append and one sync. An image is msgpack: format, addresses by node, the machine's own snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.ledger.commands import Command
from coordinator.ledger.contract import DecisionRecord
from coordinator.ledger.machine import Machine
from coordinator.raft import ChangeKind, Entry, Kind, decode_change

IMAGE_FORMAT = 1

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[Command]] = msgspec.msgpack.Decoder(list[Command])


class _Image(msgspec.Struct, frozen=True, array_like=True):
    format: int
    addresses: dict[int, str]
    ledger: bytes


def encode_batch(commands: Sequence[Command]) -> bytes:
    return _encoder.encode(commands)


class Replicated:
    """Equal on every node that has applied as much. ``addresses`` alone may run ahead: a node can be spoken
    to from the moment its change is in the log."""

    def __init__(self, machine: Machine, addresses: dict[int, str]) -> None:
        self.machine = machine
        self.addresses = addresses

    def apply(self, entry: Entry) -> list[object]:
        """The results of the entry's commands, in their order; errors are values. Raises what it must not
        go on after: ``msgspec.MsgspecError`` for commands that this version does not know."""
        if entry.kind is Kind.CONFIG:
            for change in decode_change(entry.data).changes:
                if change.kind is ChangeKind.REMOVE:
                    self.addresses.pop(change.node, None)
        if entry.kind is not Kind.DATA:
            return []
        apply = self.machine.apply
        return [apply(command) for command in _decoder.decode(entry.data)]

    def learn(self, entries: Sequence[Entry]) -> None:
        """Addresses from changes of the configuration that are in the log, committed or not."""
        for entry in entries:
            if entry.kind is Kind.CONFIG:
                for change in decode_change(entry.data).changes:
                    if change.kind is not ChangeKind.REMOVE and change.context:
                        self.addresses[change.node] = change.context.decode()

    def finished(self) -> tuple[DecisionRecord, ...]:
        """What is to be written into the history since the last call."""
        return tuple(self.machine.drain_history())

    def image(self) -> bytes:
        return _encoder.encode(_Image(IMAGE_FORMAT, self.addresses, self.machine.snapshot()))

    def restore(self, image: bytes) -> None:
        """Raises ``msgspec.MsgspecError`` for what is no image, or one of a newer format."""
        found = msgspec.msgpack.decode(image, type=_Image)
        if found.format != IMAGE_FORMAT:
            raise msgspec.ValidationError(f"image format {found.format}, known is {IMAGE_FORMAT}")
        self.machine.restore(found.ledger)
        self.addresses = found.addresses
