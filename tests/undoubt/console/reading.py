"""Reads the stream of events as a program does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.undoubt.sidecar.stage import token

STREAM = "/v1/console/events"


@asynccontextmanager
async def client(base: str, name: str | None = "watcher", **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    shown = {} if name is None else {"Authorization": f"Bearer {token(name)}"}
    async with httpx.AsyncClient(base_url=base, headers={**shown, **headers}, timeout=30) as made:
        yield made


@dataclass
class Reader:
    """What the stream has said so far, as the page keeps it."""

    lines: AsyncIterator[str]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    beats: int = 0
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What was told of branches, event by event."""

    async def event(self) -> str:
        """Take one event; its name. Raises ``StopAsyncIteration`` at the end of the stream."""
        name = ""
        while not name:
            line = await anext(self.lines)
            name = line.removeprefix("event: ") if line.startswith("event: ") else ""
        data = json.loads((await anext(self.lines)).removeprefix("data: "))
        if name == "rows":
            self.rows |= {row["id"]: row for row in data["rows"]}
        elif name.startswith("participant "):
            self.changes.append(data["branches"])
            known = self.lists.setdefault(name, {})
            for gone in data["branches"]["gone"]:
                del known[gone]
            known |= data["branches"]["changed"]
            self.parts[name] = data | {"branches": [*known.values()]}
        else:
            self.parts[name] = data
        self.beats += name == "beat"
        return name

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            await self.event()

    async def to_the_end(self) -> None:
        """Read until the server ends the stream."""
        try:
            while True:
                await self.event()
        except StopAsyncIteration:
            return


@asynccontextmanager
async def reading(base: str, name: str = "watcher") -> AsyncIterator[Reader]:
    async with client(base, name) as http, http.stream("GET", STREAM) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Reader(answer.aiter_lines())
