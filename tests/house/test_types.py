"""mypy reads the tests, the benchmarks and the examples as strictly as the product."""

from __future__ import annotations

import tomllib
from typing import Any

from tests.house.tree import LINKED, ROOT, files


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    return settings


def test_every_folder_is_checked() -> None:
    """Broken if a folder with modules is not checked: a renamed attribute is then found only when it is used,
    or never, where the error looks like an expected one. The linked rooms are modules of ``undoubt``."""
    folders = {path.relative_to(ROOT).parts[0] for path in files() if path.suffix == ".py"}
    assert folders - set(LINKED) == set(_settings()["packages"])


def test_no_check_is_relaxed_for_some_modules() -> None:
    """Broken if a kind of error is ignored in a part of the tree. Untyped libraries are listed by name."""
    for override in _settings()["overrides"]:
        assert set(override) == {"module", "ignore_missing_imports"}, override
        assert not any(name.split(".")[0] in _settings()["packages"] for name in override["module"])
