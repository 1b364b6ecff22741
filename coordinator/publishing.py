"""Checks a message that an application publishes, and puts it into the outbox of a branch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from undoubt.coordinator.results import check_json
from undoubt.participants.bounds import OutOfBounds, text
from undoubt.participants.errors import UsageError
from undoubt.participants.outbox import (
    HEADERS_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Publication,
    PublishingBranch,
)

if TYPE_CHECKING:
    from undoubt.coordinator.transaction import Transaction

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_OF_THE_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that a relay's HTTP client sets, or that belong to one connection (RFC 9110, section 7.6.1)."""
_PREFIX = "undoubt-"
"""Of the headers that a relay adds."""


async def publish(
    transaction: Transaction,
    name: str,
    payload: object,
    *,
    topic: str | None,
    key: str | None,
    headers: Mapping[str, str] | None,
) -> str:
    """Put a message into the outbox of participant ``name``, inside the branch of the transaction there,
    which is opened if it is not open yet. Returns the message's dedupe id.

    ``payload``: ``bytes``; text, which is sent as UTF-8; or what JSON can express; 1 MiB at most. ``topic``
    is the participant's name by default. Messages of one topic and ``key`` are delivered in the order in
    which their transactions commit: ``publish`` waits until another transaction that has published with this
    key has ended. ``headers`` are sent with the message.

    Raises ``ParticipantRefused`` if the database has no outbox (``undoubt participants migrate``), and the
    errors of ``branch`` and of a statement in it.
    """
    return await put(transaction, name, checked(name, payload, topic=topic, key=key, headers=headers))


async def put(transaction: Transaction, name: str, publication: Publication) -> str:
    """Put a checked message into the outbox of participant ``name``, as :func:`publish` does."""
    connection = await transaction.branch(name)
    branch = next(each for each in transaction._branches.values() if each.connection is connection)
    if not isinstance(branch, PublishingBranch):
        raise UsageError(f"participant {name!r} has no outbox")
    return await branch.publish(publication)


def checked(
    name: str,
    payload: object,
    *,
    topic: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Publication:
    """The message as it is stored. Raises ``OutOfBounds``."""
    text("name", name)
    encoded, content_type = _encoded(payload)
    if len(encoded) > PAYLOAD_BYTES_MAX:
        raise OutOfBounds("payload", f"has {len(encoded)} bytes, at most {PAYLOAD_BYTES_MAX} are possible")
    return Publication(
        topic=name if topic is None else text("topic", topic, most=NAME_BYTES_MAX, empty=False),
        key=None if key is None else text("key", key, most=NAME_BYTES_MAX, empty=False),
        payload=encoded,
        headers={"content-type": content_type, **_checked_headers(headers)},
    )


def _encoded(payload: object) -> tuple[bytes, str]:
    if isinstance(payload, bytes):
        return payload, "application/octet-stream"
    try:
        if isinstance(payload, str):
            return payload.encode(), "text/plain; charset=utf-8"
        check_json("payload", payload)
        return msgspec.json.encode(payload), "application/json"
    except OutOfBounds:
        raise
    except ValueError as error:  # text that is not valid Unicode
        raise OutOfBounds("payload", f"cannot be encoded: {error}") from error


def _checked_headers(headers: object) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise OutOfBounds("headers", f"must be a mapping of texts, not of type {type(headers).__name__}")
    found = dict[str, str]()
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OutOfBounds("headers", "must be a mapping from texts to texts")
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name) or lower in found:
            raise OutOfBounds(
                "headers", f"has a name that cannot be one of HTTP, or is there twice: {name!r}"
            )
        if lower in _OF_THE_CONNECTION or lower.startswith(_PREFIX):
            raise OutOfBounds("headers", f"must not have {name!r}, which the relay sets")
        if not _HEADER_VALUE.fullmatch(value):
            raise OutOfBounds("headers", f"has a value that is not printable ASCII, of {name!r}")
        found[lower] = value
    if (size := sum(len(name) + len(value) for name, value in found.items())) > HEADERS_BYTES_MAX:
        raise OutOfBounds("headers", f"has {size} bytes, at most {HEADERS_BYTES_MAX} are possible")
    return found
