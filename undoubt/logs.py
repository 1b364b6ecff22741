"""Formats each log record as one line of JSON, with the record's transaction as a field.

For the standard library's ``logging``, for example by its ``dictConfig``::

    "formatters": {"json": {"()": "undoubt.logs.JsonFormatter"}}

Fields: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``; ``error`` with a traceback, if the
record has an error; the caller's ``extra``; and ``transaction``, ``gid`` and ``participant``, if the record
is about one. These three are taken from the record's arguments and error, and from the causes of these
errors, so that an application's own records have them too: ``log.warning("not paid: %s", error)``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid, TxId

_OF_EVERY_RECORD = frozenset(
    {*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName"}
)


TEXT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


def to_stderr(*, json_lines: bool, level: int) -> None:
    """Write all records of this process to stderr from now on: for commands that keep running."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if json_lines else TEXT)
    logging.basicConfig(level=level, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """Formats a record as the module's docstring describes. A value without a JSON type becomes its
    ``str``."""

    def format(self, record: logging.LogRecord) -> str:
        given = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        written: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        subjects = [*given.values(), *_arguments(record)]
        if record.exc_info:
            written["error"] = self.formatException(record.exc_info)
            subjects.append(record.exc_info[1])
        for name, value in (field for subject in subjects for field in fields(subject)):
            if name not in given:
                written.setdefault(name, value)
        return json.dumps(given | written, default=str, ensure_ascii=False)


def fields(subject: object) -> Iterator[tuple[str, str]]:
    """The fields ``transaction``, ``gid`` and ``participant`` of ``subject``: those of an error before those
    of its causes."""
    match subject:
        case TxId():
            yield "transaction", str(subject)
        case Gid():
            yield "gid", str(subject)
            yield "transaction", str(subject.txid)
            yield "participant", subject.participant
        case BaseException():
            yield from _of_error(subject)
        case _:
            return


def _of_error(error: BaseException) -> Iterator[tuple[str, str]]:
    if isinstance(error, ParticipantError):
        yield "participant", error.participant
    if isinstance(txid := getattr(error, "txid", None), TxId):
        yield "transaction", str(txid)
    if error.__cause__ is not None:
        yield from fields(error.__cause__)


def _arguments(record: logging.LogRecord) -> list[object]:
    if isinstance(record.args, tuple):
        return list(record.args)
    return list(record.args.values()) if record.args else []
