"""The membership machine: unit by unit, under any order of events, and many of them together in the simulator."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import wire
from gossip.errors import LocalError, RemoteError
from gossip.events import PeerDown, PeerUp
from gossip.manifest import RunManifest
from gossip.membership import Membership
from gossip.membership_events import (
    Action,
    Announce,
    AnnouncementDue,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Connected,
    Dial,
    DialBack,
    Dialed,
    DialFailed,
    Disconnected,
    Drop,
    Event,
    Heard,
    Heartbeat,
    HeartbeatsDue,
    Incompatible,
    Join,
    JoinEnded,
    Joining,
    JoinOver,
    Leave,
    NobodyThere,
    Post,
    Progressed,
    Reject,
    Search,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Tell,
    TimerFired,
)
from gossip.membership_limits import (
    ADDRESS_LETTERS,
    ADDRESSES_PER_PEER,
    DIALS_MAX,
    FORGET_S,
    HEARTBEAT_S,
    HEARTBEATS_MISSED,
    PEERS_MAX,
    PRESENCE_GAP_S,
    PRESENCE_S,
    REDIAL_FIRST_S,
    REDIAL_LONGEST_S,
    RUMOR_FORGET_S,
    STRIKES,
    STRIKES_S,
)
from gossip.messages import Hello, Message, Ping, Presence, Pull, Refusal
from gossip.quadratic import Quadratic, positions
from gossip.simulated_membership import ANSWER_S
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation

ANNOUNCEMENTS = itertools.count(1)
AWAY = RemoteError("unreachable", "nobody answers")


def manifest(codec: str = "float32") -> RunManifest:
    return RunManifest(
        base_model="b",
        dtype="d",
        tokenizer="t",
        settings={"adapter": "a"},
        layout="l",
        seed=0,
        initial="i",
        factors="f",
        mixing="m",
        optimizer="o",
        codec=codec,
        feedback="n",
        gamma="1",
        rounds=9,
        merge="none",
        overlap="no",
        private="no",
    )


def address(peer: str) -> str:
    return f"/there/{peer}/p2p/{peer}"


def hello(peer: str, *known: str, codec: str = "float32", round: int = 0) -> Hello:
    return Hello(manifest(codec).fields(), peer.upper(), round, (address(peer),), tuple(map(address, known)))


def presence(peer: str, *addresses: str, round: int = 0, leaving: bool = False) -> Heard:
    told = addresses or (address(peer),)
    said = Presence(manifest().fingerprint, peer.upper(), round, told, leaving, sequence=next(ANNOUNCEMENTS))
    return Heard(peer, said)


class Machine:
    """A machine and its clock; whatever is done with it returns the actions."""

    def __init__(self) -> None:
        self.membership = Membership(manifest(), "ME", random.Random(0))
        self.now = 100.0
        self.began = self.does(Start("me", (address("me"),)))

    def does(self, event: Event) -> list[Action]:
        return self.membership.handle(event, self.now)

    def meets(self, *peers: str) -> None:
        for peer in peers:
            self.does(Asked(peer, hello(peer)))

    def meets_and_dials_back(self, *peers: str) -> None:
        """Be greeted, and find the peers where they say they are."""
        for peer in peers:
            (proof,) = only(self.does(Asked(peer, hello(peer))), Dial)
            assert isinstance(proof.errand, DialBack)
            assert self.does(Dialed(proof.errand, peer)) == []

    def member(self, peer: str):
        return self.membership.members.by_id[peer]

    @property
    def up(self) -> set[str]:
        return {peer for peer, member in self.membership.members.by_id.items() if member.is_up}


def only(actions: Iterable[Action], *kinds: type) -> list:
    return [action for action in actions if isinstance(action, kinds)]


# -- greeting


def test_joining_dials_greets_and_looks_for_those_that_are_named() -> None:
    me = Machine()
    dial, timer = me.does(Join(7, (address("a"),), 15.0, required=True))
    assert isinstance(dial, Dial)
    assert dial.addresses == (address("a"),)
    assert timer == SetTimer(JoinOver(7), 15.0)
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert isinstance(ask, Ask)
    assert ask.question == Hello(manifest().fields(), "ME", 0, (address("me"),), ())
    *up, search, ended, soon = me.does(Answered(ask.errand, hello("a", "b", "me", round=3)))
    assert up == [Post(PeerUp("a", 3)), Tell("peer A is up (a); others up: 1")]
    assert isinstance(search, Dial)
    assert (search.peer, search.addresses) == ("b", (address("b"),))
    assert ended == JoinEnded(7, None)
    assert soon == SetTimer(AnnouncementDue(1), PRESENCE_GAP_S)  # nobody can have heard the first one
    assert me.does(TimerFired(JoinOver(7))) == []


def test_a_greeting_is_answered_with_those_that_are_up() -> None:
    me = Machine()
    me.meets_and_dials_back("a")
    answer, *rest, proof = me.does(Asked("b", hello("b", round=2)))
    assert answer == Answer(Hello(manifest().fields(), "ME", 0, (address("me"),), (address("a"),)))
    assert rest == [Post(PeerUp("b", 2)), Tell("peer B is up (b); others up: 2")]
    assert proof == Dial(DialBack("b", address("b"), 2), (address("b"),), "b")


def test_a_refusal_names_the_field_in_the_readers_words() -> None:
    me = Machine()
    reject, told, answer = me.does(Asked("a", hello("a", codec="int8")))
    assert reject == Reject("manifest")
    assert told == Tell("refused peer a of another run: codec differs: ours is float32, theirs is int8")
    words = "codec differs: ours is int8, theirs is float32; give --codec float32"
    assert answer == Answer(Refusal("manifest", words))
    assert me.membership.members.by_id == {}


@pytest.mark.parametrize(
    "answer",
    [
        hello("a", codec="int8"),
        Refusal("manifest", "codec differs: ours is float32, theirs is int8; give --codec int8"),
    ],
)
def test_another_run_ends_a_first_join_and_a_search(answer: Message) -> None:
    text = (
        "peer a takes part in another run: codec differs: ours is float32, theirs is int8; give --codec int8"
    )
    me = Machine()
    dial, _ = me.does(Join(0, (address("a"),), 15.0, required=True))
    (ask,) = me.does(Dialed(dial.errand, "a"))
    (ended,) = me.does(Answered(ask.errand, answer))
    assert isinstance(ended.error, Incompatible)
    assert str(ended.error) == text
    (dial,) = me.does(presence("a"))
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert me.does(Answered(ask.errand, answer)) == [Tell(text)]
    assert "a" not in me.membership.members.by_id


def test_what_is_neither_hello_nor_ping_is_not_answered() -> None:
    me = Machine()
    assert me.does(Asked("a", Pull(bytes(16), None, -1, 0.0))) == []
    assert me.up == set()


def test_a_ping_is_answered_only_after_a_hello() -> None:
    me = Machine()
    (answer,) = me.does(Asked("a", Ping(3)))
    assert answer == Answer(Refusal("hello", "exchange a hello of this run first"))
    me.meets("a")
    assert me.does(Asked("a", Ping(3)))[0] == Answer(Ping(0))


def test_whoever_does_not_know_us_any_more_is_greeted_at_once() -> None:
    me = Machine()
    me.meets("a")
    (ask,) = me.does(Suspect("a"))
    (dial,) = me.does(Answered(ask.errand, Refusal("hello", "")))
    assert isinstance(dial, Dial)
    (greeting,) = me.does(Dialed(dial.errand, "a"))
    assert isinstance(greeting.question, Hello)


def test_what_was_announced_before_does_not_count_again() -> None:
    me = Machine()
    me.meets("a")
    goodbye = presence("a", leaving=True)
    me.does(goodbye)
    me.meets("a")
    assert me.does(goodbye) == []
    later = replace(goodbye.message, sequence=0, incarnation=1)
    me.does(Asked("a", replace(hello("a"), incarnation=2)))
    assert me.does(Heard("a", later)) == []  # of an earlier life
    assert me.up == {"a"}


def test_a_hello_fits_into_a_frame_however_long_addresses_are() -> None:
    me = Machine()
    for number in range(2 * wire.LIST_ITEMS_MAX):
        me.meets_and_dials_back(f"{number:03}" + "x" * 115)
        me.now += 1.0
    assert len(address(f"{0:03}" + "x" * 115)) > 0.95 * ADDRESS_LETTERS
    (answer, *_) = me.does(Asked("a", hello("a")))
    assert len(wire.encode(answer.message)) <= wire.FRAME_BYTES_MAX
    assert len(answer.message.known) == wire.LIST_ITEMS_MAX


def test_nothing_is_looked_at_before_the_start() -> None:
    membership = Membership(manifest(), "ME", random.Random(0))
    assert membership.handle(presence("a"), 0.0) == []
    assert membership.handle(Progressed(4), 0.0) == []
    announce, *_ = membership.handle(Start("me", ()), 1.0)
    assert isinstance(announce, Announce)
    assert announce.presence.round == 4


# -- joining


def test_a_join_tries_again_until_its_time_is_over() -> None:
    me = Machine()
    first, _ = me.does(Join(0, (address("a"),), 15.0, required=True))
    (timer,) = me.does(DialFailed(first.errand, AWAY))
    assert timer.delay_s == REDIAL_FIRST_S
    assert me.does(DialFailed(first.errand, AWAY)) == []  # comes a second time
    (second,) = me.does(TimerFired(timer.timer))
    assert second.addresses == first.addresses
    assert me.does(TimerFired(timer.timer)) == []
    (ended,) = me.does(TimerFired(JoinOver(0)))
    assert isinstance(ended.error, NobodyThere)
    assert str(ended.error) == f"cannot join {address('a')} within 15 s: nobody answers"
    assert me.does(Dialed(second.errand, "a")) == []
    me.does(Join(1, (address("a"),), 15.0, required=True))
    (ended,) = me.does(TimerFired(JoinOver(1)))
    assert str(ended.error) == f"cannot join {address('a')}: no answer within 15 s"


def test_one_of_several_is_enough_and_the_others_are_told() -> None:
    me = Machine()
    to_a, to_b, _ = me.does(Join(0, (address("a"), address("b")), 15.0, required=True))
    (ask,) = me.does(Dialed(to_a.errand, "a"))
    assert only(me.does(Answered(ask.errand, hello("a"))), JoinEnded) == []
    me.does(DialFailed(to_b.errand, AWAY))
    told, ended = me.does(TimerFired(JoinOver(0)))
    assert told == Tell(f"cannot join {address('b')} within 15 s: nobody answers (going on without it)")
    assert ended == JoinEnded(0, None)


@pytest.mark.parametrize("problem", [LocalError("malformed address"), Incompatible("another run")])
def test_what_the_user_has_to_mend_ends_a_first_join_even_if_others_were_reached(problem: LocalError) -> None:
    me = Machine()
    to_a, to_b, _ = me.does(Join(0, (address("a"), address("b")), 15.0, required=True))
    assert me.does(DialFailed(to_b.errand, problem)) == []
    (ask,) = me.does(Dialed(to_a.errand, "a"))
    assert only(me.does(Answered(ask.errand, hello("a"))), JoinEnded) == [JoinEnded(0, problem)]


@pytest.mark.parametrize("problem", [LocalError("malformed address"), Incompatible("another run")])
def test_a_restart_goes_on_without_whoever_has_begun_another_run(problem: LocalError) -> None:
    """A remembered peer of another run once ended every restart, with exit code 5."""
    me = Machine()
    to_a, _ = me.does(Join(0, (address("a"),), 15.0, required=False))
    told = Tell(f"{problem} (going on without it)")
    assert me.does(DialFailed(to_a.errand, problem)) == [told, JoinEnded(0, None)]


def test_what_could_not_be_joined_in_time_is_tried_on_for_ever() -> None:
    """Two groups that wait for a common contact find each other when it comes, however late."""
    me = Machine()
    dial, _ = me.does(Join(0, (address("a"),), 15.0, required=False))
    assert me.does(TimerFired(JoinOver(0)))[-1] == JoinEnded(0, None)
    assert me.does(TimerFired(JoinOver(0))) == []
    pauses = []
    for _ in range(1000):
        (timer,) = me.does(DialFailed(dial.errand, AWAY))
        pauses.append(timer.delay_s)
        me.now += timer.delay_s
        (dial,) = me.does(TimerFired(timer.timer))
    assert pauses[:3] == [REDIAL_FIRST_S, 2 * REDIAL_FIRST_S, 4 * REDIAL_FIRST_S]
    assert pauses[-1] == REDIAL_LONGEST_S
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert only(me.does(Answered(ask.errand, hello("a"))), JoinEnded) == []
    assert me.up == {"a"}
    assert me.does(DialFailed(dial.errand, AWAY)) == []


def test_a_polite_no_is_asked_again() -> None:
    me = Machine()
    dial, _ = me.does(Join(0, (address("a"),), 15.0, required=True))
    (ask,) = me.does(Dialed(dial.errand, "a"))
    (timer,) = me.does(Answered(ask.errand, Refusal("busy", "cut off")))
    assert isinstance(timer.timer, Joining)
    (ended,) = me.does(TimerFired(JoinOver(0)))
    assert "within 15 s: cut off" in str(ended.error)


def test_nobody_to_join_is_over_at_once() -> None:
    assert Machine().does(Join(3, (), 15.0, required=True)) == [JoinEnded(3, None)]


# -- hearing of peers


def test_an_unknown_peer_that_announces_itself_is_searched_for_once() -> None:
    me = Machine()
    (dial,) = me.does(presence("a"))
    assert (dial.peer, dial.addresses) == ("a", (address("a"),))
    assert me.does(presence("a")) == []
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert isinstance(ask.question, Hello)
    assert me.does(presence("a")) == []
    assert me.does(Answered(ask.errand, hello("a")))[0] == Post(PeerUp("a", 0))
    assert me.does(presence("a", round=5)) == [Post(PeerUp("a", 5))]
    assert me.member("a").round == 5


def test_announcements_of_other_runs_and_of_ourselves_are_ignored() -> None:
    me = Machine()
    assert me.does(presence("me")) == []
    assert me.does(Heard("a", Presence(bytes(16), "A", 0, (address("a"),)))) == []
    assert me.does(Heard("a", Ping(1))) == []
    assert me.membership.members.by_id == {}


def test_an_address_must_name_the_peer_itself() -> None:
    me = Machine()
    (dial,) = me.does(presence("a", address("b"), "/ip4/10.0.0.1/tcp/80", address("a")))
    assert dial.addresses == (address("a"),)
    many = tuple(f"/there/{number}/p2p/a" for number in range(10))
    me.does(presence("a", *many))
    assert me.member("a").addresses == many[:ADDRESSES_PER_PEER]


def test_what_others_say_of_a_peer_never_displaces_what_it_says_itself() -> None:
    me = Machine()
    me.does(presence("a"))
    for number in range(10):
        rumor = Hello(manifest().fields(), "B", 0, (), (f"/there/{number}/p2p/a",))
        me.does(Asked("b", rumor))
    assert me.member("a").addresses[0] == address("a")
    assert len(me.member("a").addresses) == ADDRESSES_PER_PEER


def test_whoever_is_up_is_not_greeted_again() -> None:
    me = Machine()
    me.meets("a", "b")
    me.meets_and_dials_back("c")
    assert only(me.does(Asked("c", hello("c", "a", "b", "c", "me"))), Dial, Ask) == []
    (dial,) = only(me.does(Asked("c", hello("c", "a", "d"))), Dial, Ask)
    assert dial.peer == "d"


def test_a_full_table_takes_nobody_in_and_still_answers() -> None:
    me = Machine()
    with mock.patch("gossip.member_places.PEERS_MAX", 3):
        me.meets("a", "b", "c")
        assert me.does(presence("d")) == []
        (answer,) = me.does(Asked("d", hello("d", "e")))
        assert isinstance(answer, Answer)
        assert me.up == {"a", "b", "c"}
        me.does(presence("c", leaving=True))
        assert me.does(presence("d")) == []  # it may come back
        me.now += FORGET_S + 1
        me.does(TimerFired(HeartbeatsDue()))
        assert [dial.peer for dial in me.does(presence("d"))] == ["d"]


# -- searching


def test_redials_back_off_to_the_limit_and_end_with_forgetting() -> None:
    me = Machine()
    (dial,) = me.does(presence("a"))
    began, expected_s = me.now, REDIAL_FIRST_S
    while timers := me.does(DialFailed(dial.errand, AWAY)):
        (timer,) = timers
        assert expected_s / 2 <= timer.delay_s <= expected_s
        expected_s = min(2 * expected_s, REDIAL_LONGEST_S)
        me.now += timer.delay_s
        (dial,) = me.does(TimerFired(timer.timer))
    assert expected_s == REDIAL_LONGEST_S
    assert RUMOR_FORGET_S < me.now - began <= RUMOR_FORGET_S + REDIAL_LONGEST_S
    assert "a" not in me.membership.members.by_id


def test_a_lost_connection_is_dialed_at_once_and_the_peer_is_down_only_if_that_fails() -> None:
    me = Machine()
    me.meets("a")
    (dial,) = me.does(Disconnected("a"))
    assert (dial.peer, dial.afresh) == ("a", False)
    assert me.up == {"a"}
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert me.does(Answered(ask.errand, hello("a", round=1))) == [Post(PeerUp("a", 1))]
    (dial,) = me.does(Disconnected("a"))
    down, told, timer = me.does(DialFailed(dial.errand, AWAY))
    assert down == Post(PeerDown("a"))
    assert told == Tell("peer A is down: connection lost; others up: 0")
    assert isinstance(timer.timer, Search)


def test_a_connection_that_is_lost_while_greeting_is_searched_for_again() -> None:
    me = Machine()
    (dial,) = me.does(presence("a"))
    (ask,) = me.does(Dialed(dial.errand, "a"))
    assert me.does(Disconnected("a")) == []
    (timer,) = me.does(Answered(ask.errand, hello("a")))
    assert isinstance(timer.timer, Search)
    assert me.up == set()


def test_a_peer_that_greets_us_need_not_be_searched_for() -> None:
    me = Machine()
    (dial,) = me.does(presence("a"))
    (timer,) = me.does(DialFailed(dial.errand, AWAY))
    me.meets("a")
    assert me.does(TimerFired(timer.timer)) == []
    (dial,) = me.does(Disconnected("a"))  # and a loss after that is noticed
    assert dial.peer == "a"


def test_late_answers_are_harmless() -> None:
    me = Machine()
    (dial,) = me.does(presence("a"))
    (ask,) = me.does(Dialed(dial.errand, "a"))
    me.does(presence("a", leaving=True))  # nobody is searched for any more
    before = replace(me.member("a"))
    late: list[Event] = [
        Dialed(dial.errand, "a"),
        DialFailed(dial.errand, AWAY),
        Answered(ask.errand, hello("a")),
        AskFailed(ask.errand, AWAY),
        TimerFired(ask.errand),
        Answered(Heartbeat("a", 1), Ping(9)),
        AskFailed(Heartbeat("unknown", 1), AWAY),
        Dialed(Joining(5, address("a"), 0), "a"),
        TimerFired(JoinOver(5)),
        TimerFired(AnnouncementDue(0)),
        Dialed(Search("unknown", 1), "unknown"),
    ]
    for event in late:
        assert me.does(event) == []
    assert me.member("a") == before


# -- watching


def test_two_missed_heartbeats_and_a_peer_is_down() -> None:
    me = Machine()
    me.meets("a")
    for _ in range(HEARTBEATS_MISSED - 1):
        ask, timer = me.does(TimerFired(HeartbeatsDue()))
        assert ask.question == Ping(0)
        assert timer == SetTimer(HeartbeatsDue(), HEARTBEAT_S)
        assert me.does(AskFailed(ask.errand, AWAY)) == []
        # Somebody else may have relayed it: it does not make up for a missed heartbeat.
        me.does(presence("a"))
    ask, _ = me.does(TimerFired(HeartbeatsDue()))
    down, told, dial = me.does(AskFailed(ask.errand, AWAY))
    assert down == Post(PeerDown("a"))
    assert told == Tell("peer A is down: 2 heartbeats missed; others up: 0")
    assert (dial.peer, dial.afresh) == ("a", True)


def test_an_answered_heartbeat_makes_up_for_a_missed_one() -> None:
    me = Machine()
    me.meets("a")
    for round in range(10):
        for answer in (None, Ping(round)):
            ask, _ = me.does(TimerFired(HeartbeatsDue()))
            me.does(Answered(ask.errand, answer) if answer else AskFailed(ask.errand, AWAY))
        assert me.member("a").round == round
    assert me.up == {"a"}


def test_a_refusal_is_no_heartbeat() -> None:
    me = Machine()
    me.meets("a")
    for _ in range(HEARTBEATS_MISSED):
        ask, _ = me.does(TimerFired(HeartbeatsDue()))
        me.does(Answered(ask.errand, Refusal("busy")))
    assert me.up == set()


def test_a_peer_that_hangs_is_asked_once_and_holds_nobody_up() -> None:
    me = Machine()
    me.meets("a", "b")
    for _ in range(5):
        asks = only(me.does(TimerFired(HeartbeatsDue())), Ask)
        waiting = {ask.peer for ask in asks}
        me.does(Answered(next(ask.errand for ask in asks if ask.peer == "b"), Ping(0)))
        assert "b" in waiting
        assert me.does(Suspect("a")) == []
    assert waiting == {"b"}


def test_a_suspect_is_asked_at_once() -> None:
    me = Machine()
    me.meets("a")
    (ask,) = me.does(Suspect("a"))
    assert (ask.peer, ask.question) == ("a", Ping(0))
    assert me.does(Suspect("a")) == []
    assert me.does(Suspect("unknown")) == []


def test_a_goodbye_is_believed_at_once_and_nobody_is_searched_for() -> None:
    me = Machine()
    me.meets("a")
    down, told = me.does(presence("a", leaving=True))
    assert down == Post(PeerDown("a"))
    assert told == Tell("peer A is down: left; others up: 0")
    assert me.does(Disconnected("a")) == []
    me.does(presence("b"))
    me.does(presence("b", leaving=True))
    assert me.member("b").search is None


def test_strikes_cut_off_and_the_ban_ends() -> None:
    me = Machine()
    me.meets("a")
    for _ in range(STRIKES - 1):
        assert me.does(Strike("a", "malformed")) == []
    told, down, also_told, drop = me.does(Strike("a", "malformed"))
    assert told == Tell("peer A (a) is cut off for 600 s: malformed")
    assert down == Post(PeerDown("a"))
    assert also_told == Tell("peer A is down: malformed; others up: 0")
    assert drop == Drop("a")
    assert me.does(Connected("a")) == [Drop("a")]
    assert me.does(presence("a")) == []
    (answer,) = me.does(Asked("a", hello("a")))
    assert answer == Answer(Refusal("busy", "cut off for a while after repeated faults"))
    me.now += STRIKES_S
    assert me.does(Connected("a")) == []
    me.meets("a")
    assert me.up == {"a"}


def test_whoever_is_cut_off_is_not_searched_for() -> None:
    me = Machine()
    me.meets("a")
    (dial,) = me.does(Disconnected("a"))
    for _ in range(STRIKES):
        me.does(Strike("a", "malformed"))
    assert me.does(DialFailed(dial.errand, AWAY)) == []
    assert me.does(Dialed(dial.errand, "a")) == []


def test_strikes_far_apart_cut_nobody_off() -> None:
    me = Machine()
    me.meets("a")
    for _ in range(3 * STRIKES):
        me.now += STRIKES_S / (STRIKES - 1)
        assert me.does(Strike("a", "malformed")) == []


def test_a_ban_outlives_forgetting() -> None:
    me = Machine()
    me.meets("a", "b")
    for peer in "ab":
        me.does(presence(peer, leaving=True))
    me.now += FORGET_S + 1
    for _ in range(STRIKES):
        me.does(Strike("a", "malformed"))
    me.does(TimerFired(HeartbeatsDue()))
    assert me.membership.members.by_id == {}
    assert me.does(presence("a")) == []
    assert me.does(Connected("a")) == [Drop("a")]


# -- announcing


def test_we_announce_ourselves_at_intervals_and_soon_after_a_round() -> None:
    me = Machine()
    announce, first, heartbeats = me.began
    assert announce == Announce(
        Presence(manifest().fingerprint, "ME", 0, (address("me"),), False, sequence=1)
    )
    assert first.delay_s == PRESENCE_S
    assert heartbeats == SetTimer(HeartbeatsDue(), HEARTBEAT_S)
    me.now += 0.25 * PRESENCE_GAP_S
    (hurried,) = me.does(Progressed(1))
    assert hurried.delay_s == pytest.approx(0.75 * PRESENCE_GAP_S)
    assert me.does(Progressed(2)) == []  # never more often than the gap allows
    me.now += hurried.delay_s
    announce, second = me.does(TimerFired(hurried.timer))
    assert announce.presence.round == 2
    assert me.does(TimerFired(first.timer)) == []  # done already
    me.now += 2 * PRESENCE_GAP_S
    announce, third = me.does(Progressed(3))
    assert announce.presence.round == 3
    assert me.does(TimerFired(second.timer)) == []
    assert isinstance(me.does(TimerFired(third.timer))[0], Announce)


def test_after_leaving_nobody_is_dialed_asked_or_told() -> None:
    me = Machine()
    me.meets("a", "b")
    (dial,) = me.does(Disconnected("b"))
    joining, _ = me.does(Join(0, (address("d"),), 15.0, required=True))
    (announce,) = me.does(Leave())
    assert announce.presence.leaving
    silent: list[Event] = [
        Disconnected("a"),
        Dialed(dial.errand, "b"),
        Dialed(joining.errand, "d"),
        TimerFired(HeartbeatsDue()),
        TimerFired(AnnouncementDue(1)),
        Progressed(9),
        Suspect("a"),
        presence("c"),
    ]
    for event in silent:
        assert me.does(event) == []


# -- any order of events

PEERS = ("me", "a", "b", "c", "d", "e")
peers = st.sampled_from(PEERS)
addresses = st.lists(st.sampled_from([*map(address, PEERS), "nonsense", "/p2p/", "/x/p2p/a"]), max_size=4)
rounds = st.integers(0, 3)
hellos = st.builds(
    lambda peer, codec, round, known: Hello(
        manifest(codec).fields(), peer, round, (address(peer),), tuple(known)
    ),
    peers,
    st.sampled_from(["float32", "float32", "float32", "int8"]),
    rounds,
    addresses,
)
announced = st.builds(
    lambda peer, addresses, round, leaving: presence(peer, *addresses, round=round, leaving=leaving),
    peers,
    addresses,
    rounds,
    st.booleans(),
)
answers = st.one_of(
    hellos, st.builds(Ping, rounds), st.just(Refusal("busy")), st.just(Refusal("manifest", "seed differs"))
)
strange_errands = st.one_of(
    st.builds(Search, peers, rounds),
    st.builds(Heartbeat, peers, rounds),
    st.builds(Joining, rounds, st.sampled_from(PEERS).map(address), rounds),
)
from_outside = st.one_of(
    announced,
    st.builds(Asked, peers, hellos),
    st.builds(Asked, peers, hellos),
    st.builds(Asked, peers, st.builds(Ping, rounds)),
    st.builds(Connected, peers),
    st.builds(Disconnected, peers),
    st.builds(Progressed, rounds),
    st.builds(Suspect, peers),
    st.builds(Strike, peers, st.just("malformed")),
    st.builds(Answered, strange_errands, answers),
    st.builds(TimerFired, st.one_of(strange_errands.filter(lambda e: not isinstance(e, Heartbeat)),
                                    st.just(HeartbeatsDue()), st.builds(AnnouncementDue, rounds))),
    st.builds(Join, rounds, addresses.map(tuple), st.just(15.0), st.booleans()),
)  # fmt: skip


def outcomes(action: Action) -> st.SearchStrategy[Event]:
    """What the world can make of an action that has an outcome."""
    match action:
        case Dial(errand, addresses, peer):
            reached = peer or addresses[0].rpartition("/p2p/")[2] or "a"
            failures = [DialFailed(errand, AWAY), DialFailed(errand, LocalError("no address"))]
            return st.sampled_from([Dialed(errand, reached), Dialed(errand, reached), *failures])
        case Ask(errand):
            return st.one_of(st.builds(Answered, st.just(errand), answers), st.just(AskFailed(errand, AWAY)))
        case SetTimer(timer):
            return st.just(TimerFired(timer))
        case _:
            raise AssertionError(action)


def is_greeting(event: Event) -> bool:
    match event:
        case Asked(question=Hello()) | Answered(Search() | Joining(), Hello()):
            return True
        case _:
            return False


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_in_any_order_of_events_it_keeps_its_promises(data: st.DataObject) -> None:
    with mock.patch("gossip.member_places.PEERS_MAX", 4):
        me = Machine()
        members = me.membership.members
        node_sees: set[str] = set()
        open_actions: list[Action] = only(me.began, SetTimer)
        for number in range(data.draw(st.integers(1, 60), label="events")):
            me.now += data.draw(st.sampled_from([0.0, 0.1, 5.0, 400.0, 4000.0]))
            if open_actions and data.draw(st.booleans()):
                index = data.draw(st.integers(0, len(open_actions) - 1))
                event = data.draw(outcomes(open_actions.pop(index)))
            else:
                event = data.draw(from_outside)
            if isinstance(event, Join):
                event = replace(event, number=100 + number)  # none is given twice
            before = me.up
            actions = me.does(event)
            open_actions += only(actions, Dial, Ask, SetTimer)
            # peers up, dials that may be under way, addresses of a join
            assert len(actions) <= 8 + len(before) + DIALS_MAX + 4
            assert len(only(open_actions, Dial)) == me.membership._dials.under_way <= DIALS_MAX
            assert len(members.by_id) <= 4
            assert "me" not in members.by_id
            searches = [dial for dial in only(actions, Dial) if isinstance(dial.errand, Search)]
            for dial in searches:
                assert dial.peer != "me"
                assert all(one.endswith(f"/p2p/{dial.peer}") for one in dial.addresses)
            if is_greeting(event):
                assert not before & {dial.peer for dial in searches}
            assert len({dial.peer for dial in searches}) == len(searches)
            for post in only(actions, Post):
                (node_sees.add if isinstance(post.event, PeerUp) else node_sees.remove)(post.event.peer)
            assert node_sees == me.up
            banned = {peer for peer in members.by_id if me.membership._cut_offs.holds(peer, me.now)}
            assert not banned & me.up


def test_the_real_table_is_bounded_too() -> None:
    me = Machine()
    for number in range(PEERS_MAX + 100):
        me.meets(f"peer{number}")
    assert len(me.membership.members.by_id) == PEERS_MAX


# -- many of them


def chain(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {name: (before,) for before, name in itertools.pairwise(names)}


def group_of(peers: int = 6, **settings: object) -> tuple[Quadratic, Simulation]:
    chosen: dict[str, object] = {"topology": "complete", "rounds": 30, "collect_s": 5.0, **settings}
    network = Quadratic(peers=peers, **chosen)
    return network, network.simulation(joins=chain(network.names))


def up_at(simulation: Simulation, peer: str) -> set[str]:
    assert simulation.group
    members = simulation.group.membership(peer).members.by_id
    return {other for other, member in members.items() if member.is_up}


def split(simulation: Simulation, some: Iterable[str], others: Iterable[str], *, heal: bool = False) -> None:
    change = simulation.reconnect if heal else simulation.disconnect
    for mine in some:
        for theirs in others:
            change(mine, theirs)
            change(theirs, mine)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_chain_of_joins_ends_with_everybody_knowing_everybody(loss: float) -> None:
    network, simulation = group_of(peers=8, links=LinkModel(loss=loss))
    simulation.run()
    for name in network.names:
        assert up_at(simulation, name) == set(network.names) - {name}
        assert simulation.node(name).members == network.names
        assert simulation.node(name).round == 30
    reached = positions(simulation, network.names)
    assert float((reached.mean(dim=0) - network.optima().mean(dim=0)).norm()) < 0.7


def test_members_that_name_each_other_do_not_greet_for_ever() -> None:
    _, simulation = group_of(peers=8)
    simulation.run(until_s=5.0)
    assert simulation.group
    hellos = simulation.group.asked["Hello"]
    pairs = 8 * 7 // 2
    assert pairs <= hellos <= 2 * pairs
    simulation.run(until_s=65.0)
    assert simulation.group.asked["Hello"] == hellos
    assert simulation.group.asked["Ping"] >= 5 * 8 * 7


def test_one_that_leaves_is_gone_at_once() -> None:
    network, simulation = group_of()
    simulation.run(until_s=8.0)
    simulation.leave("p0003")
    simulation.run(until_s=9.0)
    rest = [name for name in network.names if name != "p0003"]
    for name in rest:
        assert "p0003" not in up_at(simulation, name)
        assert "p0003" not in simulation.node(name).members
    assert simulation.group
    left = [line for _, _, line in simulation.group.told if "is down" in line]
    assert left == ["peer p0003 is down: left; others up: 4"] * 5
    simulation.run()
    assert all(simulation.node(name).round == 30 for name in rest)


NOTICED_S = (HEARTBEATS_MISSED + 1) * HEARTBEAT_S + ANSWER_S
"""Longest until a silent death is noticed: the last heartbeat came just before it, the last question waits in vain."""


@pytest.mark.parametrize(("silent", "within_s"), [(False, 2.0), (True, NOTICED_S)])
def test_a_death_is_noticed_and_the_rest_go_on(silent: bool, within_s: float) -> None:
    """kill -9 closes its connections; a machine without power says nothing at all."""
    network, simulation = group_of(rounds=100)
    simulation.run(until_s=8.0)
    rest = [name for name in network.names if name != "p0003"]
    if silent:
        split(simulation, rest, ["p0003"])
    simulation.kill("p0003")
    simulation.run(until_s=8.0 + within_s)
    for name in rest:
        assert "p0003" not in simulation.node(name).members
    simulation.run()
    for name in rest:
        assert simulation.node(name).round == 100
        assert up_at(simulation, name) == set(rest) - {name}


def revived(network: Quadratic, simulation: Simulation, peer: str, joins: tuple[str, ...] = ()) -> None:
    simulation.revive(peer, network.make_node(peer, (peer,)), network.make_membership(peer), joins)


@pytest.mark.parametrize("joins", [(), ("p0000",)])
def test_one_that_restarts_is_found_again(joins: tuple[str, ...]) -> None:
    network, simulation = group_of(rounds=200)
    simulation.run(until_s=8.0)
    simulation.kill("p0003")
    simulation.run(until_s=40.0)
    assert "p0003" not in simulation.node("p0000").members
    revived(network, simulation, "p0003", joins)
    simulation.run(until_s=40.0 + (5.0 if joins else REDIAL_LONGEST_S))
    for name in network.names:
        assert simulation.node(name).members == network.names
    simulation.run()
    assert all(simulation.node(name).round == 200 for name in network.names)


def test_one_that_restarts_before_its_death_is_noticed_is_known_as_before() -> None:
    network, simulation = group_of()
    simulation.run(until_s=8.0)
    simulation.kill("p0003")
    revived(network, simulation, "p0003", ("p0000",))
    simulation.run(until_s=30.0)
    for name in network.names:
        assert up_at(simulation, name) == set(network.names) - {name}


def test_a_newcomer_is_told_to_everybody_by_rumor() -> None:
    """It knows one address; everybody else hears of it from others."""
    network, simulation = group_of()
    simulation.kill("p0005")
    simulation.run(until_s=8.0)
    assert all("p0005" not in up_at(simulation, name) for name in network.names)
    revived(network, simulation, "p0005", ("p0002",))
    simulation.run(until_s=14.0)
    assert all("p0005" in up_at(simulation, name) for name in network.names[:-1])


def test_a_partition_of_a_minute_heals_by_itself_and_the_halves_mix_again() -> None:
    network, simulation = group_of(peers=6, rounds=250, train_s=1.0)
    halves = network.names[:3], network.names[3:]
    simulation.run(until_s=5.0)
    split(simulation, *halves)
    simulation.run(until_s=65.0)
    for half in halves:
        for name in half:
            assert simulation.node(name).members == half
    apart = positions(simulation, network.names)
    gap = float((apart[:3].mean(dim=0) - apart[3:].mean(dim=0)).norm())
    split(simulation, *halves, heal=True)
    simulation.run(until_s=65.0 + REDIAL_LONGEST_S)
    for name in network.names:
        assert simulation.node(name).members == network.names
    simulation.run()
    together = positions(simulation, network.names)
    assert float((together[:3].mean(dim=0) - together[3:].mean(dim=0)).norm()) < 0.05 * gap
    assert all(simulation.node(name).round == 250 for name in network.names)


def island(*names: str, contact: str) -> dict[str, tuple[str, ...]]:
    """Return joins of a chain whose first peer and last wait for a contact."""
    return {**chain(names), names[0]: (contact,), names[-1]: (names[-2], contact)}


def test_islands_that_wait_for_a_common_contact_become_one_when_it_comes() -> None:
    """Joining once was over after its time, and two groups that had begun apart stayed apart."""
    network = Quadratic(peers=9, topology="complete", rounds=400, collect_s=5.0)
    names = network.names
    some, others, contact = names[:4], names[4:8], names[8]
    joins = {**island(*some, contact=contact), **island(*others, contact=contact)}
    simulation = network.simulation(joins=joins)
    simulation.kill(contact)
    simulation.run(until_s=300.0)
    for name in some:
        assert up_at(simulation, name) == set(some) - {name}
    for name in others:
        assert up_at(simulation, name) == set(others) - {name}
    revived(network, simulation, contact)  # it knows nobody
    simulation.run(until_s=300.0 + REDIAL_LONGEST_S + 2 * PRESENCE_S)
    for name in names:
        assert up_at(simulation, name) == set(names) - {name}


def test_halves_of_eight_find_each_other_after_two_minutes_apart() -> None:
    """Although that is longer than anybody is remembered: anchors are."""
    network, simulation = group_of(peers=16, rounds=400, train_s=1.0)
    halves = network.names[:8], network.names[8:]
    with mock.patch("gossip.member_places.FORGET_S", 60.0):
        simulation.run(until_s=8.0)
        split(simulation, *halves)
        simulation.run(until_s=128.0)
        for half in halves:
            for name in half:
                assert up_at(simulation, name) == set(half) - {name}
        split(simulation, *halves, heal=True)
        simulation.run(until_s=128.0 + 2 * REDIAL_LONGEST_S)
    for name in network.names:
        assert up_at(simulation, name) == set(network.names) - {name}


def test_a_group_that_loses_everybody_else_finds_them_again_alone() -> None:
    """One peer is cut off from all others for longer than it remembers peers, and then is not."""
    network, simulation = group_of(peers=4, rounds=400)
    alone, rest = network.names[:1], network.names[1:]
    with mock.patch("gossip.member_places.FORGET_S", 60.0):
        simulation.run(until_s=8.0)
        split(simulation, alone, rest)
        simulation.run(until_s=600.0)
        assert up_at(simulation, alone[0]) == set()
        split(simulation, alone, rest, heal=True)
        simulation.run(until_s=600.0 + 2 * REDIAL_LONGEST_S)
    for name in network.names:
        assert up_at(simulation, name) == set(network.names) - {name}


def test_a_way_cut_in_one_direction_parts_two_peers_although_others_relay_their_rumors() -> None:
    """They cannot ask each other, so neither may wait for the other in every round; the third knows both."""
    network, simulation = group_of(peers=3, rounds=400)
    simulation.run(until_s=5.0)
    simulation.disconnect("p0000", "p0001")
    simulation.run(until_s=5.0 + NOTICED_S)
    assert up_at(simulation, "p0000") == {"p0002"}
    assert up_at(simulation, "p0001") == {"p0002"}
    assert up_at(simulation, "p0002") == {"p0000", "p0001"}
    simulation.reconnect("p0000", "p0001")
    simulation.run(until_s=5.0 + NOTICED_S + REDIAL_LONGEST_S)
    for name in network.names:
        assert up_at(simulation, name) == set(network.names) - {name}


def test_a_peer_of_another_run_is_refused_and_the_rest_find_each_other() -> None:
    network = Quadratic(peers=4, rounds=5, topology="complete")
    stranger = replace(network, seed=1).make_membership("p0003")
    simulation = Simulation(
        {name: network.make_node(name, (name,)) for name in network.names},
        network.simulation().train,
        memberships={name: network.make_membership(name) for name in network.names[:3]} | {"p0003": stranger},
        joins=chain(network.names),
    )
    simulation.run(until_s=60.0)
    assert simulation.group
    told = {(peer, line) for _, peer, line in simulation.group.told if "another run" in line}
    assert told == {
        ("p0002", "refused peer p0003 of another run: seed differs: ours is 0, theirs is 1"),
        (
            "p0003",
            "peer p0002 takes part in another run: seed differs: ours is 1, theirs is 0; give --seed 0 "
            "(going on without it)",
        ),
    }
    assert simulation.group.rejected["p0002", "manifest"] == 1
    for name in network.names[:3]:
        assert up_at(simulation, name) == set(network.names[:3]) - {name}
    assert simulation.node("p0003").members == ("p0003",)


SCRIPT = """
from gossip.quadratic import Quadratic
from gossip.simulated_network import LinkModel
network = Quadratic(peers=6, topology="epidemic:3", rounds=10, links=LinkModel(loss=0.1), seed={seed})
simulation = network.simulation(joins={{name: network.names[:1] for name in network.names[1:]}})
simulation.run(until_s=3.0)
simulation.kill("p0002")
simulation.run()
print(simulation.log_hash)
"""


def test_equal_seeds_give_equal_logs_in_other_processes() -> None:
    def log_hash(seed: int, hash_seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT.format(seed=seed)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.strip()

    network = Quadratic(peers=6, topology="epidemic:3", rounds=10, links=LinkModel(loss=0.1), seed=1)

    def here(network: Quadratic) -> str:
        simulation = network.simulation(joins=dict.fromkeys(network.names[1:], network.names[:1]))
        simulation.run(until_s=3.0)
        simulation.kill("p0002")
        simulation.run()
        return simulation.log_hash

    assert here(network) == log_hash(1, "1")
    assert here(replace(network, seed=2)) != here(network)
