"""What the pages and the examples tell a newcomer to run, runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.docs.pages import ROOT, Block, programs

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


async def run(*arguments: str, cwd: Path) -> str:
    """stdout of a Python that sees the project and nothing else of ours."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNDOUBT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


SHOPPING = [block for block, printed in programs() if printed is None]
TOLD = [(block, printed) for block, printed in programs() if printed is not None]


@pytest.mark.parametrize("block", SHOPPING, ids=str)
async def test_the_programs_of_the_pages_run(block: Block, shop: Path, databases: dict[str, str]) -> None:
    """The first program that a newcomer copies must place an order and have it paid."""
    (shop / "program.py").write_text(block.text)
    await run("program.py", cwd=shop)
    assert await ask(databases["orders"], "select count(*) from orders") in {1, 2}
    assert await ask(databases["payments"], "select balance from accounts") in {85, 50}


@pytest.mark.parametrize(("block", "printed"), TOLD, ids=str)
async def test_the_programs_print_what_the_page_says(block: Block, printed: str, shop: Path) -> None:
    """A page that shows another outcome than the program's teaches the wrong thing."""
    (shop / "program.py").write_text(block.text)
    assert await run("program.py", cwd=shop) == printed


def test_programs_are_found() -> None:
    """Without any, the tests above would prove nothing."""
    assert len(SHOPPING) >= 2
    assert len(TOLD) >= 4


async def test_quickstart(shop: Path, databases: dict[str, str]) -> None:
    """examples/quickstart.py says that it is placed and paid: it must be."""
    assert await run(str(ROOT / "examples/quickstart.py"), cwd=shop) == "order 1 is placed and paid\n"
    assert await ask(databases["orders"], "select item from orders") == "a teapot"
    assert await ask(databases["payments"], "select balance from accounts") == 70


async def test_outcomes(shop: Path, databases: dict[str, str]) -> None:
    """A refused payment must leave no order."""
    assert await run(str(ROOT / "examples/outcomes.py"), cwd=shop) == "committed\nrefused\n"
    assert await ask(databases["orders"], "select count(*) from orders") == 1
    assert await ask(databases["payments"], "select balance from accounts") == 80


async def test_own_participants(shop: Path) -> None:
    """Settings from code, and a database that joins while the system runs."""
    out = await run(str(ROOT / "examples/own_participants.py"), cwd=shop)
    assert [line.split()[0] for line in out.splitlines()] == ["orders", "payments", "left:"]
    assert out.endswith("left: orders\n")


def test_every_example_is_tested_and_listed() -> None:
    """An example that nobody runs is wrong one day."""
    tested = {name.removeprefix("test_") for name in globals()}
    listed = (ROOT / "examples/README.md").read_text()
    assert EXAMPLES
    for example in EXAMPLES:
        assert example.stem in tested
        assert f"]({example.name})" in listed
