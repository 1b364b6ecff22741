"""Which of the server's messages a lent connection keeps, and which its driver gets, wherever the network
cuts them."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from undoubt.participants.postgres.asyncpg.line import SYNC, Line
from undoubt.participants.postgres.session import (
    AnswerTimedOut,
    NoAnswer,
    ServerError,
    Step,
    standby_warning,
)

KINDS = ("asyncpg",)
WAYS = ("",)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


def error(severity: str, code: str = "22012") -> bytes:
    return message(b"E", f"S{severity}\0V{severity}\0C{code}\0Mno\0\0".encode())


PARAMETER = message(b"S", b"application_name\0x\0")
NOTICE = message(b"N", b"SWARNING\0VWARNING\0C01000\0Mlook\0Fsyncrep.c\0\0")
NOTIFICATION = message(b"A", (5).to_bytes(4) + b"channel\0payload\0")
ASYNCHRONOUS = [PARAMETER, NOTICE, NOTIFICATION]
ROW = message(b"D", (2).to_bytes(2) + (1).to_bytes(4) + b"7" + (2**32 - 1).to_bytes(4))
DONE = message(b"1") + message(b"2")
READY, IN_TRANSACTION = message(b"Z", b"I"), message(b"Z", b"T")


class Driver:
    """asyncpg's protocol and transport: what they are told. ``busy`` is what its own check says."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.calls: list[str] = []
        self.written: list[bytes] = []
        self.busy = False
        self._protocol = self

    # The connection.
    @property
    def _transport(self) -> Driver:
        return self

    def is_in_transaction(self) -> bool:
        return True

    # The transport.
    def get_protocol(self) -> Driver:
        return self

    def set_protocol(self, protocol: Any) -> None:
        """The line is called directly."""

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return "abort" in self.calls

    def abort(self) -> None:
        self.calls.append("abort")

    # The protocol.
    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    async def close_statement(self, *_: Any) -> None:
        raise asyncpg.InterfaceError("busy") if self.busy else asyncpg.InternalClientError("in use")

    def __getattr__(self, name: str) -> Any:
        if name not in {"eof_received", "connection_lost", "pause_writing", "resume_writing"}:
            raise AttributeError(name)
        return lambda *_: self.calls.append(name)


def lent() -> tuple[Driver, Line]:
    driver = Driver()
    line = Line(driver)
    line.data_received(READY)
    driver.heard.clear()
    return driver, line


TWO = [Step("select 7, null", keep=True), Step("commit")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 1000])
async def test_answers_cut_anywhere(size: int) -> None:
    """Asynchronous messages reach the driver, whole and in their order; the answers are the line's."""
    driver, line = lent()
    [answers, behind] = line.send([TWO, [Step("reset all")]], 5)
    row, tag = ROW, message(b"C", b"SELECT 1\0")
    parts = [
        PARAMETER,
        DONE,
        NOTICE,
        row,
        tag,
        NOTIFICATION,
        DONE,
        message(b"C", b"COMMIT\0"),
        IN_TRANSACTION,
    ]
    parts += [DONE, PARAMETER, message(b"C", b"RESET\0"), READY]
    stream = b"".join(parts)
    for at in range(0, len(stream), size):
        line.data_received(stream[at : at + size])
    got = await answers
    assert (got.tags, got.rows) == (["SELECT 1", "COMMIT"], [[("7", None)], []])
    assert standby_warning(got.notices) is not None
    await behind
    assert driver.heard == [*ASYNCHRONOUS, PARAMETER]
    assert not line.in_transaction
    assert line.clean
    line.data_received(NOTICE[:3])
    assert driver.heard[-1] == NOTICE[:3], "what comes to a connection that is not lent is the driver's"
    assert not line.clean


@pytest.mark.parametrize("size", [1, 4, 9, 1000])
async def test_prefix_is_taken_out_of_what_the_driver_gets(size: int) -> None:
    driver, line = lent()
    line.hold([Step("begin"), Step("set local a.b = 'c'")])
    line.data_received(NOTIFICATION[:6])
    assert driver.heard == [], "a part of a message would be read as the head of an answer later"
    line.send_held()
    assert len(driver.written) == 1
    assert not driver.written[0].endswith(SYNC)
    theirs = message(b"C", b"UPDATE 1\0") + IN_TRANSACTION
    ours = DONE + message(b"C", b"BEGIN\0") + DONE + message(b"C", b"SET\0")
    stream = NOTIFICATION[6:] + ours + theirs
    for at in range(0, len(stream), size):
        line.data_received(stream[at : at + size])
    assert b"".join(driver.heard) == NOTIFICATION + theirs
    assert driver.heard[0] == NOTIFICATION


