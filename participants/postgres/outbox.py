"""The outbox of a database: how a branch publishes, and how a relay reads and removes messages.

A relay has one session. A topic that it has claimed is a session-level advisory lock, which ends with the
session: two relays do not deliver one topic at the same time, unless one has lost its session and does not
know it yet. Each of them still delivers a message of a key only after all earlier ones were acknowledged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable
from undoubt.participants.outbox import BACKLOG_MAX, Backlog, Lane, Message, Publication
from undoubt.participants.postgres.schema_check import NO_SCHEMA, believe, same_schema
from undoubt.participants.postgres.session import NoAnswer, NotSent, Row, ServerError, ServerSession
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.postgres.sqlstate import participant_error
from undoubt.participants.sql import literal

log = logging.getLogger(__name__)

_NO_TABLE = frozenset({NO_SCHEMA, "42P01"})


def publish_statement(publication: Publication, dedupe_id: str, marked: str) -> str:
    """The statement that writes a message in the transaction with marker ``marked``."""
    return fill(
        "publish",
        marker=marked,
        dedupe_id=dedupe_id,
        topic=publication.topic,
        key=publication.key,
        payload=f"\\x{publication.payload.hex()}",
        headers=json.dumps(dict(publication.headers)),
    )


class PostgresOutbox:
    """:class:`undoubt.participants.outbox.OutboxReader` of one database. ``connect`` opens its session."""

    def __init__(
        self,
        participant: str,
        connect: Callable[[], Awaitable[ServerSession]],
        owners: Sequence[str],
        timeout_s: float,
    ) -> None:
        """``owners`` are those of the schema, from the settings."""
        self._participant = participant
        self._connect = connect
        self._owners = owners
        self._timeout_s = timeout_s
        self._session: ServerSession | None = None
        self._claimed: set[str] = set()
        self._of_others: set[str] = set()
        """Topics that others have, and that were logged."""
        self._turn = asyncio.Lock()
        """A session has one statement at a time."""

    async def claim(self, topics: Iterable[str]) -> frozenset[str]:
        async with self._turn:
            wanted = list(topics) or [row["topic"] for row in await self._rows(query("outbox_topics"))]
            for topic in wanted:
                if topic not in self._claimed:
                    [row] = await self._rows(query("outbox_claim"), topic)
                    if row["claimed"]:
                        self._claimed.add(topic)
                        self._of_others.discard(topic)
                    elif topic not in self._of_others:
                        self._of_others.add(topic)
                        await self._name_claimant(topic)
            return frozenset(self._claimed)

    async def _name_claimant(self, topic: str) -> None:
        """Log who has a topic: any role that can connect can take the lock, and so keep relays from it."""
        rows = await self._rows(query("outbox_claimant"), topic)
        who = "another session"
        if rows:
            who = f"process {rows[0]['pid']} of role {str(rows[0]['role'])!r}"
        log.warning(
            "topic %r of %r is not delivered here: %s has claimed it", topic, self._participant, who,
            extra={"participant": self._participant},
        )  # fmt: skip

    async def read(self, topics: Iterable[str], *, without: Sequence[Lane], limit: int) -> list[Message]:
        keyed = [(lane.topic, lane.key) for lane in without if lane.key is not None]
        async with self._turn:
            rows = await self._rows(
                query("outbox_read"),
                list(topics),
                [topic for topic, _ in keyed],
                [key for _, key in keyed],
                [lane.alone for lane in without if lane.alone is not None],
                limit,
            )
        return [
            Message(
                id=row["id"],
                dedupe_id=row["dedupe_id"],
                topic=row["topic"],
                key=row["key"],
                payload=bytes(row["payload"]),
                headers=json.loads(row["headers"]),
                published_at=row["published_at"],
            )
            for row in rows
        ]

    async def backlog(self, topics: Iterable[str]) -> Backlog:
        async with self._turn:
            [row] = await self._rows(query("outbox_backlog"), list(topics), BACKLOG_MAX)
        return Backlog(row["messages"], max(row["oldest_s"], 0.0))

    async def remove(self, dedupe_ids: Sequence[str]) -> None:
        listed = ", ".join(map(literal, dedupe_ids))
        async with self._turn:
            session = await self._believed()
            sql = query("outbox_remove").replace("{dedupe_ids}", f"array[{listed}]::pg_catalog.text[]")
            try:
                await session.script(same_schema(session.intro) + sql, timeout_s=self._timeout_s)
            except (ServerError, NoAnswer, NotSent) as error:
                self._lose()
                raise self._refused(error) from error

    async def close(self) -> None:
        self._lose()

    def _lose(self) -> None:
        session, self._session = self._session, None
        self._claimed.clear()
        if session is not None:
            session.discard()

    async def _rows(self, sql: str, *args: object) -> Sequence[Row]:
        session = await self._believed()
        try:
            return await session.rows(sql, *args, timeout_s=self._timeout_s)
        except (ServerError, NoAnswer, NotSent) as error:
            self._lose()
            raise self._refused(error) from error
        except BaseException:  # cancelled: the answer may still come
            self._lose()
            raise

    async def _believed(self) -> ServerSession:
        """The session, whose schema ``undoubt`` is to be believed now."""
        session = self._session
        if session is not None and session.broken:
            # The claims have ended with it, which the relay has to know: another one may deliver by now.
            self._lose()
            raise ParticipantUnavailable(self._participant, "the session of the relay was lost")
        if session is None:
            session = self._session = await self._connect()
            if session.intro.pooled:
                self._lose()
                raise ParticipantRefused(
                    self._participant,
                    "a relay keeps its claims in a session of the server, which a pooler gives to other"
                    " clients: run the relay with a dsn that leads to the server itself",
                )
        try:
            await believe(self._participant, session, self._owners, self._timeout_s)
        except (ServerError, NoAnswer, NotSent) as error:
            self._lose()
            raise self._refused(error) from error
        except BaseException:
            self._lose()
            raise
        return session

    def _refused(self, error: ServerError | NoAnswer | NotSent) -> Exception:
        if isinstance(error, ServerError) and error.sqlstate in _NO_TABLE:
            return ParticipantRefused(
                self._participant,
                f"its database has no outbox: run undoubt participants migrate {self._participant}",
                sqlstate=error.sqlstate,
            )
        return participant_error(self._participant, error)
