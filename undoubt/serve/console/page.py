"""The page: one HTML file, and the headers under which a browser runs nothing that is not in it.

The policy (Content Security Policy 3, https://www.w3.org/TR/CSP3/) names the page's script and style by their
SHA-256, and forbids all others, all frames, and all addresses but this server's. Under Trusted Types
(https://www.w3.org/TR/trusted-types/) without any policy no text can become HTML: the script builds elements
and sets their text."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from undoubt.serve.sidecar.idempotency import Answer

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> Answer:
    """The answer that is the page."""
    text = files("undoubt.serve.console").joinpath("page.html").read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for match in _INLINE.finditer(text):
        digest = base64.b64encode(hashlib.sha256(match[2].encode()).digest()).decode()
        hashes[match[1]].append(f"'sha256-{digest}'")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
    }
    return Answer(200, text.encode(), headers)
