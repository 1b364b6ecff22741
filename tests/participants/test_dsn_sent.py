"""What a dsn and its environment ask of a server: both drivers send the same, and a refusal is a refusal."""

from __future__ import annotations

import pytest

from tests.participants.hands import at
from tests.participants.support import Database, new_gid, participant_at
from undoubt.participants.errors import ParticipantRefused

WAYS = ("",)


@pytest.mark.parametrize(
    "asked", ["nosuch=1", "work_mem=abc", "work_mem=1", "port=1", "server_version=1", "log_statement"]
)
async def test_options_that_the_server_refuses_are_a_refusal(database: Database, asked: str) -> None:
    """Broken if a caller is told to try again: the server will answer the same."""
    joint = "&" if "?" in database.dsn else "?"
    participant = participant_at(f"{database.dsn}{joint}options=-c{asked.replace('=', '%3D')}")
    with pytest.raises(ParticipantRefused, match=asked.partition("=")[0]):
        await participant.in_doubt()
    await participant.close()


async def test_settings_of_the_environment_are_sent(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if one driver leaves out what the other, and psql, sends."""
    for name, value in (
        ("PGTZ", "Asia/Tokyo"),
        ("PGDATESTYLE", "German"),
        ("PGGEQO", "off"),
        ("PGOPTIONS", "-c work_mem=77kB"),
    ):
        monkeypatch.setenv(name, value)
    participant = participant_at(database.dsn)
    branch = await participant.begin(new_gid(), timeout_s=30)
    found = [
        await at(branch).fetchval(f"select current_setting('{name}')")
        for name in ("timezone", "datestyle", "geqo", "work_mem")
    ]
    await branch.rollback()
    await branch.release()
    await participant.close()
    assert found == ["Asia/Tokyo", "German, DMY", "off", "77kB"]
