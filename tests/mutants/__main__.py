"""``python -m tests.mutants [name…]``: plant each bug in a copy of the tree, and look for it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.house.tree import LINKS, ROOMS, ROOT, files

HERE = Path(__file__).parent
SEEDS = 300
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Mutant:
    path: Path
    seeds: int
    first: int
    """Where the seeds begin: at one that has found it before, so that most are found at once."""
    arguments: tuple[str, ...]
    """For the simulation."""
    tests: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Mutant:
        head = path.read_text().split("\n--- ", 1)[0]
        seeds = re.search(r"^seeds: (\d+)$", head, re.MULTILINE)
        first = re.search(r"^first: (\d+)$", head, re.MULTILINE)
        arguments = [
            word
            for name in ("nodes", "protocol")
            for given in re.findall(rf"^{name}: (\w+)$", head, re.MULTILINE)
            for word in (f"--{name}", given)
        ]
        tests = re.findall(r"^test: (\S+)$", head, re.MULTILINE)
        return cls(
            path,
            int(seeds[1]) if seeds else SEEDS,
            int(first[1]) if first else 1,
            tuple(arguments),
            tuple(tests),
        )


def copy(place: Path) -> None:
    """Copy the tree, with its modules as they are compiled: Python takes those whose source has the time and
    size that it had then (https://docs.python.org/3/reference/import.html#cached-bytecode-invalidation), and
    compiles the others: files that were patched have another time."""
    for path in files():
        target = place / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for room in (*ROOMS, "migrations", "tests"):
        for compiled in (ROOT / room).rglob("__pycache__"):
            target = place / compiled.relative_to(ROOT)
            if target.parent.is_dir():
                shutil.copytree(compiled, target, ignore=shutil.ignore_patterns("*.pyc.*"))  # being written
    for link, to in LINKS.items():
        (place / link).parent.mkdir(exist_ok=True)
        (place / link).symlink_to(to)


def run(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # The copy must not be taken for a part of a repository that its folder happens to lie in.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(place.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


def look_for(mutant: Mutant) -> tuple[bool, str]:
    """Whether it is found, and by what."""
    with tempfile.TemporaryDirectory(prefix="undoubt-mutant-") as folder:
        place = Path(folder)
        copy(place)
        applied = run(place, "git", "apply", "-C1", str(mutant.path.resolve()))
        if applied.returncode:
            return False, "does not apply: " + applied.stderr.strip().splitlines()[0]
        found = []
        for test in mutant.tests:
            # 1: tests were run, and some failed (https://docs.pytest.org/en/stable/reference/exit-codes.html).
            ended = run(place, sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test)
            if ended.returncode != 1:
                return False, f"{test} does not fail (pytest ended with {ended.returncode})"
            found.append(test)
        if mutant.seeds:
            found.append(_simulate(place, mutant))
        return bool(found) and all(found), ", ".join(each for each in found if each)


def _simulate(place: Path, mutant: Mutant) -> str:
    """The seed that found it, or nothing. A seed that fails without it as well has found something else."""
    ended = _runs(place, mutant, "--seeds", str(mutant.seeds), "--first", str(mutant.first), "--stop")
    seed = re.search(r"^seed (\d+) failed", ended.stdout, re.MULTILINE) if ended.returncode == 1 else None
    if seed is None:
        return ""
    without = _runs(ROOT, mutant, "--seeds", "1", "--first", seed[1])
    return f"seed {seed[1]}" if without.returncode == 0 else ""


def _runs(place: Path, mutant: Mutant, *which: str) -> subprocess.CompletedProcess[str]:
    return run(place, sys.executable, "-m", "tests.simulation", *which, "--jobs", "1", *mutant.arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="patches by name; all of them if none is given")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the patches are")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="bugs looked for at once")
    asked = parser.parse_args(arguments)
    planted = [
        path for path in sorted(asked.folder.glob("*.patch")) if not asked.names or path.stem in asked.names
    ]
    mutants = [Mutant.read(path) for path in planted]
    count = 0
    with ThreadPoolExecutor(asked.jobs) as workers:
        # What may take long is begun first, so that no worker is left with it alone in the end.
        looking = {
            workers.submit(look_for, mutant): mutant
            for mutant in sorted(mutants, key=lambda mutant: -mutant.seeds)
        }
        for done in as_completed(looking):
            found, how = done.result()
            count += found
            told = how or "no seed and no test has found it"
            print(f"{'found' if found else 'NOT FOUND'}  {looking[done].path.stem}: {told}", flush=True)
    print(f"found {count} / planted {len(planted)}")
    return 0 if planted and count == len(planted) else 1


if __name__ == "__main__":
    sys.exit(main())
