"""The announcements' router by itself: who hears what, and that nothing anybody says makes it grow."""

from __future__ import annotations

import random

import pytest

from gossip.errors import RemoteError
from peer.network import gossipsub
from peer.network.gossipsub import (
    BACKOFF_MAX_S,
    BACKOFF_S,
    BACKOFFS_MAX,
    DEGREE_HIGH,
    DEGREE_LOW,
    HISTORY_BEATS,
    HISTORY_BYTES_MAX,
    SEEN_MAX,
    SEEN_S,
    WANTED_MAX,
    GossipSub,
    Message,
    Outgoing,
    Rpc,
)
from peer.network.libp2p_rpc import decode_rpc, encode_rpc

TOPIC = "run"


def message(number: int, author: str = "author", size: int = 100) -> Message:
    return Message(f"{author}{number}".encode(), author, b"data", bytes(size))


def among(count: int, seed: int = 0) -> GossipSub:
    """A router with neighbors n0, n1 and so on, all of whom take part."""
    router = GossipSub(random.Random(seed))
    for number in range(count):
        router.joined(f"n{number}")
        router.handle(f"n{number}", Rpc(subscribed=True), 0.0)
    return router


def told(outgoing: Outgoing) -> set[str]:
    return {peer for peer, _ in outgoing}


def test_our_own_go_to_all_and_those_of_others_through_the_mesh() -> None:
    router = among(20)
    router.beat(0.0)
    assert DEGREE_LOW <= len(router.mesh) <= DEGREE_HIGH
    assert told(router.publish(message(1, "me"), 0.0)) == {f"n{number}" for number in range(20)}
    relay = min(router.mesh)
    assert told(router.take(message(2), relay, 0.0)) == router.mesh - {relay}
    author = max(router.mesh)
    assert author not in told(router.take(message(3, author), relay, 0.0))


def test_a_message_is_new_once_within_two_minutes() -> None:
    router = among(1)
    assert router.is_new(message(1).id)
    router.take(message(1), "n0", 0.0)
    assert not router.is_new(message(1).id)
    router.beat(SEEN_S - 1)
    assert not router.is_new(message(1).id)
    router.beat(SEEN_S)
    assert router.is_new(message(1).id)


def test_those_outside_of_the_mesh_learn_what_they_missed_and_get_it_once() -> None:
    router = among(20)
    router.beat(0.0)
    heard = message(1)
    router.take(heard, "n0", 0.0)
    named = [(peer, rpc) for peer, rpc in router.beat(1.0) if rpc.have]
    assert named
    assert not told(named) & router.mesh
    peer, rpc = named[0]
    assert rpc.have == (heard.id,)
    answer = router.handle(peer, Rpc(want=(heard.id, heard.id, b"unknown")), 1.0)
    assert answer == [(peer, Rpc(messages=(heard,)))]
    assert router.handle(peer, Rpc(want=(heard.id,)), 1.0) == []
    for _ in range(HISTORY_BEATS):
        router.beat(2.0)
    assert router.handle(peer, Rpc(want=(heard.id,)), 2.0) == []


def test_what_is_named_and_unknown_is_asked_for_within_bounds() -> None:
    router = among(1)
    router.take(message(0), "n0", 0.0)
    have = tuple(message(number).id for number in range(3 * WANTED_MAX))
    ((_, asked),) = router.handle("n0", Rpc(have=have), 0.0)
    assert asked.want == have[1 : WANTED_MAX + 1]
    assert router.handle("n0", Rpc(have=have), 0.0) == []
    router.beat(1.0)
    assert router.handle("n0", Rpc(have=have), 1.0)


def test_who_prunes_us_is_left_in_peace() -> None:
    router = among(1)
    assert router.mesh == {"n0"}
    assert router.handle("n0", Rpc(prune_s=BACKOFF_S), 0.0) == []
    assert router.beat(BACKOFF_S - 1.0) == []
    assert router.handle("n0", Rpc(graft=True), BACKOFF_S - 1.0) == [("n0", Rpc(prune_s=BACKOFF_S))]
    assert router.beat(BACKOFF_S + 1.0) == [], "asking too early costs it another pause"
    assert router.beat(2 * BACKOFF_S) == [("n0", Rpc(graft=True))]


def test_a_backoff_is_at_most_ten_minutes() -> None:
    router = among(1)
    router.handle("n0", Rpc(prune_s=1 << 63), 0.0)
    assert router.beat(BACKOFF_MAX_S + 1.0) == [("n0", Rpc(graft=True))]