@pytest.mark.parametrize("severity", ["ERROR", "FATAL"])
async def test_prefix_that_fails(severity: str) -> None:
    """The driver hears the error, and an end where the server gives none; nothing else ever."""
    driver, line = lent()
    line.hold([Step("begin")])
    line.send_held()
    driver.busy = True
    line.data_received(error(severity) + READY)
    assert line.failed_begin is not None
    assert driver.heard == [error(severity), *([READY] if severity == "ERROR" else [])]
    assert driver.calls == ["abort"]
    line.data_received(READY)
    assert driver.heard[-1] in {READY, error(severity)}
    assert len(driver.heard) == (2 if severity == "ERROR" else 1)


async def test_prefix_that_fails_before_there_is_a_statement() -> None:
    """An idle driver takes an error and a ReadyForQuery for a fault of its own."""
    driver, line = lent()
    line.hold([Step("begin")])
    line.send_held()
    line.data_received(error("ERROR"))
    assert line.failed_begin is not None
    assert (driver.heard, driver.calls) == ([], ["abort"])


@pytest.mark.parametrize("size", [1, 6, 1000])
async def test_end_of_the_session_while_a_prefix_is_held(size: int) -> None:
    """The driver hears why; and no statement is sent whose begin was dropped."""
    driver, line = lent()
    line.hold([Step("begin")])
    stream = NOTICE + error("FATAL", "57P01")
    for at in range(0, len(stream), size):
        line.data_received(stream[at : at + size])
    assert driver.heard == [NOTICE, error("FATAL", "57P01")]
    assert line.end is not None
    assert line.end.sqlstate == "57P01"
    assert driver.calls == ["abort"]
    line.send_held()
    assert driver.written == []


async def test_calls_of_the_transport_reach_the_driver() -> None:
    driver, line = lent()
    [answers] = line.send([TWO], 5)
    line.pause_writing()
    line.resume_writing()
    line.eof_received()
    line.connection_lost(None)
    assert driver.calls == ["pause_writing", "resume_writing", "eof_received", "connection_lost"]
    with pytest.raises(NoAnswer):
        await answers


async def test_errors_and_kept_statements() -> None:
    """A statement is kept once the server has said so; after 26000 nothing is."""
    driver, line = lent()
    [first] = line.send([TWO], 5)
    line.data_received(error("ERROR") + READY)
    with pytest.raises(ServerError, match="no"):
        await first
    [second] = line.send([TWO], 5)
    line.data_received(DONE + ROW + message(b"C", b"SELECT 1\0") + DONE + message(b"C", b"COMMIT\0") + READY)
    await second
    written = [data.count(b"select 7") for data in driver.written]
    assert written == [1, 1]
    [third] = line.send([TWO], 5)
    assert b"select 7" not in driver.written[-1]
    line.data_received(error("ERROR", "26000") + READY)
    with pytest.raises(ServerError):
        await third
    line.send([TWO], 5)
    assert b"select 7" in driver.written[-1]


@pytest.mark.parametrize(
    "odd", [message(b"G", b"\0\0\0"), b"C\0\0\0\1", message(b"D", b"\0"), DONE * 2 + READY]
)
async def test_answer_that_cannot_be(odd: bytes) -> None:
    """It is no answer, never a wrong one."""
    _, line = lent()
    [answers] = line.send([TWO], 5)
    line.data_received(odd)
    line.connection_lost(None)
    with pytest.raises(NoAnswer):
        await answers


async def test_late() -> None:
    """One timer serves all; an earlier deadline that comes later is kept as well."""
    _, line = lent()
    [slow] = line.send([TWO], 60)
    [fast] = line.send([TWO], 0.01)
    with pytest.raises(AnswerTimedOut):
        await fast
    assert not slow.done()
    line.give_up(NoAnswer("closed"))
    with pytest.raises(NoAnswer):
        await slow
    await asyncio.sleep(0)
