"""Delivers to Kafka: the message's topic, key and headers are those of the record.

The producer is idempotent, and waits for all in-sync replicas: the order of a key is that of the deliveries.
"""

from __future__ import annotations

import ssl

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from undoubt.participants.outbox import Message
from undoubt.relay.sink import DEDUPE_ID, Undelivered


class KafkaSink:
    """Sends to the brokers ``bootstrap``, ``host:port,host:port``."""

    def __init__(self, bootstrap: str, *, tls: bool = False) -> None:
        self._bootstrap = bootstrap
        self._tls = tls
        self._producer: AIOKafkaProducer | None = None

    async def deliver(self, message: Message) -> None:
        key = None if message.key is None else message.key.encode()
        try:
            producer = self._producer or await self._started()
            await producer.send_and_wait(
                message.topic, value=message.payload, key=key, headers=headers_of(message)
            )
        except KafkaError as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error

    async def _started(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap.split(","),
            acks="all",
            enable_idempotence=True,
            security_protocol="SSL" if self._tls else "PLAINTEXT",
            ssl_context=ssl.create_default_context() if self._tls else None,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        if self._producer is not None:  # another lane was faster
            await producer.stop()
            return self._producer
        self._producer = producer
        return producer

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()


def headers_of(message: Message) -> list[tuple[str, bytes]]:
    """The headers of a record: those of the message, and its dedupe id."""
    return [
        (name, value.encode()) for name, value in {**message.headers, DEDUPE_ID: message.dedupe_id}.items()
    ]
