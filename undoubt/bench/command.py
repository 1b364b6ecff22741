"""The command ``undoubt bench``."""

from __future__ import annotations

import importlib.util
import os
import platform

import asyncpg
import click

from undoubt.bench import figures
from undoubt.bench.audit import audit
from undoubt.bench.contenders import CONTENDERS, DEFAULT
from undoubt.bench.contract import ROWS
from undoubt.bench.field import field
from undoubt.bench.figures import Figures
from undoubt.bench.rounds import play, rounds_of
from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.output import Output


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(value.split(",")))
    for name in names:
        if name not in CONTENDERS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(CONTENDERS)}")
    return names


def _concurrencies(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter("numbers with commas between them, as in 1,8,32") from None
    if not all(1 <= number <= ROWS for number in numbers):
        raise click.BadParameter(f"each from 1 to {ROWS}")
    return numbers


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0.3, 36000),
    default=30.0,
    show_default=True,
    metavar="N",
    help="How long to measure at each concurrency, all contenders together.",
)
@click.option("--concurrency", default="1,8,32", show_default=True, callback=_concurrencies, metavar="N,N")
@click.option(
    "--contenders",
    default=",".join(DEFAULT),
    show_default=True,
    callback=_names,
    metavar="NAME,NAME",
    help=f"Also: {', '.join(name for name in CONTENDERS if name not in DEFAULT)}.",
)
@click.option("--dsn", "dsns", nargs=2, help="Two databases to use, instead of two new servers.")
@common
@pass_context
def bench(
    context: Context,
    seconds: float,
    concurrency: tuple[int, ...],
    contenders: tuple[str, ...],
    dsns: tuple[str, str] | None,
) -> None:
    """Measure the cost of a commit, compared with hand-written code.

    One UPDATE in each of two PostgreSQL servers, in rows that no two workers share. Each contender is a
    process, and they take turns of about a second; ratios are medians over the rounds. Afterwards both
    databases must have exactly the transfers that were counted. With --dsn the table "account" of both is
    overwritten, and contenders that commit in three phases create undoubt's tables. The nodes of a cluster
    are three processes on this machine.

    \b
    Example:
      undoubt bench
      undoubt bench --seconds 30 --concurrency 1,32 --contenders naive,undoubt-raft -o json
    """
    done = context.run(_run(context.output, contenders, concurrency, seconds, dsns))
    if context.output.json:
        context.output.document(done)
    else:
        _tables(context.output, done)


async def _run(
    output: Output,
    names: tuple[str, ...],
    concurrencies: tuple[int, ...],
    seconds: float,
    dsns: tuple[str, str] | None,
) -> Figures:
    async with field(names, max(concurrencies), dsns) as built:
        rounds, transfers = await play(built.contenders, concurrencies, seconds, output.note)
        await audit(built, transfers)
        connection = await asyncpg.connect(built.dsns[0])
        try:
            version = await connection.fetchval("show server_version")
        finally:
            await connection.close()
    return Figures(
        rows=figures.rows(rounds),
        ratios=figures.ratios(rounds),
        seconds=seconds,
        rounds=rounds_of(seconds, len(names))[0],
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        postgresql=version,
        event_loop="uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
    )


def _tables(output: Output, done: Figures) -> None:
    output.table(
        ["contender", "concurrency", "tps", "p50 ms", "p99 ms", "client cpu µs/tx"],
        [
            (row.contender, row.concurrency, row.tps, row.p50_ms, row.p99_ms, row.client_cpu_us_per_tx)
            for row in done.rows
        ],
    )
    output.line()
    output.table(
        ["contender ÷ baseline", "concurrency", "tps", "from", "to", "p50", "client cpu"],
        [
            (f"{r.contender} ÷ {r.baseline}", r.concurrency, r.tps, *r.tps_range, r.p50, r.client_cpu)
            for r in done.ratios
        ],
    )
    output.note(
        f"{done.cores} cores, Python {done.python}, PostgreSQL {done.postgresql}, {done.event_loop}, "
        f"{done.rounds} rounds"
    )
