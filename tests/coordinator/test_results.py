"""The results of transactions with a key, as they are stored."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.coordinator.ledger.keys import RESULT_BYTES_MAX
from undoubt.coordinator.results import DEPTH_MAX, decode_result, encode_result
from undoubt.participants.bounds import OutOfBounds

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abü€", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON | st.binary(max_size=100))
def test_a_result_comes_back_as_it_was(result: object) -> None:
    """A repetition would get another result than the first run."""
    decoded = decode_result(encode_result(result))
    assert decoded == result
    assert repr(decoded) == repr(result), "1 and True, or 1 and 1.0, are equal and not the same"


@pytest.mark.parametrize(
    "result",
    [
        (1, 2),
        {1: "one"},
        {"a": {2}},
        datetime.now(UTC),
        math.nan,
        math.inf,
        2**63,
        bytearray(b"x"),
        [b"bytes within"],
        "\ud800",
        object(),
        bytes(RESULT_BYTES_MAX),
        "x" * RESULT_BYTES_MAX,
    ],
)
def test_what_would_not_come_back_is_refused(result: object) -> None:
    """The first caller would get a tuple, and each later one a list; or the ledger would refuse COMMIT."""
    with pytest.raises(OutOfBounds):
        encode_result(result)


def test_nesting_is_bounded() -> None:
    """Encoding would exhaust the stack, and not be an error of the caller."""
    nested: list[object] = []
    for _ in range(DEPTH_MAX):
        nested = [nested]
    assert decode_result(encode_result(nested)) == nested
    with pytest.raises(OutOfBounds):
        encode_result([nested])


def test_the_largest_result_is_accepted() -> None:
    """Broken if the documented bound is not the one that is checked."""
    largest = bytes(RESULT_BYTES_MAX - 1)
    assert decode_result(encode_result(largest)) == largest


def test_an_unknown_kind_is_an_error() -> None:
    """A result of a later version would be returned as something else."""
    with pytest.raises(ValueError, match="unknown kind"):
        decode_result(b"x1")