def test_the_mesh_takes_no_more_than_it_holds_and_only_who_takes_part() -> None:
    router = among(20)
    for number in range(20):
        router.handle(f"n{number}", Rpc(graft=True), 0.0)
    assert len(router.mesh) == DEGREE_HIGH
    router.joined("mute")
    assert router.handle("mute", Rpc(graft=True), 0.0) == [("mute", Rpc(prune_s=BACKOFF_S))]
    leaver = min(router.mesh)
    router.handle(leaver, Rpc(subscribed=False), 0.0)
    assert leaver not in router.mesh


def test_a_stream_begins_with_what_the_other_side_may_have_lost() -> None:
    router = among(1)
    assert router.greeting("n0") == Rpc(subscribed=True, graft=True)
    router.left("n0")
    assert router.greeting("n0") == Rpc(subscribed=True)


def test_strangers_are_not_heard() -> None:
    router = among(1)
    assert router.handle("stranger", Rpc(subscribed=True, graft=True, have=(b"x",)), 0.0) == []


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_is_said_makes_it_grow(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random neighbors that come, go and say anything; bounds made small, so that they are met."""
    monkeypatch.setattr(gossipsub, "SEEN_MAX", 50)
    monkeypatch.setattr(gossipsub, "BACKOFFS_MAX", 10)
    monkeypatch.setattr(gossipsub, "HISTORY_BYTES_MAX", 2000)
    draw, now = random.Random(seed), 0.0
    router, present = GossipSub(random.Random(seed)), set[str]()
    for step in range(3000):
        now += draw.random()
        peer = f"n{draw.randrange(30)}"
        match draw.randrange(8):
            case 0:
                router.joined(peer)
                present.add(peer)
                outgoing: Outgoing = []
            case 1:
                router.left(peer)
                present.discard(peer)
                outgoing = []
            case 2:
                outgoing = router.beat(now)
            case 3:
                outgoing = router.take(message(step, f"a{step % 7}", draw.choice((50, 3000))), peer, now)
            case _:
                ids = tuple(message(draw.randrange(step + 1), f"a{draw.randrange(7)}").id for _ in range(5))
                said = Rpc(
                    subscribed=draw.choice((None, True, True, False)),
                    have=ids if draw.random() < 0.5 else (),
                    want=ids if draw.random() < 0.5 else (),
                    graft=draw.random() < 0.5,
                    prune_s=draw.choice((None, None, 0, 60, 1 << 62)),
                )
                outgoing = router.handle(peer, said, now)
        assert told(outgoing) <= present
        assert router.mesh <= present
        assert len(router.mesh) <= DEGREE_HIGH
        assert len(router._seen) <= 50
        assert len(router._backoffs) <= 10
        assert len(router._history) <= HISTORY_BEATS
        kept = [kept for beat in router._history for kept in beat.values()]
        assert router._history_bytes == sum(len(kept.wire) for kept in kept) <= 2000


def test_the_bounds_are_what_memory_allows() -> None:
    assert SEEN_MAX * 250 + HISTORY_BYTES_MAX + BACKOFFS_MAX * 250 <= 16 << 20


# -- the gate --------------------------------------------------------------------------------------------------------


def test_what_we_write_can_be_read() -> None:
    ids = (bytes(46), bytes(45) + b"x")
    for said in (
        Rpc(subscribed=True, graft=True),
        Rpc(subscribed=False, prune_s=60),
        Rpc(have=ids),
        Rpc(want=ids),
        Rpc(),
    ):
        assert decode_rpc(encode_rpc(said, TOPIC), TOPIC) == said


@pytest.mark.parametrize("seed", range(10))
def test_no_bytes_pass_the_gate_but_well_formed_ones(seed: int) -> None:
    draw = random.Random(seed)
    honest = encode_rpc(
        Rpc(subscribed=True, have=(bytes(46),) * 3, want=(bytes(46),), graft=True, prune_s=9), TOPIC
    )
    passed = 0
    for _ in range(1000):
        data = bytearray(honest)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            rpc = decode_rpc(bytes(data[: draw.choice((len(data), draw.randrange(len(data))))]), TOPIC)
        except RemoteError as error:
            assert error.reason == "announcement"  # noqa: PT017 - the only error that may come out
        else:
            passed += 1
            assert all(len(id) == 46 for id in (*rpc.have, *rpc.want))
    assert 0 < passed < 1000
