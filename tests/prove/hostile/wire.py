"""HTTP by hand: requests as bytes, also such as no library would send, and the answers to them."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 30.0
BATCH = 16
"""Requests that are on their way at once in one connection (pipelining, RFC 9112 section 9.3.2)."""
PIPELINED = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``raw``, if given, is sent as it is."""

    method: str = "GET"
    path: str = "/livez"
    body: bytes = b""
    token: str | None = None
    host: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes = b""

    def bytes(self, host: str) -> bytes:
        """As it is sent to ``host``."""
        if self.raw:
            return self.raw
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host if self.host is None else self.host}"]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        if self.body or self.method in {"POST", "PUT", "PATCH"}:
            lines.append(f"Content-Length: {len(self.body)}")
        if self.method not in PIPELINED:
            lines.append("Connection: close")
        named = {name.lower() for name, _ in self.headers}
        if self.body and "content-type" not in named:
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + self.body


def post(path: str, body: Any = None, *, token: str | None = None, **headers: str) -> Request:
    """With that JSON, if any."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    raw = b"" if body is None else json.dumps(body).encode()
    return Request("POST", path, raw, token, headers=named)


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` 0: the connection ended without one."""

    status: int
    head: bytes = b""
    body: bytes = b""

    @property
    def name(self) -> str:
        """Of the problem."""
        found = self.json()
        return str(found.get("name", "")) if isinstance(found, dict) else ""

    def json(self) -> Any:
        """None if it is no JSON."""
        with contextlib.suppress(ValueError):
            return json.loads(self.body)
        return None


@dataclass
class Line:
    """One connection."""

    port: int
    takes_bytes: int = 0
    """How much the kernel takes of answers that are not read, if that is set."""
    door: socket.socket = field(init=False)
    _left: bytes = b""
    closed: bool = False
    """The server has ended it, or will."""

    def __post_init__(self) -> None:
        self.door = socket.socket()
        self.door.settimeout(TIMEOUT_S)
        if self.takes_bytes:
            self.door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.takes_bytes)
        self.door.connect(("127.0.0.1", self.port))

    def send(self, data: bytes) -> None:
        """What arrives of it is not told."""
        with contextlib.suppress(OSError):
            self.door.sendall(data)

    def answer(self) -> Answer:
        """The next one."""
        while b"\r\n\r\n" not in self._left:
            if not self._more():
                return Answer(0)
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 100:
            return self.answer()
        size = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
            if name.lower() == b"connection" and value.strip().lower() == b"close":
                self.closed = True
        while len(self._left) < size and self._more():
            pass
        body, self._left = self._left[:size], self._left[size:]
        return Answer(status, head, body)

    def rest(self) -> Iterator[Answer]:
        """Until the server ends the connection, after this side has no more to send."""
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_WR)
        while (answer := self.answer()).status:
            yield answer

    def _more(self) -> bool:
        try:
            data = self.door.recv(262_144)
        except OSError:
            data = b""
        self._left += data
        self.closed = self.closed or not data
        return bool(data)

    def ended(self) -> bool:
        """Whether no more answers come."""
        return self.closed

    def close(self) -> None:
        self.door.close()


def ask(port: int, requests: Sequence[Request]) -> list[Answer]:
    """The answer to each, in pipelined batches. What was sent after an answer that ends the connection is
    sent anew."""
    host = f"127.0.0.1:{port}"
    answers: list[Answer] = []
    while len(answers) < len(requests):
        line = Line(port)
        try:
            while len(answers) < len(requests) and not line.ended():
                batch = requests[len(answers) : len(answers) + BATCH]
                line.send(b"".join(each.bytes(host) for each in batch))
                for each in batch:
                    answer = line.answer()
                    if not answer.status and each is not batch[0]:
                        break  # never read by the server
                    answers.append(answer)
                    if line.ended():
                        break
        finally:
            line.close()
    return answers


def apart(requests: Iterable[Request]) -> list[list[Request]]:
    """HEAD is answered without the body that its answer announces, and after CONNECT no more HTTP may come:
    such requests go alone."""
    together: list[Request] = []
    alone: list[list[Request]] = []
    for each in requests:
        if each.method not in PIPELINED or each.raw:
            alone.append([each])
        else:
            together.append(each)
    return [together, *alone]
