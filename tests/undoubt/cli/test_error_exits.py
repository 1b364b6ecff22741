"""Each command in each case of the table of exit statuses that concerns it: a ledger that is misconfigured,
not there, or does not answer; participants that do not answer; ids of nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import undoubt.sync
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
    *(
        (url, NO_ANSWER, words, 2)
        for url in (
            "postgresql+psycopg://app:hunter2@127.0.0.1:1/x?nonsense=1",
            "postgresql+psycopg://app:hunter2@127.0.0.1:1/x?sslmode=nonsense",
            "raft://127.0.0.1:1,127.0.0.1:1",
            "sqlite:///.",
        )
        for words in (*OF_LEDGER, *OF_FILES, ("ledger", "init", "--yes"))
    ),
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


@pytest.mark.parametrize("url", ["raft://127.0.0.1:1", "postgresql+psycopg://127.0.0.1:1/x"])
def test_what_a_silent_ledger_would_know_is_not_said_to_be_absent(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken if an operator reads that no heuristic outcome is open, although the ledger was not asked."""
    Path("undoubt.toml").write_text(f'[ledger]\nurl = "{url}"\n{NO_ANSWER}')
    ended, told = run(capsys, "indoubt", "list")
    assert ended == 4
    assert "nothing is prepared\n" in told
    assert "heuristic" not in told
    ended, told = run(capsys, "indoubt", "list", "-o", "json")
    assert ended == 4
    assert '"heuristics": null' in told
    ended, told = run(capsys, "recover", "--without-ledger", "--once")
    assert (ended, told) == (0, "nothing is prepared\n")
    assert '"unfinished": null' in run(capsys, "recover", "--without-ledger", "--once", "-o", "json")[1]


def test_an_adoption_says_nothing_of_a_silent_database(capsys: pytest.CaptureFixture[str]) -> None:
    Path("undoubt.toml").write_text(f'[ledger]\nurl = "sqlite:///l.db"\n{SILENT}')
    ended, told = run(capsys, "recover", "--adopt", "k3v9q0x2ab", "--yes")
    assert ended == 4
    assert "is prepared" not in told


@pytest.mark.parametrize("used", [False, True])
def test_a_backup_that_cannot_be_written(used: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken if the same refusal has another exit status while another process owns the ledger."""
    Path("undoubt.toml").write_text('[ledger]\nurl = "sqlite:///l.db"\n')
    assert run(capsys, "ledger", "init", "--yes")[0] == 0
    Path("there").write_text("")
    with contextlib.ExitStack() as stack:
        if used:
            stack.enter_context(undoubt.sync.connect("undoubt.toml"))
        for name, words in (("there", "overwrites no file"), ("none/backup", "cannot write")):
            ended, told = run(capsys, "ledger", "backup", name)
            assert (ended, words in told) == (2, True), told


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
