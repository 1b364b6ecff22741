"""From which histories a promoted server comes, and what that proves of a PREPARE."""

from __future__ import annotations

import pytest

from tests.participants.support import participant_at, run_on
from tests.participants.test_histories import prepare
from tests.participants.test_servers import TABLE, standby_of
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Evidence, TimelineHistory
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.postgres.timelines import ancestors

WAYS = ("",)
SYSTEM = 7_000_000_000_000_000_001
ON_THE_FOURTH = TimelineHistory(SYSTEM, "00000004", {"00000001": 100, "00000003": 300})


@pytest.mark.parametrize(
    ("evidence", "lost"),
    [
        (Evidence(7, SYSTEM, "00000001", "AbCdEfGhIjKl", 99), False),
        (Evidence(7, SYSTEM, "00000001", "AbCdEfGhIjKl", 100), True),
        (Evidence(7, SYSTEM, "00000003", None, 299), False),
        (Evidence(7, SYSTEM, "00000003", None, 301), True),
        (Evidence(7, SYSTEM, "00000002", None, 1), True),
        (Evidence(7, SYSTEM, "00000002"), True),
        (Evidence(7, SYSTEM, "00000001"), None),
        (Evidence(7, SYSTEM, "00000004", None, 500), None),
        (Evidence(7, SYSTEM, "00000005", None, 500), None),
        (Evidence(7, SYSTEM + 1, "00000001", None, 100), None),
        (Evidence(7, None, None, "AbCdEfGhIjKl", 100), None),
        (Evidence(7), None),
    ],
)
def test_what_a_history_says_of_a_prepare(evidence: Evidence, lost: bool | None) -> None:
    """Broken if a branch counts as lost that its server may have, or of which another server has to be asked:
    one on a later timeline than the server that answers."""
    assert ON_THE_FOURTH.lost(evidence) is lost


def test_a_history_that_is_not_known_says_nothing() -> None:
    assert TimelineHistory(SYSTEM, "00000004", None).lost(Evidence(7, SYSTEM, "00000001", None, 1)) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1\t0/3000148\tno recovery target specified\n", {"00000001": 0x3000148}),
        (
            "1\t0/3000148\tbefore 2026-01-01 00:00:00+00\n\n# a comment\n17\tA/FF000000\tat restore point\n",
            {"00000001": 0x3000148, "00000011": (0xA << 32) + 0xFF000000},
        ),
        ("", None),
        ("# nothing\n", None),
        ("1\n", None),
        ("1\t0/3000148\tknown\ntwo\t0/4000148\tno number\n", None),
        ("1\t3000148\tno slash\n", None),
        ("one\t0/3000148\tno number\n", None),
        ("1\t0/xyz\tno position\n", None),
    ],
)
def test_a_history_file(text: str, found: dict[str, int] | None) -> None:
    """Broken if a line that is not understood is taken for no line: then a branch would count as lost."""
    assert ancestors(text) == found


async def test_a_server_that_was_promoted() -> None:
    """Broken if what a standby had received counts as lost, what came after does not, or a role that may not
    read the history makes a guess."""
    async with EmbeddedServer() as primary:
        await run_on(primary.dsn(), TABLE + "; create role app login; grant all on account to app")
        before = participant_at(primary.dsn())
        kept = await prepare(before)
        first = await before.timeline_history()
        assert first is not None
        assert (first.timeline, first.ancestors) == ("00000001", {})
        await primary.stop()
        async with standby_of(primary) as standby:
            await primary.start()
            await before.close()
            before = participant_at(primary.dsn())
            gone = await prepare(before)
            follower = participant_at(standby.dsn())
            with pytest.raises(ParticipantRefused, match="standby"):
                await follower.timeline_history()
            await run_on(standby.dsn(), "select pg_promote()")
            promoted = await follower.timeline_history()
            assert promoted is not None
            assert (promoted.system, promoted.timeline) == (first.system, "00000002")
            assert (promoted.lost(kept), promoted.lost(gone)) == (False, True)
            limited = participant_at(standby.dsn(user="app"))
            unread = await limited.timeline_history()
            assert unread == TimelineHistory(first.system, "00000002", None)
            await run_on(
                standby.dsn(), "grant execute on function pg_read_file(text, bigint, bigint, boolean) to app"
            )
            assert await limited.timeline_history() == promoted
            own = await prepare(follower)
            assert promoted.lost(own) is None
            await run_on(standby.dsn(), "revoke execute on function pg_control_system() from public")
            assert await limited.timeline_history() is None
            for each in (before, follower, limited):
                await each.close()
