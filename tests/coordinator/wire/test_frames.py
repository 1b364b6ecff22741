"""Frames, however the network cuts them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.coordinator.wire.connection import HEADER, FrameReader, header
from undoubt.coordinator.wire.errors import RemoteProtocolError


def framed(payload: bytes, version: int = 1) -> bytes:
    return header(payload, version) + payload


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50), min_size=1))
def test_any_cut_gives_the_same_payloads(payloads: list[bytes], cuts: list[int]) -> None:
    """TCP keeps order, not boundaries."""
    data, reader = b"".join(map(framed, payloads)), FrameReader(1)
    got: list[bytes] = []
    while data:
        cut = cuts[len(data) % len(cuts)]
        got += reader.feed(data[:cut])
        data = data[cut:]
    assert got == payloads


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1))
def test_anything_gives_payloads_or_one_error(data: bytes, cuts: list[int]) -> None:
    """No other exception, and never more kept than one frame may have."""
    reader, fed = FrameReader(1, bytes_max=64), 0
    while fed < len(data):
        cut = cuts[fed % len(cuts)]
        try:
            assert all(len(payload) <= 64 for payload in reader.feed(data[fed : fed + cut]))
        except RemoteProtocolError:
            return
        assert len(reader._kept) < 4 + 64
        fed += cut


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.data())
def test_a_flipped_bit_anywhere_is_noticed(payloads: list[bytes], data: st.DataObject) -> None:
    """What comes before it is whole; it gives an error, or nothing more until the peer gives up."""
    whole = bytearray(b"".join(map(framed, payloads)))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << (bit % 8)
    got = []
    with contextlib.suppress(RemoteProtocolError):
        for payload in FrameReader(1, bytes_max=4096).feed(bytes(whole)):
            got += [payload]
    assert got == payloads[: len(got)]
    assert len(got) < len(payloads)


def test_a_frame_that_is_too_long_is_refused_by_its_header() -> None:
    """Before a byte of it is kept."""
    begin = HEADER.pack(2_000_001, 1, 0)
    with pytest.raises(RemoteProtocolError, match="2000001 bytes"):
        list(FrameReader(1, bytes_max=2_000_000).feed(begin))
    assert list(FrameReader(1, bytes_max=2_000_001).feed(begin)) == []


@pytest.mark.parametrize(
    ("begin", "why"), [(b"GET / HTTP/1.1\r\n", "HTTP"), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "TLS")]
)
def test_a_mistaken_port_is_named(begin: bytes, why: str) -> None:
    """A browser or a TLS client at this port: the log says what it is."""
    with pytest.raises(RemoteProtocolError, match=why):
        list(FrameReader(0, bytes_max=1024).feed(begin))


def test_a_large_frame_in_small_pieces_is_linear() -> None:
    """Looking at all that was kept with every piece would take minutes for one snapshot's chunk."""
    payload, reader = bytes(8_000_000), FrameReader(1)
    data = framed(payload)
    got: list[bytes] = []
    looked = 0
    for start in range(0, len(data), 16_384):
        before = len(reader._kept)
        got += reader.feed(data[start : start + 16_384])
        looked += before if not reader._kept else 0
    assert got == [payload]
    assert looked <= len(data)
