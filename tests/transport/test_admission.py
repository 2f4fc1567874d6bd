"""Who is let in, whose turn it is, and how fast anybody may go: pure decisions at given times."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from peer.network.admission import PEERS_REMEMBERED_MAX, Admission, place_of
from peer.network.handshakes import Handshake, Handshakes
from peer.network.limits import Limits
from peer.network.pace import Bucket, Flood, Pace


def admission(**limits: float) -> Admission[str]:
    return Admission(Limits(**limits))


def arrive(at: Admission[str], connection: str, ip: str = "192.0.2.1", *, now: float = 0.0) -> list[str]:
    """Let a peer connect whose id is the connection's name; return who has to go."""
    return [other for other, _ in at.arrived(connection, connection, ip, now, is_incoming=True)]


# -- who stays -------------------------------------------------------------------------------------------------------


def test_the_oldest_newcomer_of_the_greediest_address_goes() -> None:
    at = admission(newcomers_max=3)
    assert arrive(at, "a", "192.0.2.1") == []
    assert arrive(at, "b", "192.0.2.2") == []
    assert arrive(at, "c", "192.0.2.2") == []
    assert arrive(at, "d", "192.0.2.3") == ["b"]


def test_members_and_those_whom_we_dialed_take_no_newcomer_s_slot() -> None:
    at = admission(newcomers_max=1)
    at.trust("a")
    assert arrive(at, "a") == []
    assert at.arrived("b", "b", "192.0.2.1", 0.0, is_incoming=False) == []
    assert arrive(at, "c") == []
    at.trust("c")
    assert arrive(at, "d") == []
    at.distrust("c")
    assert arrive(at, "e") == ["c"]


def test_a_member_takes_the_place_of_a_newcomer_and_not_the_reverse() -> None:
    at = admission(connections_max=2)
    at.trust("member")
    arrive(at, "first")
    arrive(at, "second")
    assert arrive(at, "member") == ["first"]
    at.ended("first")
    at.trust("second")
    assert not at.has_room()
    assert arrive(at, "third") == ["third"]


def test_newcomers_have_their_time() -> None:
    at = admission(newcomer_s=10.0)
    at.trust("member")
    for name in ("stranger", "member"):
        arrive(at, name, now=5.0)
    assert at.overdue(14.9) == []
    assert at.overdue(15.0) == ["stranger"]
    at.ended("stranger")
    assert at.overdue(99.0) == []


def test_who_is_shut_out_stays_out_for_a_while() -> None:
    at = admission(shut_out_s=60.0)
    at.shut_out("a", 0.0)
    assert arrive(at, "a", now=59.0) == ["a"]
    assert arrive(at, "a", now=60.0) == []


def test_peers_that_ever_came_leave_bounded_tables() -> None:
    at = admission()
    for number in range(3 * PEERS_REMEMBERED_MAX):
        at.trust(str(number))
        at.shut_out(str(number), 0.0)
        at.pace(str(number))
    for table in (at._members, at._paces, at._shut_out):
        assert len(table) == PEERS_REMEMBERED_MAX


def test_reconnecting_begins_no_rate_anew() -> None:
    at = admission()
    pace = at.pace("a")
    assert at.pace("a") is pace


@pytest.mark.parametrize(
    ("ip", "place"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_whole_network_of_ipv6_is_one_place(ip: str, place: str) -> None:
    assert place_of(ip) == place


# -- how fast --------------------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = Bucket(10.0, 5.0)
    bucket.take(5.0, 100.0)
    assert bucket.wait_s(100.0) == 0.0
    bucket.take(1.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.1)
    assert bucket.wait_s(100.1) == pytest.approx(0.0)
    bucket.take(0.0, 1000.0)
    bucket.take(5.0, 1000.0)
    assert bucket.wait_s(1000.0) == 0.0, "it holds no more than its burst"


def test_who_exceeds_a_rate_waits_and_who_floods_is_told_so() -> None:
    pace = Pace(Limits(streams_per_s=10.0, streams_burst=10.0, flood_s=10.0))
    pace.use(is_member=True)
    for _ in range(20):
        pace.stream(0.0)
    assert pace.pause_s(0.0) == pytest.approx(1.0)
    for _ in range(90):
        pace.stream(0.0)
    with pytest.raises(Flood, match="streams"):
        pace.stream(0.0)


def test_what_a_newcomer_does_counts_more() -> None:
    pace = Pace(Limits(frames_per_s=100.0, frames_burst=0.0, newcomer_cost=5.0))
    pace.frames(10.0, 0.0)
    assert pace.pause_s(0.0) == pytest.approx(0.5)
    pace.use(is_member=True)
    pace.frames(10.0, 0.5)
    assert pace.pause_s(0.5) == pytest.approx(0.1)


def test_faults_are_forgiven_in_time() -> None:
    pace = Pace(Limits(faults_burst=3.0, fault_s=100.0))
    assert [pace.fault(0.0) for _ in range(4)] == [False, False, False, True]
    assert not pace.fault(200.0)


# -- whose turn ------------------------------------------------------------------------------------------------------


def turns(arrivals: list[str], seconds: float, **limits: float) -> list[int]:
    """Let handshakes of so many addresses ask at once; return whose turn it was, in order, within so many seconds."""
    given: list[int] = []

    async def main() -> None:
        handshakes = Handshakes(Limits(**limits))

        async def ask(number: int, handshake: Handshake) -> None:
            with handshake.scope:
                await handshakes.ask(handshake)
                given.append(number)
            handshakes.end(handshake)

        async with trio.open_nursery() as nursery:
            for number, ip in enumerate(arrivals):
                nursery.start_soon(ask, number, handshakes.begin(ip))
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(handshakes.run)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return given


def test_the_latest_of_an_address_has_its_turn_first_at_the_rate_of_the_address() -> None:
    assert turns(["192.0.2.1"] * 5, 0.15, handshakes_per_s=10.0, handshakes_burst=1.0) == [4, 3, 2]


def test_an_address_that_asks_much_delays_nobody_else() -> None:
    first = turns(["192.0.2.2", *["192.0.2.1"] * 50], 0.01, handshakes_per_s=1.0, handshakes_burst=4.0)
    assert 0 in first
    assert len(first) <= 7


def test_the_oldest_of_the_greediest_address_goes_when_there_are_too_many() -> None:
    given = turns(["192.0.2.2", *["192.0.2.1"] * 5], 1.0, handshakes_max=4)
    assert sorted(given) == [0, 3, 4, 5]


def test_an_address_that_flooded_us_waits_a_second_more() -> None:
    async def main() -> None:
        handshakes = Handshakes(Limits(handshakes_burst=0.0))
        handshakes.punish("192.0.2.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handshakes.run)
            begun = trio.current_time()
            await handshakes.ask(handshakes.begin("192.0.2.1"))
            assert trio.current_time() - begun == pytest.approx(1.0, abs=0.01)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
