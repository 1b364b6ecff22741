"""The dashboard: Prometheus reads the metrics of a system that works, and answers each of its queries.

The same metrics have to be those of docs/monitoring.md, no more and no fewer, and have to include those that
the alerts ask for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml

from tests.house.tree import ROOT
from tests.ports import free_ports
from tests.prove.console_stage import NAMES, NODE, System, begin, system, transfer
from tests.prove.deploy.planted import Fault, judged
from tests.prove.processes import within
from tests.undoubt.sidecar.stage import token
from undoubt.serve.local.nodes import QUICK

FILE, RULES = "grafana/undoubt.json", "prometheus/undoubt.rules.yaml"
PAGE = ROOT / "docs/monitoring.md"
LOOK_S = 0.3
TRANSFERS = 10
VARIABLES = {"$__rate_interval": "5m", "$__range": "5m", "$participant": ".*"}
FAULTS = (
    Fault(
        FILE,
        "sum by (outcome) (rate(undoubt_transactions_total",
        "sum by (outcome) (rate(undoubt_transaction_total",
        "there is no metric undoubt_transaction_total",
    ),
    Fault(FILE, '"expr": "undoubt_node_leads"', '"expr": "undoubt_node_leads)"', "parse error"),
    Fault(
        FILE,
        "max by (participant) (undoubt_in_doubt_oldest",
        'max by (participant) (undoubt_in_doubt_branches{participant=\\"x\\"} * undoubt_in_doubt_oldest',
        "no data",
    ),
    Fault(
        FILE,
        "changes(undoubt_node_term[$__rate_interval])",
        "changes(undoubt_node_term[$__rate])",
        "there is no variable ['$__rate']",
    ),
    Fault(FILE, '"uid": "undoubt"', '"uid": ""', "no uid"),
    Fault(RULES, "sum(undoubt_node_leads)", "sum(undoubt_node_leading)", "no metric undoubt_node_leading"),
)
PAGE_FAULT = ("`undoubt_node_term`", "`undoubt_node_terms`")
CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: nodes
    static_configs: [{{targets: [{nodes}]}}]
  - job_name: sidecar
    authorization: {{credentials: {token}}}
    static_configs: [{{targets: ["{sidecar}"]}}]
"""


def why_not() -> str | None:
    return None if shutil.which("prometheus") else "prometheus is not installed: apt install prometheus"


async def main() -> list[str]:
    async with measured() as prometheus:

        async def find(place: Path) -> list[str]:
            return await wrong(place / FILE, prometheus) + _wrong_alerts(place / RULES, prometheus.names)

        found = await judged(find, FAULTS)
        page = PAGE.read_text()
        found += _wrong_page(page, prometheus.names)
        if len(_wrong_page(page.replace(*PAGE_FAULT), prometheus.names)) != 2:
            found.append(f"a metric that {PAGE.name} misspells is not found")
        return found


def _wrong_alerts(path: Path, names: frozenset[str]) -> list[str]:
    [group] = yaml.safe_load(path.read_text())["groups"]
    asked = {name for rule in group["rules"] for name in re.findall(r"\bundoubt_\w+", rule["expr"])}
    return [f"{path.name}: there is no metric {name}" for name in sorted(asked - names)]


def _wrong_page(text: str, names: frozenset[str]) -> list[str]:
    """What the page names, and the system does not have, and the other way round."""
    named = set(re.findall(r"^\| `(undoubt_\w+)`", text, re.MULTILINE))
    # Of each counter and histogram the client's library also tells when it was made.
    shown = {name for name in names if not name.endswith(("_bucket", "_created"))}
    return [f"{PAGE.name} has no {name}" for name in sorted(shown - named)] + [
        f"{PAGE.name} has {name}, which there is not" for name in sorted(named - shown)
    ]


@dataclass
class Prometheus:
    """A server that has read the metrics of a system. ``names``: of all metrics there."""

    http: httpx.AsyncClient
    names: frozenset[str]

    async def ask(self, query: str) -> list[Any] | str:
        """The samples, or why there are none."""
        answer = (await self.http.get("/api/v1/query", params={"query": query})).json()
        return answer["data"]["result"] if answer["status"] == "success" else str(answer["error"])


