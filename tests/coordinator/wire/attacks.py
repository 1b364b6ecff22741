"""Bytes that no honest peer sends: random, cut, damaged, oversized, endless, and well framed nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from undoubt.coordinator.wire.connection import HEADER, header

KINDS = ("random", "cut", "flipped", "oversized", "empty", "nonsense", "deep", "vast", "text")


def attack(random: Random, honest: Sequence[bytes], version: int) -> bytes:
    """One of them. ``honest`` are payloads that the other side would take at this point. Whatever it is, it
    has to end the connection with one line, at the latest when it ends in the middle of a frame."""
    payload = random.choice(honest)
    whole = header(payload, version) + payload
    match random.choice(KINDS):
        case "random":
            return random.randbytes(random.randint(1, 5000))
        case "cut":
            return whole[: random.randint(1, len(whole) - 1)]
        case "flipped":
            damaged = bytearray(whole)
            for _ in range(random.choice([1, 1, 1, 8])):
                bit = random.randrange(8 * len(whole))
                damaged[bit // 8] ^= 1 << (bit % 8)
            return bytes(damaged) if bytes(damaged) != whole else whole[:-1]
        case "oversized":
            return (
                HEADER.pack(random.choice([2**32 - 1, 2**31, 64 * 1024 * 1024 + 1]), version, 0) + b"x" * 100
            )
        case "empty":
            return HEADER.pack(random.randint(0, 4), version, 0)
        case "nonsense":
            return _framed(b"\xc1" + random.randbytes(random.randint(0, 200)), version)
        case "deep":
            return _framed(random.choice([b"\x91", b"\x81\xa1a"]) * random.choice([900, 100_000]), version)
        case "vast":
            return _framed(random.choice([b"\xdd", b"\xdf", b"\xc6", b"\xdb"]) + b"\xff" * 4, version)
        case _:
            return random.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 9, b"select 1;\n"])


def resealed(random: Random, honest: Sequence[bytes], version: int) -> bytes:
    """A damaged payload under a checksum that is right: what a peer with a bug, or without manners, sends. It
    may happen to mean something."""
    payload = bytearray(random.choice(honest))
    for _ in range(random.randint(1, 4)):
        match random.randrange(3):
            case 0 if payload:
                payload[random.randrange(len(payload))] = random.randrange(256)
            case 1 if payload:
                del payload[random.randrange(len(payload)) :]
            case _:
                payload.insert(random.randint(0, len(payload)), random.randrange(256))
    return _framed(bytes(payload), version)


def _framed(payload: bytes, version: int) -> bytes:
    return header(payload, version) + payload
