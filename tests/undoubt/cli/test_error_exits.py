"""Each command in each case of the table of exit statuses that concerns it: a ledger that is misconfigured,
not there, or does not answer; participants that do not answer; ids of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from undoubt.cli import main

TXID = "3-4f1d0c9a77b2e815.42"
GID = f"undoubt:k3v9q0x2ab:2:{TXID}:1:orders"
SILENT = '[participants.orders]\ndsn = "postgresql://postgres:hunter2@127.0.0.1:1/x"\n'
OF_LEDGER = (
    ("indoubt", "list"),
    ("indoubt", "check"),
    ("indoubt", "explain", GID),
    ("indoubt", "explain", TXID),
    ("indoubt", "commit", GID, "--yes"),
    ("indoubt", "rollback", GID, "--yes"),
    ("indoubt", "forget", GID, "--yes"),
    ("tx", "list"),
    ("tx", "show", TXID),
    ("tx", "resolve", TXID, "--yes"),
    ("tx", "resolve", TXID, "--participant-gone", "orders", "--yes"),
    ("audit",),
    ("recover", "--once"),
    ("recover", "--dry-run"),
)
OF_CLUSTERS = (
    ("cluster", "status"),
    ("cluster", "promote", "2"),
    ("cluster", "remove", "2", "--yes"),
    ("cluster", "transfer"),
    ("cluster", "snapshot"),
    ("cluster", "backup", "backup"),
)
OF_FILES = (("ledger", "migrate"), ("ledger", "check"))
NO_ANSWER = "request_timeout_s = 0.3\n"

CASES = [
    *(("mysql://app:hunter2@x/y", "", words, 2) for words in (*OF_LEDGER, *OF_CLUSTERS, *OF_FILES)),
    *(
        ("postgresql+psycopg://app:hunter2@127.0.0.1:1/x", NO_ANSWER, words, 2)
        for words in (*OF_CLUSTERS, ("ledger", "backup", "b"), ("ledger", "restore", "b", "--yes"))
    ),
    *(
        ("postgresql+psycopg://app:hunter2@127.0.0.1:1/x", NO_ANSWER, words, 4)
        for words in (*OF_LEDGER, *OF_FILES, ("ledger", "init", "--yes"))
    ),
    *(("raft://127.0.0.1:1", NO_ANSWER, words, 4) for words in (*OF_LEDGER, *OF_CLUSTERS)),
    *(("raft://127.0.0.1:1", NO_ANSWER, words, 2) for words in OF_FILES),
    *(
        ("sqlite:///none.db", "", words, 3)
        for words in (*OF_LEDGER[2:], *OF_FILES, ("ledger", "backup", "b"))
    ),
    *(("sqlite:///none.db", "", words, 2) for words in OF_CLUSTERS),
    ("mysql://x/y", "", ("recover", "--adopt", "k3v9q0x2ab", "--yes"), 2),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNDOUBT_CONFIG", raising=False)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out + shown.err


@pytest.mark.parametrize(
    ("url", "more", "words", "status"),
    CASES,
    ids=lambda part: "-".join(part)[:40] if isinstance(part, tuple) else None,
)
def test_a_ledger_that_cannot_be_used(
    url: str, more: str, words: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts branch on it. No message has a password."""
    Path("undoubt.toml").write_text(f'[ledger]\nurl = "{url}"\n{more}{SILENT}')
    ended, told = run(capsys, *words)
    assert ended == status, told
    assert "hunter2" not in told
    assert "bug of undoubt" not in told


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    "dsn",
    ["x", "mysql://x", "postgresql://h:99999/x", "host='a", "service=none", "postgresql://h/x?foo=bar"],
)
def test_a_dsn_that_is_none(dsn: str, driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong configuration, and no refusal of a server's."""
    Path("undoubt.toml").write_text(
        f'[ledger]\nurl = "sqlite:///l.db"\n[participants.orders]\ndsn = "{dsn}"\ndriver = "{driver}"\n'
    )
    for words in (("participants", "migrate"), ("participants", "grants", "orders")):
        ended, told = run(capsys, *words)
        assert ended == 2, (words, told)
        assert "participant 'orders': " in told


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("indoubt", "list"), 4),
        (("indoubt", "check"), 4),
        (("indoubt", "explain", GID), 4),
        (("indoubt", "explain", TXID), 4),
        (("indoubt", "commit", GID, "--yes"), 4),
        (("indoubt", "rollback", GID, "--yes"), 4),
        (("indoubt", "forget", GID, "--yes"), 3),
        (("indoubt", "wait", "--timeout", "1s"), 6),
        (("tx", "show", TXID), 3),
        (("tx", "resolve", TXID, "--yes"), 4),
        (("tx", "resolve", TXID, "--participant-gone", "orders", "--yes"), 4),
        (("recover", "--once"), 4),
        (("recover", "--adopt", "k3v9q0x2ab", "--yes"), 4),
        (("participants", "check"), 4),
        (("participants", "check", "stock"), 3),
        (("participants", "migrate"), 4),
        (("participants", "migrate", "stock"), 3),
        (("participants", "prune"), 4),
        (("participants", "restored", "orders"), 4),
        (("participants", "grants", "stock"), 3),
        (("doctor",), 4),
    ],
    ids=lambda part: "-".join(part)[:40] if isinstance(part, tuple) else None,
)
def test_a_participant_that_does_not_answer(
    words: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is said not to be there while not everybody was asked."""
    Path("undoubt.toml").write_text(f'[ledger]\nurl = "sqlite:///l.db"\n{SILENT}')
    Path("undoubt.toml").chmod(0o600)
    assert run(capsys, "ledger", "init", "--yes")[0] == 0
    ended, told = run(capsys, *words)
    assert ended == status, told
    assert "hunter2" not in told
