"""Keeps the first answer for each idempotency key, and returns it for repeated requests.

The rules are those of draft-ietf-httpapi-idempotency-key-header: a key belongs to one client and one request;
the same key with another request is refused (422), and so is a repetition while the first request is being
carried out (409). Answers that ask for a later attempt (429, 5xx) are not kept, and neither is the answer
that the outcome is not known yet (202): a repetition may get another answer.

The keys are in memory, and are lost at the end of the process. The outcome of a transaction is not lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from undoubt.serve.sidecar.problems import RequestRefused, busy
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.shares import may_take

KEY_CHARACTERS_MAX = 255
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')
ENTRY_BYTES = 512
"""The assumed size of a kept answer without its body."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete answer to a request. The names in ``headers`` are in lower case."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether a repetition of the request gets the same answer."""
        asks_again = "retry-after" in self.headers or self.status in {202, 401, 403, 408, 421, 429}
        return self.status < 500 and not asks_again


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    answer: Answer | None = None
    kept_until_s: float = 0.0


def key_of(header: str | None) -> str | None:
    """The key in the header of a request: a string of structured fields (RFC 9651), or the same without
    quotes. None without a header. Raises :class:`RequestRefused`."""
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
    """The kept answers of one process."""

    def __init__(self, settings: SidecarSettings) -> None:
        self._settings = settings
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0
        self._held: Counter[str] = Counter()
        """Entries by the names of their clients."""
        self._held_bytes: Counter[str] = Counter()

    async def once(
        self, client: str, key: str, print_: bytes, work: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        """Return the kept answer for ``key`` and True, or the answer of ``work`` and False. Raises
        :class:`RequestRefused`, and the errors of ``work``, after which nothing is kept."""
        self._sweep()
        name = (client, key)
        entry = self._entries.get(name)
        if entry is not None:
            if entry.fingerprint != print_:
                raise RequestRefused(422, "IdempotencyKeyReused", "that key was used for another request")
            if entry.answer is None:
                raise RequestRefused(409, "StillWorking", "the first request with that key has no answer yet")
            return entry.answer, True
        if not self._has_room(client):
            raise busy("TooManyKeys", "too many answers to keyed requests are kept")
        self._entries[name] = entry = _Entry(print_)
        self._held[client] += 1
        try:
            answer = await work()
        except BaseException:
            self._drop(name)
            raise
        if answer.final:
            entry.answer = answer
            entry.kept_until_s = asyncio.get_running_loop().time() + self._settings.kept_s
            self._entries.move_to_end(name)
            self._count_bytes(client, len(answer.body) + ENTRY_BYTES)
        else:
            self._drop(name)
        return answer, False

    def _sweep(self) -> None:
        """Remove the answers that are too old. Entries with answers are in the order of their answers."""
        now_s = asyncio.get_running_loop().time()
        for name, entry in list(self._entries.items()):
            if entry.answer is None:
                continue
            if entry.kept_until_s > now_s:
                break
            self._count_bytes(name[0], -len(entry.answer.body) - ENTRY_BYTES)
            self._drop(name)

    def _has_room(self, client: str) -> bool:
        settings = self._settings
        return may_take(self._held[client], len(self._entries), settings.keys_max) and may_take(
            self._held_bytes[client], self._bytes, settings.keys_bytes_max
        )

    def _drop(self, name: tuple[str, str]) -> None:
        del self._entries[name]
        self._held[name[0]] -= 1

    def _count_bytes(self, client: str, size: int) -> None:
        self._bytes += size
        self._held_bytes[client] += size
