"""The messages of etcd's API that are used here, as its JSON gateway has them.

Names and meanings: https://etcd.io/docs/v3.5/dev-guide/api_reference_v3/; the mapping to JSON:
https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/. Bytes are base64, as msgspec encodes them. The gateway
sends 64-bit integers as text, and leaves out fields that are zero: hence the defaults, and ``strict=False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

OPERATIONS_MAX = 128
"""Most operations of one transaction (``--max-txn-ops``): compares, operations of the branch, and, in each
nested transaction, what is left of them (``checkTxnRequest``, ``etcdserver/api/v3rpc/key.go``)."""


class _Sent(msgspec.Struct, frozen=True, omit_defaults=True):
    pass


class _Received(msgspec.Struct, frozen=True):
    pass


class Range(_Sent, frozen=True):
    """Read keys. Never ``serializable``: a member that lags behind would answer from its own state."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    sort_order: str = ""
    sort_target: str = ""
    keys_only: bool = False
    count_only: bool = False


class Put(_Sent, frozen=True):
    key: bytes
    value: bytes = b""
    lease: int = 0


class Delete(_Sent, frozen=True):
    key: bytes
    range_end: bytes = b""


class Compare(_Sent, frozen=True):
    """A condition on one key. A key that is absent has the revisions 0, and fails every comparison of its
    value."""

    key: bytes
    target: str
    result: str
    create_revision: int | None = None
    mod_revision: int | None = None
    value: bytes | None = None
    range_end: bytes = b""


class EtcdOperation(_Sent, frozen=True):
    """Exactly one of the fields."""

    request_range: Range | None = None
    request_put: Put | None = None
    request_delete_range: Delete | None = None
    request_txn: EtcdTransaction | None = None


class EtcdTransaction(_Sent, frozen=True):
    """``success`` is carried out if all of ``compare`` hold, otherwise ``failure``."""

    compare: Sequence[Compare] = ()
    success: Sequence[EtcdOperation] = ()
    failure: Sequence[EtcdOperation] = ()


def absent(key: bytes, range_end: bytes = b"") -> Compare:
    """``key``, or every key from ``key`` up to ``range_end``, is absent."""
    return Compare(key, "CREATE", "EQUAL", create_revision=0, range_end=range_end)


def present(key: bytes) -> Compare:
    return Compare(key, "CREATE", "GREATER", create_revision=0)


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """``key`` was last written at ``mod_revision``; 0: it is absent."""
    return Compare(key, "MOD", "EQUAL", mod_revision=mod_revision)


def after(key: bytes, revision: int) -> Compare:
    """``key`` was last written after ``revision``."""
    return Compare(key, "MOD", "GREATER", mod_revision=revision)


def above(key: bytes, value: bytes) -> Compare:
    """``key`` is present, and its value is above ``value`` in the order of bytes."""
    return Compare(key, "VALUE", "GREATER", value=value)


def below(key: bytes, value: bytes) -> Compare:
    """``key`` is present, and its value is below ``value`` in the order of bytes."""
    return Compare(key, "VALUE", "LESS", value=value)


def get(key: bytes) -> EtcdOperation:
    return EtcdOperation(request_range=Range(key))


def put(key: bytes, value: bytes = b"", lease: int = 0) -> EtcdOperation:
    return EtcdOperation(request_put=Put(key, value, lease))


def delete(key: bytes, range_end: bytes = b"") -> EtcdOperation:
    return EtcdOperation(request_delete_range=Delete(key, range_end))


def nested(transaction: EtcdTransaction) -> EtcdOperation:
    return EtcdOperation(request_txn=transaction)


class AnswerHeader(_Received, frozen=True):
    """``raft_term`` is the term that the answering member knew; of a renewal, before it was carried out."""

    cluster_id: int = 0
    revision: int = 0
    raft_term: int = 0


class EtcdAnswer(_Received, frozen=True):
    """An answer of etcd has a header with the number of the cluster; what has none is of something else."""

    header: AnswerHeader = AnswerHeader()


class KeyValue(_Received, frozen=True):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class RangeAnswer(EtcdAnswer, frozen=True):
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False
    count: int = 0


class OperationAnswer(_Received, frozen=True):
    response_range: RangeAnswer | None = None
    response_txn: TransactionAnswer | None = None


class TransactionAnswer(EtcdAnswer, frozen=True):
    succeeded: bool = False
    responses: tuple[OperationAnswer, ...] = ()


class Grant(_Sent, frozen=True):
    TTL: int


class LeaseId(_Sent, frozen=True):
    ID: int


class Granted(EtcdAnswer, frozen=True):
    ID: int = 0
    TTL: int = 0


class Renewal(EtcdAnswer, frozen=True):
    ID: int = 0
    TTL: int = 0


class Renewed(_Received, frozen=True):
    """A message of the stream of renewals; the stream has one for each request."""

    result: Renewal = Renewal()

    @property
    def header(self) -> AnswerHeader:
        return self.result.header


class Credentials(_Sent, frozen=True):
    name: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(…)"


class Authenticated(EtcdAnswer, frozen=True):
    token: str = ""


class Nothing(_Sent, frozen=True):
    pass


class MemberStatus(EtcdAnswer, frozen=True):
    """Of the member that answers. ``leader`` is the number of its leader, 0 if it knows none."""

    version: str = ""
    dbSize: int = 0  # noqa: N815 - etcd's name
    leader: int = 0
    errors: tuple[str, ...] = ()


class EtcdRefusal(_Received, frozen=True):
    """``code`` is gRPC's (https://grpc.io/docs/guides/status-codes/)."""

    message: str = ""
    error: str = ""
    code: int = 0


A = TypeVar("A")


def decode(data: bytes, kind: type[A]) -> A:
    """Raises ``msgspec.MsgspecError``."""
    return msgspec.json.decode(data, type=kind, strict=False)


encode = msgspec.json.Encoder().encode
