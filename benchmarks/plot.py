"""A curve of measurements: as a table of Markdown, and as a plot in SVG beside the pages of documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

PLOTS = Path(__file__).parents[1] / "docs" / "plots"
STABLE: Any = {"svg.hashsalt": "undoubt", "svg.fonttype": "none", "font.size": 10.0}
"""The same measurements give the same file."""


class Curve(msgspec.Struct, frozen=True):
    """``series``: for each name one value per ``x``. ``x_name`` and ``y_name`` contain the units. ``points``
    formats a value in the table."""

    name: str
    x_name: str
    y_name: str
    x: Sequence[int]
    series: Mapping[str, Sequence[float]]
    points: str = ",.0f"
    log_y: bool = False

    def markdown(self) -> str:
        """The table, with a reference to the plot above it."""
        lines = [
            f"![{self.y_name} by {self.x_name}](plots/{self.name}.svg)",
            "",
            f"| {self.x_name} | " + " | ".join(f"{name}: {self.y_name}" for name in self.series) + " |",
            "|---" * (1 + len(self.series)) + "|",
        ]
        for number, x in enumerate(self.x):
            cells = " | ".join(format(values[number], self.points) for values in self.series.values())
            lines.append(f"| {x:,} | {cells} |")
        return "\n".join(lines)

    def draw(self, folder: Path = PLOTS) -> Path:
        """Write the plot; return its path."""
        import matplotlib as mpl  # noqa: PLC0415 - takes a second, in each process of the tests too
        from matplotlib.figure import Figure  # noqa: PLC0415

        with mpl.rc_context(STABLE):
            figure = Figure(figsize=(6.4, 3.2), layout="constrained")
            axes = figure.add_subplot()
            for (name, values), marker in zip(self.series.items(), "os^Dv<>", strict=False):
                axes.plot(self.x, values, marker=marker, label=name)
            axes.set_xscale("log", base=2 if max(self.x) <= 512 else 10)
            axes.set_xticks(list(self.x), [f"{x:,}" for x in self.x])
            axes.minorticks_off()
            if self.log_y:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(self.x_name)
            axes.set_ylabel(self.y_name)
            axes.grid(visible=True, alpha=0.3)
            axes.legend(frameon=False)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self.name}.svg"
            figure.savefig(path, metadata={"Date": None})
        return path
