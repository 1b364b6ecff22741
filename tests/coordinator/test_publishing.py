"""What a transaction publishes, in which branch, and under which id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.errors import TransactionEnded
from undoubt.participants.contract import Branch
from undoubt.participants.errors import ParticipantUnavailable, UsageError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.outbox import Publication
from undoubt.participants.scripted import Script, ScriptedBranch


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage({"alpha": Script(), "beta": Script()})
    await made.coordinator.start()
    yield made
    await made.coordinator.close()


def published(stage: Stage, name: str) -> list[Publication]:
    return [one for branch in stage.participants[name].branches for one in branch.published]


@pytest.mark.parametrize(
    ("payload", "stored", "content_type"),
    [
        (b"\0\xff", b"\0\xff", "application/octet-stream"),
        ("\u2603", b"\xe2\x98\x83", "text/plain; charset=utf-8"),
        ({"order": [1, None, 2.5, "a"]}, b'{"order":[1,null,2.5,"a"]}', "application/json"),
        (None, b"null", "application/json"),
    ],
)
async def test_a_payload_is_stored_with_its_type(
    stage: Stage, payload: object, stored: bytes, content_type: str
) -> None:
    async with stage.coordinator.transaction() as tx:
        await tx.publish("alpha", payload)
    [one] = published(stage, "alpha")
    assert (one.topic, one.key, one.payload) == ("alpha", None, stored)
    assert one.headers == {"content-type": content_type}


async def test_a_message_is_in_the_branch_of_its_participant(stage: Stage) -> None:
    """It would be delivered although the transaction aborts, if it were in a branch of its own."""
    async with stage.coordinator.transaction() as tx:
        branch: Any = await tx.branch("alpha")
        first = await tx.publish(
            "alpha", "x", topic="created", key="42", headers={"Content-Type": "text/csv", "X-Shop": "7"}
        )
        second = await tx.publish("alpha", "y")
        other = await tx.publish("beta", "z")
        assert stage.participants["alpha"].branches == [branch]
        assert tx.participants == ("alpha", "beta")
    assert [first, second, other] == [
        f"{stage.coordinator.ledger_id}:{tx.id}:{number}" for number in ("1:1", "1:2", "2:1")
    ]
    [one, _] = branch.published
    assert (one.topic, one.key) == ("created", "42")
    assert one.headers == {"content-type": "text/csv", "x-shop": "7"}


async def test_nothing_is_published_after_the_end(stage: Stage) -> None:
    async with stage.coordinator.transaction() as tx:
        await tx.branch("alpha")
    with pytest.raises(TransactionEnded):
        await tx.publish("alpha", "x")
    assert published(stage, "alpha") == []


async def test_a_participant_without_an_outbox_says_so(stage: Stage) -> None:
    """Broken if the application is told about a missing attribute of undoubt's."""

    class Plain:
        """A branch that cannot publish."""

        def __init__(self, branch: Branch) -> None:
            self._branch = branch

        def __getattr__(self, name: str) -> Any:
            if name == "publish":
                raise AttributeError(name)
            return getattr(self._branch, name)

    class Opener:
        name = "alpha"

        async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Any:
            return Plain(await stage.participants["alpha"].begin(gid, timeout_s=timeout_s, key=key))

    async with stage.coordinator.transaction() as tx:
        await tx.adopt(Opener())
        with pytest.raises(UsageError, match="participant 'alpha' has no outbox"):
            await tx.publish("alpha", "x")


async def test_a_failed_publication_aborts_nothing_by_itself(stage: Stage) -> None:
    """The application decides, as after any failed statement; the database refuses PREPARE then."""
    failed = ParticipantUnavailable("alpha", "lost")

    async def fail(self: ScriptedBranch, publication: Publication) -> str:
        raise failed

    stage.participants["alpha"].script.work = failed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedBranch, "publish", fail)
        async with stage.coordinator.transaction() as tx:
            with pytest.raises(ParticipantUnavailable):
                await tx.publish("alpha", "x")
            await tx.rollback()
