"""The rig itself: it must not call a bug found that it did not see, nor one that it could not plant."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from tests.mutants.__main__ import HERE, main

HARMLESS = """Changes a docstring, and nothing else.
seeds: 2

--- a/participants/invariant.py
+++ b/participants/invariant.py
@@ -1,5 +1,5 @@
-\"\"\"Invariants that stay on in production: ``python -O`` removes ``assert``, but not these.\"\"\"
+\"\"\"Invariants.\"\"\"

 from __future__ import annotations

 from collections.abc import Mapping
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.patch")))
def test_every_patch_applies(name: str) -> None:
    """Broken if the code has moved on and what a patch planted is not looked for any more: plant it anew."""
    checked = subprocess.run(
        ["git", "apply", "--check", "-C1", str(HERE / f"{name}.patch")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_what_is_harmless_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken if whatever is planted counts as found."""
    (tmp_path / "harmless.patch").write_text(HARMLESS)
    assert main(["--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "NOT FOUND  harmless: no seed and no test has found it",
        "found 0 / planted 1",
    ]


@pytest.mark.parametrize("wrong", ["a line that is not there", "syntax"])
def test_what_cannot_be_planted_is_a_failure(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken if a patch that does not apply, or that only breaks the simulation itself, counts as found."""
    text = HARMLESS.replace("Invariants that stay", "What stays")
    if wrong == "syntax":
        text = HARMLESS.replace('"""Invariants."""', "this is no Python")
    (tmp_path / "wrong.patch").write_text(text)
    assert main(["--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "found 0 / planted 1"


def test_a_patch_dropped_in_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broken if the rig only knows the patches that it came with."""
    (tmp_path / "dropped-in.patch").write_text((HERE / "active-presumed-aborted.patch").read_text())
    assert main(["--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "found 1 / planted 1"
