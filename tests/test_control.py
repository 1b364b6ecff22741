"""The control of a proof is a proof only if it runs what was planted, and says so if it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.test_mutants import HARMLESS
from tests.prove.control import Void, control


def plant(folder: Path, text: str) -> Path:
    (folder / "planted.patch").write_text(text)
    return folder


def also(statement: str) -> str:
    """The harmless patch, and a statement that runs on import."""
    return HARMLESS.replace("-1,5 +1,5", "-1,5 +1,6").replace(" from coll", f"+{statement}\n from coll")


async def test_the_copy_is_what_runs(tmp_path: Path) -> None:
    """Broken if the proof ran in this tree instead of the copy: then no planted bug could be found."""
    tells = also("raise SystemExit(print('{\"planted\": true}'))")
    found = await control("f0", mutants=["planted"], folder=plant(tmp_path, tells))
    assert found.result == {"planted": True}


async def test_a_harmless_change_is_not_found(tmp_path: Path) -> None:
    """Broken if a proof failed in any copy of the tree, whatever is planted there."""
    found = await control("f0", mutants=["planted"], folder=plant(tmp_path, HARMLESS))
    assert found.holds
    assert found.result["2pc"] == found.result["paxos"]


@pytest.mark.parametrize("wrong", ["does not apply", "told no result"])
async def test_a_control_that_did_not_run_is_void(wrong: str, tmp_path: Path) -> None:
    """Broken if a patch that no longer fits, or a tree that cannot even be imported, counted as found."""
    text = HARMLESS.replace("Invariants that stay", "What stays")
    if wrong == "told no result":
        text = HARMLESS.replace('"""Invariants."""', "this is no Python")
    with pytest.raises(Void, match=wrong):
        await control("f0", mutants=["planted"], folder=plant(tmp_path, text))


async def test_a_control_that_hangs_is_ended(tmp_path: Path) -> None:
    """Broken if a proof that hangs with its bug planted kept the whole run waiting."""
    with pytest.raises(Void, match="did not end within"):
        await control(
            "f0",
            mutants=["planted"],
            folder=plant(tmp_path, also("import time; time.sleep(3600)")),
            timeout_s=1,
        )
