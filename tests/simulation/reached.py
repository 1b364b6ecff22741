"""``python -m tests.simulation.reached``: how many lines of each room the simulation has run through.

Reads what ``make simulate-coverage`` has measured. Fails if it is less than 90 % of any room: what is not run
through is not tried by any fault.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOMS = ("coordinator/protocols", "coordinator/paxos", "coordinator/ledger", "coordinator/raft", "recovery")
PERCENT_MIN = 90.0


def main() -> int:
    coverage = Coverage(config_file=str(Path(__file__).with_name("coverage.ini")))
    coverage.load()
    coverage.report(show_missing=True, skip_covered=True)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "reached.json"
        coverage.json_report(outfile=str(told))
        files = json.loads(told.read_text())["files"]
    lines, run = Counter[str](), Counter[str]()
    for path, of in files.items():
        room = next(room for room in ROOMS if path.startswith(room + "/"))
        lines[room] += of["summary"]["num_statements"]
        run[room] += of["summary"]["covered_lines"]
    percents = {room: 100.0 * run[room] / lines[room] if lines[room] else 0.0 for room in ROOMS}
    for room, percent in percents.items():
        print(f"{room:<24} {run[room]:>5} of {lines[room]:>5} lines: {percent:.1f} %")
    return 0 if min(percents.values()) >= PERCENT_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
