"""A wire between client and server that a test can freeze or cut."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
from types import TracebackType
from urllib.parse import urlsplit


class Proxy:
    """``async with Proxy(dsn) as proxy``: ``proxy.dsn`` leads through it.

    ``freeze`` keeps what the server says from the client, while what the client says still arrives; ``thaw``
    lets it through; ``forget`` lets nothing through any more, in either direction, on the connections that
    there are, and closes none, as a firewall does that has forgotten them, and new ones work; ``cut`` closes
    all connections, to the client at once, to the server as a lost client's; ``end`` says goodbye to the
    clients, as a server does that goes down in good order. What the server says arrives ``late_s`` seconds
    late, as over a network. With ``tls`` the clients speak TLS with it, whatever the server can.
    """

    def __init__(self, dsn: str, late_s: float = 0.0, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._late_s = late_s
        parts = urlsplit(dsn)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._parts = parts
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.held = asyncio.Event()
        """Set once something of the server's is being held back."""

    @property
    def dsn(self) -> str:
        if self._server is None:
            raise RuntimeError("the proxy is not open")
        port = self._server.sockets[0].getsockname()[1]
        who = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{who}@127.0.0.1:{port}").geturl()

    def freeze(self) -> None:
        self.held.clear()
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def forget(self) -> None:
        self._forgotten |= self._writers

    def cut(self) -> None:
        for writer in self._writers | self._forgotten:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        self._open.set()

    def end(self) -> None:
        for writer in self._clients:
            writer.close()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tls is not None:
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(self._tls)
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, far_writer}
        self._clients.add(writer)
        for task in (
            asyncio.create_task(self._carry(reader, far_writer, holding=False)),
            asyncio.create_task(self._carry(far_reader, writer, holding=True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, holding: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if holding and self._late_s:
                    await asyncio.sleep(self._late_s)
                if holding and not self._open.is_set():
                    self.held.set()
                    await self._open.wait()
                if writer not in self._forgotten:
                    writer.write(data)
        except ConnectionError:
            pass
        finally:
            if writer not in self._forgotten:
                writer.close()
            self._writers.discard(writer)
            self._clients.discard(writer)


def tls_context() -> ssl.SSLContext:
    """Of a server with a certificate that nobody else has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory(prefix="undoubt-tls-") as folder:
        key, certificate = f"{folder}/key", f"{folder}/crt"
        command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
        subprocess.run(command, check=True, capture_output=True)
        context.load_cert_chain(certificate, key)
    return context
