"""The console in a real Chromium, over real databases, nodes and a sidecar: every state of its page.

Each state is made for real (a database is killed, nodes stop, a branch waits for another one, roles and
programs plant scripts in names), then looked at in four windows: light and dark, 360 and 1440 pixels wide;
some also in two of 3840 pixels. In each, axe-core has to find nothing, the browser's console has to stay
without errors, the policy has to be kept, no planted script may run, and no text may be cut. Photographs
go to ``--photos FOLDER``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from tests.prove.console_stage import System, system
from tests.prove.console_states import STATES, Scene
from tests.prove.control import control
from tests.undoubt.console.browser import Opened, chromium, opened, photograph
from tests.undoubt.sidecar.stage import token

PLANTED = ("console-html-from-names",)
WINDOWS = [(1440, False), (1440, True), (360, False), (360, True)]
LARGE = [(3840, False), (3840, True)]
HEIGHT = {1440: 900, 360: 740, 3840: 2160}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", type=Path, help="where photographs go")
    parser.add_argument("--only", nargs="*", help="states of these names only")
    parser.add_argument("--no-control", action="store_true")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    found = Found()
    async with system() as stage, chromium() as browser:
        await _states(stage, browser, options, found)
    result: dict[str, Any] = {
        "states": len(found.states),
        "photographs": found.photographs,
        "axe_violations": len(found.axe),
        "console_errors": len(found.errors),
        "csp_violations": len(found.policy),
        "scripts_run": len(found.ran),
        "clipped": len(found.clipped),
        "missing": found.missing,
        "failures": [*found.axe, *found.errors, *found.policy, *found.ran, *found.clipped][:20],
    }
    holds = not result["failures"] and not found.missing and (bool(options.only) or len(found.states) >= 24)
    if not options.no_control:
        planted = await control(
            "console", "--no-control", "--only", "planted", mutants=PLANTED, timeout_s=300.0
        )
        result["control"] = planted.result["scripts_run"]
        holds = holds and result["control"] >= 1
    return result, holds


@dataclass
class Found:
    """``clipped``: texts that cannot be read as a whole. ``missing``: texts that a state should have
    shown."""

    states: list[str] = field(default_factory=list)
    photographs: int = 0
    axe: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    policy: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


async def _states(stage: System, browser: Browser, options: argparse.Namespace, found: Found) -> None:
    scene = Scene(stage)
    for state in STATES:
        wanted = not options.only or state.name in options.only
        if wanted or state.always:
            await state.prepare(scene)
        if not wanted:
            continue
        found.states.append(state.name)
        for width, dark in [*WINDOWS, *(LARGE if state.large else [])]:
            window = f"{state.name} {width} {'dark' if dark else 'light'}"
            print(window, file=sys.stderr)
            try:
                async with _window(stage, browser, width, dark, node=state.on_node) as seen:
                    if state.client:
                        await seen.sign_in(token(state.client))
                    await state.show(scene, seen)
                    for text in state.texts:
                        await _wait(seen.page, text(scene) if callable(text) else text)
                    await _look(seen, window, found, options.photos)
            except Exception as error:  # noqa: BLE001 - the other states are looked at all the same
                found.missing.append(f"{window}: {type(error).__name__}: {str(error)[:300]}")
        await state.undo(scene)


@contextlib.asynccontextmanager
async def _window(
    stage: System, browser: Browser, width: int, dark: bool, *, node: bool
) -> AsyncIterator[Opened]:
    base = stage.node_base if node else stage.base
    async with opened(browser, base, width=width, height=HEIGHT[width], dark=dark) as seen:
        yield seen


async def _wait(page: Page, text: str) -> None:
    # The first one may be the title of a shape, which is only seen when it is pointed at.
    await page.get_by_text(text).locator("visible=true").first.wait_for()


async def _look(seen: Opened, window: str, found: Found, photos: Path | None) -> None:
    found.axe += [f"{window}: {each}" for each in await seen.violations()]
    found.errors += [f"{window}: {each}" for each in seen.errors]
    found.policy += [f"{window}: {each}" for each in await seen.refused()]
    found.ran += [f"{window}: {each}" for each in await seen.planted()]
    found.clipped += [f"{window}: {each}" for each in await seen.clipped()]
    wide = await seen.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    if wide:
        found.missing.append(f"{window}: it scrolls sideways")
    found.photographs += 1
    if photos is not None:
        await photograph(seen.page, photos / f"{window.replace(' ', '-')}.png")
