"""``undoubt ledger move`` as its users run it. Each test's docstring says what breaks if it fails."""

from __future__ import annotations

from pathlib import Path

from tests.servers import Server, fresh_database
from tests.undoubt.cli.harness import Ran, undoubt


def configured(folder: Path, name: str, url: str) -> str:
    file = folder / f"{name}.toml"
    file.write_text(f'[ledger]\nurl = "{url}"\n')
    return str(file)


async def test_a_ledger_is_moved_and_the_old_url_names_the_new_one(tmp_path: Path, postgres: Server) -> None:
    """The command does not move, prints something else than it did, or ends with another status; or the old
    URL does not say where the ledger is."""
    async with fresh_database(postgres, "ledger") as dsn:
        new = dsn.replace("postgresql://", "postgresql+psycopg://")
        old_file = configured(tmp_path, "old", f"sqlite:///{tmp_path}/l.db")
        new_file = configured(tmp_path, "new", new)

        def run(*words: str, config: str = old_file) -> Ran:
            return undoubt(*words, "--config", config, cwd=tmp_path)

        assert run("ledger", "move", "--to", new, "--yes").status == 3
        made = run("ledger", "init", "-o", "json").json
        assert run("ledger", "move").status == 2
        assert run("ledger", "move", "--undo", "--to", new).status == 2
        assert run("ledger", "move", "--to", new).status == 2, "not confirmed"
        assert run("ledger", "move", "--to", "mysql://x", "--yes").status == 2
        undone = run("ledger", "move", "--undo")
        assert (undone.status, "no move" in undone.err) == (1, True)
        planned = run("ledger", "move", "--to", new, "--dry-run", "-o", "json").json
        assert (planned["ledger_id"], planned["sessions"]) == (made["ledger_id"], 0)
        assert (planned["unfinished"], planned["open_sessions"]) == (0, [])
        assert run("ledger", "check").status == 0, "only said"
        moved = run("ledger", "move", "--to", new, "--yes", "--note", "grown", "-o", "json")
        assert moved.status == 0, moved.err
        assert moved.json["ledger_id"] == made["ledger_id"]
        assert moved.json["incarnation"] == 2
        assert moved.json["counts"]["sessions"] == 0
        for words in (
            ("recover", "--once"),
            ("indoubt", "list"),
            ("ledger", "init"),
            ("ledger", "check"),
            ("ledger", "restore", "--yes"),
        ):
            refused = run(*words)
            assert refused.status != 0, words
            assert f"was moved to {moved.json['target']}" in refused.err + refused.out, (words, refused)
        problems = run("ledger", "check", "-o", "json", config=new_file).json["problems"]
        assert not [problem for problem in problems if "fsync" not in problem]
        assert run("recover", "--once", config=new_file).status == 0
        acts = run("audit", "-o", "json", config=new_file)
        assert "ledger move" in acts.out
        assert "grown" in acts.out
