"""The command line as such: what it imports, how it fails, what it completes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import undoubt as package
from tests.undoubt.cli.harness import COMMAND, REPOSITORY, environment, undoubt
from undoubt.cli import main
from undoubt.cli.root import COMMANDS, LazyCommand, root


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_version_and_help_on_stdout() -> None:
    assert undoubt("--version").out == f"undoubt {package.__version__}\n"
    shown = undoubt("--help")
    assert shown.status == 0
    assert all(f"\n  {name} " in shown.out for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    """`undoubt --help` and every TAB would take a quarter of a second longer with SQLAlchemy alone."""
    code = (
        "import sys\nfrom undoubt.cli import main\n"
        "try:\n main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'sqlalchemy', 'alembic', 'asyncpg', 'psycopg', 'rich', 'starlette', 'uvicorn'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == "[]\n"


def test_every_command_of_the_table_exists_and_its_help_has_an_example() -> None:
    found = dict(commands(root))
    assert {path[0] for path in found} == set(COMMANDS)
    lacking = [" ".join(path) for path, command in found.items() if "Example:" not in (command.help or "")]
    assert lacking == []


def test_every_command_takes_the_common_flags() -> None:
    """`-o json` at the end of any command: where it is refused, scripts need a special case."""
    lacking = [
        " ".join(path)
        for path, command in commands(root)
        if not isinstance(command, click.Group) and path != ("demo",)
        for flag in ("--output", "--config", "--debug")
        if not any(flag in option.opts for option in command.params)
    ]
    assert lacking == []


@pytest.mark.parametrize(
    "args",
    [
        ("frobnicate",),
        ("tx", "show"),
        ("tx", "show", "nonsense"),
        ("tx", "list", "--limit", "0"),
        ("--wrong",),
    ],
)
def test_usage_errors_exit_2_and_say_so_on_stderr(args: tuple[str, ...]) -> None:
    ran = undoubt(*args)
    assert (ran.status, ran.out) == (2, "")
    assert "Usage: undoubt" in ran.err


def test_flags_stand_before_or_after_the_command(tmp_path: Path) -> None:
    file = tmp_path / "undoubt.toml"
    file.write_text("[participants.orders]\ndsn = 'dbname=orders'\n")
    before = undoubt("-o", "json", "--config", str(file), "participants", "list")
    after = undoubt("participants", "list", "-o", "json", "--config", str(file))
    later_wins = undoubt("-o", "table", "participants", "list", "-o", "json", "--config", str(file))
    assert before.json == after.json == later_wins.json
    assert [one["name"] for one in before.json] == ["orders"]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A command with a bug in it."""

    @click.command()
    def command() -> None:
        raise KeyError("an inner \x1b[31msecret")

    module = type(sys)("undoubt_broken_command")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "broken", LazyCommand(module.__name__, "command", "Fails."))
    return "broken"


def test_an_unexpected_error_is_one_line_and_a_way_out(
    broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback tells a user nothing, and shows locals' values of who knows what."""
    with pytest.raises(SystemExit) as caught:
        main([broken])
    shown = capsys.readouterr()
    assert caught.value.code == 1
    assert "Traceback" not in shown.err
    assert "KeyError" in shown.err
    assert "--debug" in shown.err
    assert "\x1b" not in shown.err
    assert shown.out == ""


def test_debug_shows_the_traceback(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--debug", broken])
    assert caught.value.code == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_configuration_error_is_one_line_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "undoubt.toml").write_text("[participants.orders]\ndns = 'x'\n")
    ran = undoubt("participants", "list", cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("undoubt: unknown key participants.orders.dns")
    assert ran.err.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error_message(tmp_path: Path) -> None:
    """`undoubt … | head -1` must not end in a traceback."""
    lines = "\n".join(f"[participants.p{i}]\ndsn = '{'x' * 200}'" for i in range(2_000))
    (tmp_path / "undoubt.toml").write_text(lines)
    process = subprocess.Popen(
        [*COMMAND, "participants", "list"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# ------------------------------------------------------------------------------------------ completion


@pytest.fixture
def on_path(tmp_path: Path) -> str:
    """A PATH on which ``undoubt`` is this source tree's."""
    script = tmp_path / "bin" / "undoubt"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom undoubt.cli import main\nmain()\n")
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", set(COMMANDS)),
        ("in", {"indoubt"}),
        ("tx ", {"list", "show", "resolve"}),
        ("tx list -o j", {"json"}),
        ("completion f", {"fish"}),
    ],
)
def test_completion_works_in_a_real_bash(on_path: str, typed: str, offered: set[str]) -> None:
    """The script is sourced, the completion function called as bash calls it."""
    words = ["undoubt", *typed.split(" ")]
    script = (
        "source <(undoubt completion bash) || exit 9; "
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        "_undoubt_completion undoubt; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment({"PATH": on_path}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef undoubt"), ("fish", "complete --no-files")])
def test_completion_for_other_shells(shell: str, mark: str) -> None:
    ran = undoubt("completion", shell)
    assert ran.status == 0
    assert mark in ran.out
    assert undoubt("completion", env={"SHELL": f"/usr/bin/{shell}"}).out == ran.out


def test_completion_for_an_unknown_shell_is_a_usage_error() -> None:
    assert undoubt("completion", env={"SHELL": "/bin/tcsh"}).status == 2
    assert undoubt("completion", "tcsh").status == 2


# ------------------------------------------------------------------------------------------ a terminal


def on_terminal(*args: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The output of a run whose stdout is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        cwd=cwd,
        env=environment({"TERM": "xterm", "COLUMNS": "100"} | (env or {})),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    read = bytearray()
    with os.fdopen(ours, "rb", buffering=0) as terminal, process:
        while True:
            try:
                chunk = terminal.read(4096)
            except OSError:  # EIO: the other end is closed
                break
            if not chunk:
                break
            read += chunk
    assert process.returncode == 0
    return read.decode()


def test_colour_on_a_terminal_and_none_with_no_color(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    (tmp_path / "undoubt.toml").write_text("[participants.orders]\ndsn = 'dbname=orders'\n")
    assert "\x1b[" in on_terminal("participants", "list", cwd=tmp_path)
    plain = on_terminal("participants", "list", cwd=tmp_path, env={"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert "orders" in plain


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    """The command is stopped while it waits for its configuration, which is a pipe nobody writes to."""
    fifo = tmp_path / "undoubt.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*COMMAND, "participants", "list"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    writer = os.open(fifo, os.O_WRONLY)  # returns once the command has opened it to read
    try:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        os.close(writer)
    assert (process.returncode, out, err.strip()) == (130, "", "undoubt: interrupted")


def test_the_harness_runs_this_tree() -> None:
    """Else all of the above would test some installed undoubt."""
    done = subprocess.run(
        [sys.executable, "-c", "import undoubt; print(undoubt.__file__)"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(done.stdout.strip()) == REPOSITORY / "undoubt" / "__init__.py"
