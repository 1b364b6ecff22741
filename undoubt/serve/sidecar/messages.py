"""Messages of clients, for the outbox of a branch: see :mod:`undoubt.coordinator.publishing`.

The sidecar publishes in a branch that it runs. The client of a branch that it runs itself gets the statement
instead."""

from __future__ import annotations

import base64

from undoubt.coordinator.publishing import checked, put
from undoubt.participants.errors import UsageError
from undoubt.participants.outbox import Publication
from undoubt.serve.sidecar.handlers import (
    JudgedRequest,
    Sidecar,
    announced_branch,
    answer,
    check_sql,
    used_branch,
)
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.types import Published, PublishRequest

_CONTENT_TYPE = "content-type"


async def publish(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    entry = sidecar.own(request)
    entry.check_active()
    wanted = request.given(PublishRequest)
    name = sidecar.participant(request, wanted.participant).name
    message = message_of(request)
    if wanted.branch is not None:
        branch = announced_branch(request, entry, str(wanted.branch))
        if branch.gid.participant != name:
            raise UsageError(f"branch {wanted.branch} is not one of participant {name!r}")
        published, statement = branch.publication(message)
        return answer(Published(published, name, statement), 201)
    check_sql(sidecar, name)
    async with used_branch(sidecar, entry, name):
        return answer(Published(await put(entry.transaction, name, message), name), 201)


def message_of(request: JudgedRequest) -> Publication:
    """The message as it is stored: JSON as it was sent, a string as text. Raises ``UsageError``."""
    wanted, headers = request.given(PublishRequest), {}
    if (wanted.payload_base64 is None) is not bool(request.raw):
        raise UsageError("send either payload or payload_base64")
    payload: str | bytes
    if wanted.payload_base64 is not None:
        try:
            payload = base64.b64decode(wanted.payload_base64, validate=True)
        except ValueError as error:
            raise UsageError(f"payload_base64 is not base64 (RFC 4648, section 4): {error}") from error
    elif isinstance(wanted.payload, str):
        payload = wanted.payload
    else:
        [raw] = request.raw
        payload = bytes(raw)
        if _CONTENT_TYPE not in map(str.lower, wanted.headers or ()):
            headers = {_CONTENT_TYPE: "application/json"}
    headers |= wanted.headers or {}
    return checked(wanted.participant, payload, topic=wanted.topic, key=wanted.key, headers=headers)
