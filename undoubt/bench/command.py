"""The command ``undoubt bench``."""

from __future__ import annotations

import contextlib
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
from undoubt.bench.rounds import Rounds, play, rounds_of
from undoubt.cli.context import Context, common, pass_context
from undoubt.cli.output import Output

NEAR = "near "
"""Before the names of the contenders whose proxies add no delay."""
FAR_MAX = 200
"""Contenders times concurrency at a distance: a proxy has four file descriptors for each, and select(2) takes
1,024."""


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
@click.option(
    "--rtt",
    "rtt_ms",
    type=click.FloatRange(0, 1000, min_open=True),
    metavar="MS",
    help="Add this round-trip time, in milliseconds, between contenders, servers and nodes.",
)
@click.option("--dsn", "dsns", nargs=2, help="Two databases to use, instead of two new servers.")
@common
@pass_context
def bench(
    context: Context,
    *,
    seconds: float,
    concurrency: tuple[int, ...],
    contenders: tuple[str, ...],
    rtt_ms: float | None,
    dsns: tuple[str, str] | None,
) -> None:
    """Measure the cost of a commit, compared with hand-written code.

    One UPDATE in each of two PostgreSQL servers, in rows that no two workers share. Each contender is a
    process, and they take turns of about a second; ratios are medians over the rounds. Afterwards both
    databases must have exactly the transfers that were counted. With --dsn the table "account" of both is
    overwritten, and contenders that commit in three phases create undoubt's tables. The nodes of a cluster
    are three processes on this machine.

    With --rtt everything is measured twice in the same rounds, over the same proxies, with and without the
    delay; the table of round trips tells how many of them a transfer waits for, one after another.

    \b
    Example:
      undoubt bench
      undoubt bench --seconds 30 --concurrency 1,32 --contenders naive,undoubt-raft -o json
      undoubt bench --rtt 1 --concurrency 1
    """
    if rtt_ms is not None and dsns:
        raise click.UsageError("--rtt needs servers of its own: leave --dsn out")
    if rtt_ms is not None and len(contenders) * max(concurrency) > FAR_MAX:
        raise click.UsageError(f"--rtt: contenders times concurrency is at most {FAR_MAX}")
    done = context.run(_run(context.output, contenders, concurrency, seconds, dsns=dsns, rtt_ms=rtt_ms))
    if context.output.json:
        context.output.document(done)
    else:
        _tables(context.output, done)


async def _run(
    output: Output,
    names: tuple[str, ...],
    concurrencies: tuple[int, ...],
    seconds: float,
    *,
    dsns: tuple[str, str] | None,
    rtt_ms: float | None,
) -> Figures:
    async with contextlib.AsyncExitStack() as stack:
        fields = {"": await stack.enter_async_context(field(names, max(concurrencies), dsns, rtt_ms))}
        if rtt_ms is not None:
            fields[NEAR] = await stack.enter_async_context(field(names, max(concurrencies), None, 0.0))
        contenders = {
            prefix + name: contender
            for prefix, built in fields.items()
            for name, contender in built.contenders.items()
        }
        rounds, transfers = await play(contenders, concurrencies, seconds, output.note)
        played: dict[str, Rounds] = {}
        for prefix, built in fields.items():
            await audit(built, {name: transfers[prefix + name] for name in names})
            played[prefix] = {
                concurrency: [{name: turns[prefix + name] for name in names} for turns in each]
                for concurrency, each in rounds.items()
            }
        connection = await asyncpg.connect(fields[""].dsns[0])
        try:
            version = await connection.fetchval("show server_version")
        finally:
            await connection.close()
    return Figures(
        rows=figures.rows(played[""]),
        ratios=figures.ratios(played[""]),
        rtt_ms=rtt_ms or 0.0,
        round_trips=figures.round_trips(played[""], played[NEAR], rtt_ms) if rtt_ms is not None else [],
        seconds=seconds,
        rounds=rounds_of(seconds, len(contenders))[0],
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
    if done.round_trips:
        output.line()
        output.table(
            ["contender", "concurrency", "p50 ms near", f"p50 ms at {done.rtt_ms:g} ms", "round trips"],
            [(r.contender, r.concurrency, r.p50_near_ms, r.p50_ms, r.trips) for r in done.round_trips],
        )
    output.note(
        f"{done.cores} cores, Python {done.python}, PostgreSQL {done.postgresql}, {done.event_loop}, "
        f"{done.rounds} rounds"
    )
