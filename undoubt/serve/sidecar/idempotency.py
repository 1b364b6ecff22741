"""Keys of repeated requests: the second of the same key gets the first one's answer.

The rules are those of draft-ietf-httpapi-idempotency-key-header: a key counts for its client and its request;
the same key with another request is refused (422), and so is a repetition while the first one is being worked
on (409). Answers that say "not now" (429, 5xx) are not kept, nor is one that does not know the outcome yet
(202): whoever repeats such a request may hear more.

Keys are in this process's memory: they are gone with it. The outcome of a transaction is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from undoubt.serve.sidecar.problems import RequestRefused, busy
from undoubt.serve.sidecar.settings import SidecarSettings

KEY_CHARACTERS_MAX = 255
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')
ENTRY_BYTES = 512
"""What a kept answer takes beside its body."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``headers`` in lower case."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whoever repeats the request is to get the same."""
        return self.status < 500 and self.status not in {202, 401, 403, 408, 421, 429}


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    answer: Answer | None = None
    kept_until_s: float = 0.0


def key_of(header: str | None) -> str | None:
    """The key in a request's header: a string of structured fields (RFC 9651), or its bare characters. Raises
    :class:`RequestRefused`."""
    if header is None:
        return None
    if (quoted := _QUOTED.fullmatch(header.strip())) is not None:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if _KEY.fullmatch(header.strip()) is not None and '"' not in header:
        return header.strip()
    raise RequestRefused(
        400, "BadIdempotencyKey", f"Idempotency-Key must be 1 to {KEY_CHARACTERS_MAX} printable characters"
    )


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """Of a request."""
    return hashlib.sha256(b"\0".join([method.encode(), path.encode(), body])).digest()


class KeyedAnswers:
    """Those of one process."""

    def __init__(self, settings: SidecarSettings) -> None:
        self._settings = settings
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    async def once(
        self, client: str, key: str, print_: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        """The answer of ``work``, or the one that is kept, and then True. ``work`` fails with nothing but
        :class:`RequestRefused`, and a refusal is no answer to be kept unless it says what the request did."""
        self._sweep()
        name = (client, key)
        entry = self._entries.get(name)
        if entry is not None:
            if entry.fingerprint != print_:
                raise RequestRefused(422, "IdempotencyKeyReused", "that key was used for another request")
            if entry.answer is None:
                raise RequestRefused(409, "StillWorking", "the first request of that key is being worked on")
            return entry.answer, True
        if len(self._entries) >= self._settings.keys_max or self._bytes >= self._settings.keys_bytes_max:
            raise busy("TooManyKeys", "too many answers to keyed requests are kept")
        self._entries[name] = entry = _Entry(print_)
        try:
            answer = await work()
        except BaseException:
            del self._entries[name]
            raise
        if answer.final:
            entry.answer = answer
            entry.kept_until_s = asyncio.get_running_loop().time() + self._settings.kept_s
            self._entries.move_to_end(name)
            self._bytes += len(answer.body) + ENTRY_BYTES
        else:
            del self._entries[name]
        return answer, False

    def _sweep(self) -> None:
        """Answered ones stand in the order in which they were answered."""
        now_s = asyncio.get_running_loop().time()
        for name, entry in list(self._entries.items()):
            if entry.answer is None:
                continue
            if entry.kept_until_s > now_s:
                break
            self._bytes -= len(entry.answer.body) + ENTRY_BYTES
            del self._entries[name]
