"""Which published adapter answers a request, and how long to wait for one."""

import pytest

from gossip.deadline import FLOOR_S, MISSED_FACTOR, Deadline
from gossip.messages import Pull
from gossip.published import KEPT, KEPT_LARGE, LARGE_BYTES, PublishedAdapter, RecentPublications

RUN = bytes(16)


def recent(*rounds: int) -> RecentPublications:
    filled = RecentPublications(kept=3)
    for round in rounds:
        filled.put(PublishedAdapter(round, round + 1, "float32", f"payload {round}".encode()))
    return filled


def ask(round: int | None, newer_than: int = -1, offset: int = 0, digest: bytes = b"") -> Pull:
    return Pull(RUN, round, newer_than, 1.0, offset, digest)


@pytest.mark.parametrize(
    ("pull", "waited", "found"),
    [
        (ask(5), False, 5),
        (ask(4), False, 4),
        (ask(1), False, 5),  # no longer kept: the newest instead
        (ask(1, newer_than=5), False, 5),  # seen before or not
        (ask(6), False, None),  # still to come: hold
        (ask(6), True, 5),  # the wait is over: what there is
        (ask(6, newer_than=5), True, None),  # but only if it is news
        (ask(None), False, 5),
        (ask(None, newer_than=4), False, 5),
        (ask(None, newer_than=5), False, None),
    ],
)
def test_the_rule(pull: Pull, waited: bool, found: int | None) -> None:
    published = recent(2, 3, 4, 5).find(pull, waited=waited)
    assert (published.round if published else None) == found


def test_a_resumed_transfer_gets_the_very_bytes_it_began_with() -> None:
    full = recent(3, 4, 5)
    begun = full.find(ask(4), waited=False)
    assert begun is not None
    assert full.find(ask(4, offset=3, digest=begun.digest), waited=True) is begun
    assert full.find(ask(4, offset=3, digest=bytes(32)), waited=True) is None


def test_of_large_payloads_fewer_are_kept() -> None:
    payload, shelves = bytes(LARGE_BYTES + 1), {True: RecentPublications(), False: RecentPublications()}
    for is_large, shelf in shelves.items():
        for round in range(5):
            shelf.put(PublishedAdapter(round, 1, "float32", payload if is_large else payload[:-1]))
    for is_large, kept in ((True, KEPT_LARGE), (False, KEPT)):
        found = [shelves[is_large].find(ask(round), waited=False) for round in range(5)]
        assert [one.round for one in found if one] == [4] * (5 - kept) + list(range(5 - kept, 5))


def test_an_empty_shelf_has_nothing() -> None:
    assert recent().find(ask(None), waited=True) is None


def test_before_anything_is_seen_the_users_bound_holds() -> None:
    assert Deadline().seconds(60.0, 0.1) == 60.0


def test_steady_arrivals_bring_the_deadline_down_to_the_floor() -> None:
    deadline = Deadline([0.2] * 10)
    assert deadline.seconds(60.0, 0.1) == FLOOR_S
    assert deadline.seconds(60.0, 7.0) == 7.0  # but a neighbor half as fast as we are is waited for
    assert deadline.seconds(0.5, 7.0) == 0.5  # and never longer than the user said


def test_median_plus_six_mads() -> None:
    assert Deadline([2.0, 3.0, 4.0, 5.0, 6.0]).seconds(60.0, 0.0) == pytest.approx(4.0 + 6 * 1.0)


def test_one_straggler_hardly_moves_it_but_a_slow_majority_does() -> None:
    assert Deadline([1.0] * 9 + [50.0]).seconds(60.0, 0.0) == 1.0
    deadline = Deadline([1.0] * 4)
    for _ in range(6):
        deadline.missed(deadline.seconds(60.0, 0.0))
    assert deadline.seconds(60.0, 0.0) >= MISSED_FACTOR


def test_a_snapshot_restores_it() -> None:
    deadline = Deadline([1.0, 2.0, 5.0])
    assert Deadline(deadline.snapshot()).seconds(60.0, 0.0) == deadline.seconds(60.0, 0.0)
