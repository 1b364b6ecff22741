"""The detectors of :mod:`tests.house.reading` find planted faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import reading, tree

FILES = {
    "a.py": "from undoubt.coordinator import b\nclass Twin: ...\n",
    "b.py": "from undoubt.coordinator.c import X\nclass Twin: ...\nclass Wire(library.Wire): ...\n",
    "c.py": "import undoubt.coordinator.a\nif TYPE_CHECKING:\n    from undoubt.coordinator import d\nX = 1\n",
    "d.py": "from undoubt.coordinator import a\nclass _Twin: ...\nclass Wire(library.Wire): ...\n",
    "loops.py": "def one(f):\n    match f:\n        case calls.Reply(number=n): ...\n"
    "def two(f):\n    if isinstance(f, Reply | Failed):\n        return f.result\n"
    "def none(f):\n    return isinstance(f, VoteReply) and f.result\n",
    "__init__.py": '"""``a``, :mod:`.b`; c.py."""\n',
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "coordinator"
    room.mkdir()
    for name, text in FILES.items():
        (room / name).write_text(text)
    for module in (tree, reading):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(tree, "files", lambda: sorted(room.iterdir()))


@pytest.mark.usefixtures("house")
def test_circles_are_found_and_types_are_none() -> None:
    names = [f"undoubt.coordinator.{letter}" for letter in "abc"]
    assert reading.circles() == [names]


@pytest.mark.usefixtures("house")
def test_names_of_two_public_classes_are_found() -> None:
    """Broken if private classes, or classes that replace a library's class, are counted."""
    assert list(reading.same_named_public_classes()) == ["Twin"]


@pytest.mark.usefixtures("house")
def test_functions_that_take_replies_apart_are_found() -> None:
    assert reading.reply_loops() == ["undoubt.coordinator.loops.one", "undoubt.coordinator.loops.two"]


@pytest.mark.usefixtures("house")
def test_modules_on_no_map_are_found() -> None:
    assert reading.unmapped_modules() == ["undoubt.coordinator.d", "undoubt.coordinator.loops"]
