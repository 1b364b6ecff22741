"""``python -m tests.conformance FILE.csv``: runs every case; prints failures, and skips with their reason."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.conformance.xa import read, run_all


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.conformance FILE.csv", file=sys.stderr)
        return 2
    report = asyncio.run(run_all(read(Path(arguments[0]))))
    for number, reason in report.skipped.items():
        print(f"skipped {number}: {reason}")
    for number, wrong in report.failed.items():
        print(f"FAILED {number}: {wrong}")
    print(report.summary())
    return 1 if report.failed or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
