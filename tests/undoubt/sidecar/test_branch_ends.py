"""Statements that would end their branch: none is sent. PostgreSQL manual, "Lexical Structure"."""

from __future__ import annotations

import pytest

from tests.undoubt.sidecar.stage import Stage, value
from undoubt.participants.errors import UsageError
from undoubt.serve.sidecar.branch_ends import check_keeps_branch, first_words

ENDS = [
    "commit",
    "COMMIT WORK",
    " \t\n\r\f\vEnd",
    "; ;abort",
    "rollback",
    "rollback and chain",
    "rollback transaction",
    "commit and chain",
    "prepare transaction 'x'",
    "PREPARE/**/TRANSACTION 'x'",
    "-- x\ncommit",
    "--x\rcommit",
    "/* /* ; */ */commit",
    "/*'*/end/*'*/",
]
KEEPS = [
    "rollback to one",
    "rollback work to savepoint one",
    "ROLLBACK/* */TO one",
    "savepoint commit",
    "select 1 -- commit",
    "prepare x as select 1",
    "-- commit",
    "/* commit",
    "/* x */ select 1",
    "",
    "'commit'",
    '"commit"',
    "committed",
    "(select 1)",
]


@pytest.mark.parametrize("sql", ENDS)
def test_it_would_end_the_branch(sql: str) -> None:
    with pytest.raises(UsageError, match="would end the branch"):
        check_keeps_branch(sql)


@pytest.mark.parametrize("sql", KEEPS)
def test_it_keeps_the_branch(sql: str) -> None:
    check_keeps_branch(sql)


@pytest.mark.parametrize("sql", ["commit prepared 'x'", "Rollback /* */ Prepared 'x'"])
def test_it_would_end_another(sql: str) -> None:
    """Broken if who writes it is told of savepoints and of the end of a branch."""
    with pytest.raises(UsageError, match="PREPARED would end another prepared transaction"):
        check_keeps_branch(sql)


def test_the_server_reads_the_same_words() -> None:
    assert first_words("/* a */ Rollback\n--\nTo;one", 3) == ["ROLLBACK", "TO", "ONE"]


@pytest.mark.parametrize("sql", ["commit", "; commit", "prepare transaction 'of a client'"])
def test_a_branch_is_not_committed_alone(stage: Stage, sql: str) -> None:
    """Broken if a part of a transaction is committed, or stays prepared, whatever becomes of the rest."""
    before = value(stage.databases["orders"], "select balance from account where id = 500")
    work = stage.tcp().begin()
    work.run("update account set balance = balance + 1 where id = 500")
    answer = work.sql(sql)
    assert (answer.status_code, answer.json()["name"]) == (422, "UsageError")
    assert work.run("select 1")["rows"] == [[1]]
    assert work.rollback().status_code == 200
    assert value(stage.databases["orders"], "select balance from account where id = 500") == before
    assert (
        value(stage.databases["orders"], "select count(*) from pg_prepared_xacts where gid = 'of a client'")
        == 0
    )
