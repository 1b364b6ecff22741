"""A receiver of webhooks that fails at random: it refuses, it forgets to answer, it answers an error although
it has the message. Arguments: its port, and the file in which it notes each message before it answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

REFUSES, FAILS_AFTERWARDS, HANGS_UP = 0.1, 0.05, 0.05
OK, ERROR = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"


class Receiver:
    """Notes messages in ``file``, open for appending."""

    def __init__(self, file: int) -> None:
        self._file = file

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
                pairs = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
                headers = {name.lower(): value for name, value in pairs}
                body = await reader.readexactly(int(headers["content-length"]))
                writer.write(answer := await self._answer(headers, body))
                await writer.drain()
                if not answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _answer(self, headers: dict[str, str], body: bytes) -> bytes:
        await asyncio.sleep(random.random() * 0.004)
        chance = random.random()
        if chance < REFUSES:
            return ERROR
        answer = OK
        if chance < REFUSES + FAILS_AFTERWARDS:
            answer = ERROR
        elif chance < REFUSES + FAILS_AFTERWARDS + HANGS_UP:
            answer = b""
        note = {
            "id": headers["undoubt-dedupe-id"],
            "key": headers["undoubt-key"],
            "acknowledged": answer is OK,
            **json.loads(body),
        }
        os.write(self._file, json.dumps(note).encode() + b"\n")
        return answer


async def main(port: int, path: str) -> None:
    receiver = Receiver(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
