"""The audit of what the image is made of, against a database of vulnerabilities that is made here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.house.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FOUND = {
    "id": "PYSEC-2026-1",
    "summary": "made for a test",
    "affected": [
        {
            "package": {"name": "starlette", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}],
        }
    ],
}


@contextmanager
def database(status: int, vulnerable: str = "") -> Iterator[str]:
    """The URL of one that answers with ``status`` and knows a vulnerability of the package ``vulnerable``."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = asked["package"]["name"] == vulnerable
            body = json.dumps({"vulns": [FOUND]} if known else {}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


async def audited(url: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        ["sh", ".ci/audit", "--vulnerability-service", "osv", "--osv-url", url],
        cwd=ROOT,
        env=os.environ
        | {"NO_PROXY": "127.0.0.1", "PIP_AUDIT": str(Path(sys.executable).with_name("pip-audit"))},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_known_vulnerability_stops_a_release() -> None:
    """Broken if the audit passes with one, or stops CI without one."""
    with database(200, "starlette") as url:
        ran = await audited(url)
    assert (ran.returncode, "PYSEC-2026-1" in ran.stdout) == (1, True), ran
    with database(200) as url:
        ran = await audited(url)
    assert ran.returncode == 0, ran


async def test_no_answer_is_no_clean_result() -> None:
    """Broken if packages that nobody has asked about count as free of vulnerabilities."""
    for status in (404, 503):
        with database(status) as url:
            ran = await audited(url)
        assert ran.returncode == 3, ran
