"""Delivers by HTTP: one POST for each message, acknowledged by a status of 200 to 299.

Redirects are not followed: a receiver could otherwise have messages sent elsewhere."""

from __future__ import annotations

import datetime
from urllib.parse import quote

import httpx

from undoubt.participants.outbox import Message
from undoubt.relay.sink import DEDUPE_ID, Undelivered

ANSWER_BYTES_MAX = 65_536
"""A longer answer is not read to its end: its connection is closed."""
_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Printable ASCII, except the percent sign."""


class WebhookSink:
    """Posts to ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url
        # The relay has the timeout of the whole delivery.
        self._client = httpx.AsyncClient(follow_redirects=False, timeout=None)  # noqa: S113

    async def deliver(self, message: Message) -> None:
        try:
            async with self._client.stream(
                "POST", self._url, content=message.payload, headers=headers_of(message)
            ) as answer:
                size = 0
                async for part in answer.aiter_raw():
                    size += len(part)
                    if size > ANSWER_BYTES_MAX:
                        break
        except httpx.HTTPError as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error
        if not answer.is_success:
            raise Undelivered(f"the receiver answered {answer.status_code}")

    async def close(self) -> None:
        await self._client.aclose()


def headers_of(message: Message) -> dict[str, str]:
    """The headers of a request. Topic and key are percent-encoded UTF-8 (RFC 3986, section 2.1) where they
    are not printable ASCII, and where they have a percent sign."""
    published = datetime.datetime.fromtimestamp(message.published_at, tz=datetime.UTC)
    added = {
        DEDUPE_ID: message.dedupe_id,
        "undoubt-topic": quote(message.topic, safe=_SAFE),
        "undoubt-published-at": published.isoformat(timespec="microseconds"),
    }
    if message.key is not None:
        added["undoubt-key"] = quote(message.key, safe=_SAFE)
    return {**message.headers, **added}
