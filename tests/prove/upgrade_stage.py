"""The releases that the proof of upgrades runs, and what runs of them: commands, applications, nodes."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.prove.nodes import CommandFailed, Nodes
from tests.prove.processes import ROOT, Child, Heard, within
from tests.prove.releases import WHEEL

WORKERS = 8
PROGRAM = ROOT / "tests/prove/upgrade_app.py"


class Wrong(Exception):
    """What a step has found."""


class Release(enum.Enum):
    """Both run on this interpreter, with the same packages beside them; the path decides which is
    imported."""

    LAST = "last"
    THIS = "this"

    @property
    def path(self) -> Path:
        return ROOT if self is Release.THIS else _UNPACKED[0]

    @property
    def python(self) -> tuple[str, ...]:
        """A command line that runs Python; ``-P``, since the working folder is not to be imported from."""
        return ("env", f"PYTHONPATH={self.path}", sys.executable, "-P")

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.python, "-m", "undoubt")

    def unpack(self, folder: Path) -> None:
        with zipfile.ZipFile(WHEEL) as wheel:
            wheel.extractall(folder)
        _UNPACKED[:] = [folder]

    async def run(self, folder: Path, settings: dict[str, Any], *arguments: str) -> str:
        """What a command of undoubt prints. Raises ``CommandFailed``."""
        return await _told((*self.command, *arguments, "--config", _configuration(folder, settings)))

    @contextlib.asynccontextmanager
    async def running(
        self, folder: Path, settings: dict[str, Any], *arguments: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A command of undoubt that runs until it is interrupted."""
        process = await asyncio.create_subprocess_exec(
            *self.command, *arguments, "--config", _configuration(folder, settings),
            stdout=asyncio.subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await process.wait()

    async def evaluate(self, program: str, *arguments: str) -> str:
        """What a program in Python prints. Raises ``CommandFailed``."""
        return await _told((*self.python, "-c", program, *arguments))


_UNPACKED: list[Path] = []


async def _told(command: tuple[str, ...]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=_environment()
    )
    async with within(f"the end of {command[-4:]}"):
        out, err = await process.communicate()
    if process.returncode:
        raise CommandFailed(command[-4:], process.returncode, (out + err).decode())
    return out.decode()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("UNDOUBT_")}


def _configuration(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "undoubt.toml"
    path.write_text(_toml(settings))
    return str(path)


def _toml(settings: dict[str, Any], head: str = "") -> str:
    """Tables of strings and numbers, and of such tables."""
    plain = [f"{key} = {json.dumps(one)}" for key, one in settings.items() if not isinstance(one, dict)]
    told = f"[{head}]\n" * bool(head and plain) + "".join(f"{line}\n" for line in plain)
    for key, one in settings.items():
        if isinstance(one, dict):
            told += _toml(one, f"{head}.{key}" if head else key)
    return told


class Application:
    """A process of :mod:`tests.prove.upgrade_app`."""

    def __init__(self, release: Release, child: Child, process: asyncio.subprocess.Process) -> None:
        self._release = release
        self._child = child
        self._process = process
        self._hearing = asyncio.create_task(self._hear())

    @classmethod
    async def start(cls, release: Release, settings: dict[str, Any], tag: str, protocols: str) -> Application:
        process = await asyncio.create_subprocess_exec(
            *release.python, str(PROGRAM), json.dumps(settings), tag, str(WORKERS), protocols,
            stdout=asyncio.subprocess.PIPE, env=_environment(),
        )  # fmt: skip
        return cls(release, Child(process), process)

    @property
    def heard(self) -> Heard:
        return self._child.heard

    async def _hear(self) -> None:
        async for _ in self._child.lines():
            pass

    async def more(self, transfers: int) -> None:
        """Once so many more were acknowledged."""
        before = len(self.heard.acknowledged)
        whose = f"an application of {self._release.value} release"
        try:
            async with within(f"{transfers} transfers of {whose}"):
                while len(self.heard.acknowledged) < before + transfers:
                    if self._hearing.done():
                        raise Wrong(f"{whose} ended: {self.heard.last}")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            got, begun = len(self.heard.acknowledged) - before, len(self.heard.begun)
            last = list(self.heard.why.items())[-3:]
            raise TimeoutError(f"{error}: {got} of them; {begun} begun; last not committed: {last}") from None

    async def enough(self, transfers: int) -> None:
        """After so many more, let it end. Raises :class:`Wrong` if it was told something else than that its
        transfers are committed."""
        await self.more(transfers)
        self._process.send_signal(signal.SIGTERM)
        async with within("the end of an application"):
            await self._hearing
            status = await self._process.wait()
        origin = str(self.heard.last.get("ended"))
        if status or not origin.startswith(str(self._release.path)):
            raise Wrong(f"an application of {self._release.value} release ended with {status}: {origin}")
        if self.heard.why:
            raise Wrong(f"not committed: {dict(list(self.heard.why.items())[:3])}")

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._hearing
        await self._process.wait()


class Cluster(Nodes):
    """Each node is of one of ``releases``. The leader's recovery knows the databases."""

    def __init__(self, folder: Path, release: Release, dsns: dict[str, str]) -> None:
        super().__init__(folder)
        self.releases = dict.fromkeys(self.addresses, release)
        self._participants = _toml({"participants": {name: {"dsn": dsn} for name, dsn in dsns.items()}})

    async def __aenter__(self) -> Self:
        await self.begin()
        await self.start(*self.addresses)
        await self.leading()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def configuration(self, number: int) -> str:
        path = Path(super().configuration(number))
        path.write_text(path.read_text() + self._participants)
        return str(path)

    def tool(self, number: int) -> tuple[str, ...]:
        return self.releases.get(number, Release.THIS).command

    def command(self, number: int) -> tuple[str, ...]:
        return self.tool(number)

    async def joins(self, number: int, release: Release) -> None:
        """A new member, on an empty folder."""
        self.releases[number] = release
        await self.run(number, "cluster", "add")
        await self.start(number)
        await self.run(0, "cluster", "promote", str(number))

    async def leaves(self, number: int) -> None:
        await self.run(0, "cluster", "remove", str(number), "--yes")
        await self.end(number, signal_=signal.SIGTERM)
