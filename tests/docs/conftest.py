"""Two databases with the tables of the README, and a configuration that names them."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from tests.docs.pages import ROOT, blocks
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings


@pytest.fixture
async def shop(databases: dict[str, str], tmp_path: Path) -> Path:
    """The folder with ``undoubt.toml``."""
    for block in blocks("sql", ROOT / "README.md"):
        first, _, statements = block.text.partition("\n")
        connection = await asyncpg.connect(databases[first.removeprefix("-- in ")])
        await connection.execute(statements)
        await connection.close()
    for name, dsn in databases.items():
        await migrate(name, ParticipantSettings(dsn=dsn))
    lines = ['[ledger]\nurl = "sqlite:///undoubt.db"']
    lines += [f'[participants.{name}]\ndsn = "{dsn}"' for name, dsn in databases.items()]
    (tmp_path / "undoubt.toml").write_text("\n".join(lines))
    return tmp_path
