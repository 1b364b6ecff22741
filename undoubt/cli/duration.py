"""A length of time as an option of a command."""

from __future__ import annotations

import click

from undoubt.report.times import parse_duration


class Duration(click.ParamType[float]):
    """A click parameter that gives seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