async def wrong(path: Path, prometheus: Prometheus) -> list[str]:
    """What is wrong with a dashboard."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        return [str(error)]
    found = [f"no {key}" for key in ("uid", "title", "schemaVersion", "panels") if not document.get(key)]
    panels = document["panels"]
    found += _misplaced(panels)
    known = {"datasource", *(each["name"] for each in document["templating"]["list"])}
    for panel in panels:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for metric in set(re.findall(r"undoubt_\w+", query)) - prometheus.names:
                found.append(f"{panel['title']}: there is no metric {metric}")
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            if left := re.findall(r"\$\w+", query):
                found.append(f"{panel['title']}: there is no variable {left}")
                continue
            samples = await prometheus.ask(query)
            if isinstance(samples, str):
                found.append(f"{panel['title']}: {samples}")
            elif not samples:
                found.append(f"{panel['title']}: no data")
    for text in (json.dumps(panels), json.dumps(document["templating"])):
        used = set(re.findall(r"\$\{?([a-z]\w*)", text))
        found += [f"there is no variable {name}" for name in sorted(used - known)]
    return found


def _misplaced(panels: list[Any]) -> list[str]:
    """Panels that share an id or a place."""
    ids = [panel["id"] for panel in panels]
    taken: dict[tuple[int, int], str] = {}
    found = [] if len(ids) == len(set(ids)) else ["panels share an id"]
    for panel in panels:
        at = panel["gridPos"]
        for spot in (
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        ):
            if spot in taken or spot[0] >= 24:
                found.append(f"{panel['title']} lies on {taken.get(spot, 'the edge')}")
                break
            taken[spot] = panel["title"]
    return found


@contextlib.asynccontextmanager
async def measured() -> AsyncIterator[Prometheus]:
    """Prometheus beside a system in which transactions were committed, aborted, and left in doubt."""
    async with system() as whole, contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-prometheus-")))
        port, *ports = free_ports(4)
        await _with_health(whole, ports)
        config = folder / "prometheus.yml"
        config.write_text(
            CONFIG.format(
                nodes=", ".join(f'"127.0.0.1:{each}"' for each in ports),
                token=token("watcher"),
                sidecar=whole.base.removeprefix("http://"),
            )
        )
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        stack.push_async_callback(_ended, process)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        )
        await _read(http, "count(count_over_time(up[1m]) >= 2 and up == 1)", 4)
        await _work(whole)
        # Series that begin with the work: a rate needs two samples of each.
        for metric in ("undoubt_transactions_total", "undoubt_transaction_phase_seconds_bucket"):
            await _read(http, f"count(min(count_over_time({metric}[5m])) >= 2)", 1)
        yield Prometheus(http, await _names(http, whole, ports))


async def _with_health(whole: System, ports: list[int]) -> None:
    """Start the nodes again, each with an address for its health."""
    for number, port in enumerate(ports, 1):
        await whole.nodes.kill(number)
        config = whole.folder / f"node-{number}.toml"
        config.write_text(config.read_text().replace(QUICK, f'{QUICK}health = "127.0.0.1:{port}"\n'))
        await whole.nodes.run(number)
    await whole.nodes.leader()
    assert NODE in whole.nodes.pids


async def _read(http: httpx.AsyncClient, asked: str, least: int) -> None:
    """Wait until the answer to ``asked`` is at least ``least``."""
    query = {"query": asked}
    async with within("prometheus reads all metrics"):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = (await http.get("/api/v1/query", params=query)).json()
                if answer["data"]["result"] and int(answer["data"]["result"][0]["value"][1]) >= least:
                    return
            await asyncio.sleep(LOOK_S)


async def _work(whole: System) -> None:
    """Commits, an abort, and one branch that its service leaves in doubt for recovery to roll back."""
    async with whole.http() as http:
        for row in range(1, TRANSFERS + 1):
            (
                await http.post(f"/v1/transactions/{await begin(http, *transfer(row))}/commit")
            ).raise_for_status()
        await http.post(f"/v1/transactions/{await begin(http, *transfer(1))}/rollback")
        left = await begin(http, timeout_s=2.0)
        announced = await http.post(f"/v1/transactions/{left}/branches", json={"participant": NAMES[0]})
        async with await psycopg.AsyncConnection.connect(whole.dsns[NAMES[0]], autocommit=True) as connection:
            for statement in (announced.json()["begin"], "select 1", announced.json()["prepare"]):
                await connection.execute(statement)


async def _names(http: httpx.AsyncClient, whole: System, ports: list[int]) -> frozenset[str]:
    """Of the metrics that the system shows, once Prometheus has read what was done."""
    async with within("prometheus has read what was done"):
        query = {"query": f'sum(undoubt_transactions_total{{outcome="committed"}}) >= {TRANSFERS}'}
        while not (await http.get("/api/v1/query", params=query)).json()["data"]["result"]:
            await asyncio.sleep(LOOK_S)
    texts = [(await http.get(f"http://127.0.0.1:{port}/metrics")).text for port in ports]
    async with whole.http("watcher") as watcher:
        texts.append((await watcher.get("/metrics")).text)
    kinds = re.findall(r"^# TYPE (undoubt_\w+) (\w+)$", "\n".join(texts), re.MULTILINE)
    names = {name for name, _ in kinds}
    return frozenset(names | {f"{name}_bucket" for name, kind in kinds if kind == "histogram"})


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
