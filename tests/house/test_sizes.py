"""Limits the sizes of files and functions."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.house.tree import ROOMS, ROOT, functions, modules

FILE_LINES_MAX = 600
FILE_LINES_MEDIAN_MAX = 160
FUNCTION_LINES_MAX = 70


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_too_long() -> None:
    """Broken if a file is longer than the limit: it has more than one subject then."""
    long = {str(path.relative_to(ROOT)): lines(path) for path in modules(*ROOMS, "migrations", "tests")}
    assert long, "no file was found, so nothing was checked"
    assert {name: size for name, size in long.items() if size > FILE_LINES_MAX} == {}


def test_the_median_file_is_short() -> None:
    """Broken if the median file is too long: the limit of the longest file alone would let all files grow to
    it."""
    sizes = [size for path in modules(*ROOMS) if (size := lines(path))]
    assert statistics.median(sizes) < FILE_LINES_MEDIAN_MAX


def test_no_function_is_too_long() -> None:
    """Broken if a function is longer than the limit: it does more than its name says then."""
    long = [
        f"{path.relative_to(ROOT)}: {name} has {size} lines"
        for path in modules(*ROOMS, "migrations", "tests")
        for name, size in functions(path)
        if size >= FUNCTION_LINES_MAX
    ]
    assert long == []
