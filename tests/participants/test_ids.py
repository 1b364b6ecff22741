"""Names: whatever a database holds, parsing it is calm, exact, and never confuses two branches."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.participants.ids import (
    BRANCH_NUMBER_MAX,
    GID_BYTES_MAX,
    NUMBER_MAX,
    Foreign,
    Gid,
    InvalidName,
    Protocol,
    TxId,
    check_ledger_id,
    check_participant_name,
    new_ledger_id,
    new_nonce,
)

ledgers = st.text(string.ascii_lowercase + string.digits, min_size=10, max_size=10)
nonces = st.text("0123456789abcdef", min_size=16, max_size=16)
numbers = st.integers(1, NUMBER_MAX)
name_starts = st.sampled_from(string.ascii_letters + string.digits + "_")
names = st.builds(
    str.__add__, name_starts, st.text(string.ascii_letters + string.digits + "_.-", max_size=62)
)
txids = st.builds(TxId, numbers, nonces, numbers)
gids = st.builds(Gid, ledgers, st.sampled_from(Protocol), txids, st.integers(1, BRANCH_NUMBER_MAX), names)


@given(gids)
def test_a_gid_survives_the_database(gid: Gid) -> None:
    """Else recovery could not tell whose a branch is, or PostgreSQL would refuse it."""
    text = str(gid)
    assert len(text.encode()) <= GID_BYTES_MAX
    assert Gid.parse(text) == gid


@given(txids)
def test_a_txid_survives_the_operator(txid: TxId) -> None:
    assert TxId.parse(str(txid)) == txid


@given(gids, gids)
def test_no_two_gids_share_a_text(one: Gid, other: Gid) -> None:
    """Else finishing one branch would finish another."""
    assert (str(one) == str(other)) == (one == other)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Gid, str]:
    gid = draw(gids)
    text = str(gid)
    at = draw(st.integers(0, len(text)))
    match draw(st.sampled_from(["delete", "insert", "replace", "swapcase", "pad", "split"])):
        case "delete":
            text = text[:at] + text[at + 1 :]
        case "insert":
            text = text[:at] + draw(st.characters()) + text[at:]
        case "replace":
            text = text[:at] + draw(st.characters()) + text[at + 1 :]
        case "swapcase":
            text = text.swapcase()
        case "pad":
            text = draw(st.sampled_from([" ", "\n", "\t", "\x85", "0"])) + text
        case _:
            text = text[:at] + ":" + text[at:]
    return gid, text


@given(mutated())
def test_a_changed_gid_is_foreign_or_another(case: tuple[Gid, str]) -> None:
    """Whatever is not letter for letter what we write is not ours; what is ours reads back as itself."""
    gid, text = case
    parsed = Gid.parse(text)
    assert str(parsed) == text
    if text != str(gid):
        assert parsed != gid


@given(st.text())
def test_any_text_parses(text: str) -> None:
    """One strange prepared transaction must not blind recovery to all the others."""
    parsed = Gid.parse(text)
    assert str(parsed) == text
    assert isinstance(parsed, Foreign) or text.startswith("undoubt:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "undoubt",
        "undoubt::::::",
        "undoubt:testledger:2:1-0123456789abcdef.1:1:p\n",
        "undoubt:testledger:2:01-0123456789abcdef.1:1:p",
        "undoubt:testledger:2:1-0123456789ABCDEF.1:1:p",
        "undoubt:testledger:2:1-0123456789abcdef.0:1:p",
        "undoubt:testledger:2:9999999999999999999-0123456789abcdef.1:1:p",
        "undoubt:testledger:4:1-0123456789abcdef.1:1:p",
        "undoubt:testledger:2:1-0123456789abcdef.1:10000:p",
        "undoubt:testledger:2:1-0123456789abcdef.1:1:-p",
        "undoubt:testledger:2:1-0123456789abcdef.1:1:" + "p" * 64,
        "undoubt:testledger:2:\u0661-0123456789abcdef.1:1:p",
        "1_MQ==_YnJhbmNo",
    ],
)
def test_near_misses_are_foreign(text: str) -> None:
    """Two spellings of one branch would be two keys for one thing."""
    assert Gid.parse(text) == Foreign(text)


@given(st.text())
def test_bad_names_are_refused_not_mangled(text: str) -> None:
    for check in (check_ledger_id, check_participant_name):
        try:
            assert check(text) == text
        except InvalidName:
            continue
        assert text.isascii()
        assert ":" not in text


@pytest.mark.parametrize("text", ["", "1-0123456789abcdef.1 ", "1-0123456789abcdef", "0-0123456789abcdef.1"])
def test_bad_txids_are_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        TxId.parse(text)


def test_new_ids_are_valid_and_differ() -> None:
    """Two ledgers with one id would finish each other's branches."""
    assert len({check_ledger_id(new_ledger_id()) for _ in range(100)}) == 100
    assert len({new_nonce() for _ in range(100)}) == 100
    assert TxId.parse(f"1-{new_nonce()}.1").seq == 1
