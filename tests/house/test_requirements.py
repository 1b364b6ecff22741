"""What is installed for development, for builds and in the image: by version and hash, as uv.lock has it."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.house.tree import ROOT

LOCK: dict[str, dict[str, Any]] = {
    package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]
}
EXTRAS = {"dev": {"dev"}, "image": {"certs", "relay", "sidecar", "uvloop"}, "build": set()}
"""What each file of requirements/ is made of."""
SCRIPTS = (".ci/build", ".ci/helm", ".ci/venv", "deploy/image/build.sh")


def listed(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by package."""
    text = (ROOT / f"requirements/{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        match = re.match(r"([a-z0-9.-]+)==(\S+)(?: ;.*?)? +--hash", line)
        assert match, line
        found[match[1]] = match[2], set(re.findall(r"--hash=(\S+)", line))
    return found


def needed(name: str) -> set[str]:
    """The packages that uv.lock has for that file, on any machine."""
    own = LOCK["undoubt"]
    waiting = [(each["name"], frozenset(each.get("extra", ()))) for each in _roots(own, name)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        if (one := waiting.pop()) in seen:
            continue
        seen.add(one)
        package, extras = LOCK[one[0]], one[1]
        wanted = list(package.get("dependencies", ()))
        for extra in extras:
            wanted += package.get("optional-dependencies", {}).get(extra, ())
        waiting += [(each["name"], frozenset(each.get("extra", ()))) for each in wanted]
    return {package for package, _ in seen} - {"undoubt"}


def _roots(own: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if name == "build":
        return list(own["dev-dependencies"]["build"])
    return [{"name": "undoubt", "extra": sorted(EXTRAS[name])}]


@pytest.mark.parametrize("name", EXTRAS)
def test_the_files_are_those_of_the_lock(name: str) -> None:
    """Broken if CI, the wheel or the image gets versions that nobody has tested; `make requirements`."""
    found = listed(name)
    assert set(found) == needed(name)
    for package, (version, hashes) in found.items():
        locked = LOCK[package]
        assert version == locked["version"], package
        files = [*locked.get("wheels", ()), *([locked["sdist"]] if "sdist" in locked else [])]
        assert hashes == {file["hash"] for file in files}, package


def test_the_lock_is_that_of_the_project() -> None:
    """Broken if a dependency is added without `make requirements`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["project"]["optional-dependencies"] | {"": project["project"]["dependencies"]}
    locked = LOCK["undoubt"]["metadata"]["requires-dist"]
    for extra, requirements in declared.items():
        for text in requirements:
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?([^;]*)", text)
            assert match
            marker = f"extra == '{extra}'" if extra else None
            same = [
                each.get("specifier", "")
                for each in locked
                if each["name"] == match[1].lower() and each.get("marker") == marker
            ]
            assert match[1] == "undoubt" or match[2].strip() in same, text


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_is_installed_without_its_hash(script: str) -> None:
    """Broken if whoever takes over an index, or a name in it, runs code in CI or in the image."""
    text = (ROOT / script).read_text().replace("\\\n", " ")
    commands = [
        line
        for line in text.splitlines()
        if re.search(r"^\s*(pip|exec uv|uv pip) .*(install|wheel|build)", line)
    ]
    assert commands
    for command in commands:
        assert re.search(r"--require-hashes|--no-index", command), command
