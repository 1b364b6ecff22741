"""The command line on a stage, for every test that asks for ``stage``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.undoubt.cli.stage import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Stage:
    monkeypatch.chdir(tmp_path)
    return Stage(monkeypatch, capsys)
