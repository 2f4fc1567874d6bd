"""What strangers and liars try on the membership machine, and what stays bounded whatever happens to it."""

from __future__ import annotations

import itertools
import os
import random
import zlib
from collections import Counter, deque
from collections.abc import Iterable
from unittest import mock

import pytest

from gossip.errors import LocalError, RemoteError
from gossip.events import PeerUp
from gossip.manifest import RunManifest
from gossip.membership import Membership
from gossip.membership_events import (
    Action,
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
    DialsDue,
    Disconnected,
    Drop,
    Event,
    Heard,
    HeartbeatsDue,
    Incompatible,
    Join,
    JoinOver,
    Post,
    Progressed,
    Search,
    SetTimer,
    Start,
    Strike,
    Suspect,
    Tell,
    TimerFired,
)
from gossip.membership_limits import (
    ANCHORS,
    DIALS_MAX,
    FLAPS_MAX,
    FORGET_S,
    NOTICE_S,
    NOTICED_MAX,
    NOTICES_BURST,
    NOTICES_PER_PEER,
    NOTICES_PER_S,
    PEERS_MAX,
    PLACES_PER_SOURCE,
    PROOF_PAUSE_S,
    REFUSALS,
    REMEMBERED,
    RUMOR_DIALS_BURST,
    RUMOR_DIALS_MAX,
    RUMOR_DIALS_PER_S,
    RUMORS_MAX,
    SOURCE_DIALS_BURST,
    SOURCE_DIALS_PER_S,
    STRIKERS_MAX,
    STRIKES,
    STRIKES_S,
    TRUSTED_DIALS_MAX,
)
from gossip.messages import Hello, Ping, Presence, Refusal
from gossip.strikes import Strikes

ANNOUNCEMENTS = itertools.count(1)
AWAY = RemoteError("unreachable", "nobody answers")
RUN = RunManifest(
    base_model="b", dtype="d", tokenizer="t", settings={"adapter": "a"}, layout="l", seed=0, initial="i",
    factors="f", mixing="m", optimizer="o", codec="float32", feedback="n", gamma="1", rounds=9, merge="none",
    overlap="no", private="no",
)  # fmt: skip
FIELDS = [{**RUN.fields(), "seed": seed} for seed in range(2)]
FINGERPRINT = RUN.fingerprint
ANNOUNCEMENTS = itertools.count(1)


def address(peer: str) -> str:
    """A place on the internet that is this peer's alone."""
    place = zlib.crc32(peer.encode())
    return f"/ip4/11.{place >> 16 & 255}.{place >> 8 & 255}.{place & 255}/tcp/4001/p2p/{peer}"


def hello(peer: str, *known: str, seed: int = 0, addresses: tuple[str, ...] | None = None) -> Hello:
    return Hello(FIELDS[seed], peer, 0, (address(peer),) if addresses is None else addresses, known)


def presence(peer: str, *addresses: str, leaving: bool = False) -> Heard:
    said = addresses or (address(peer),)
    return Heard(peer, Presence(FINGERPRINT, peer, 0, said, leaving, sequence=next(ANNOUNCEMENTS)))


def only(actions: Iterable[Action], *kinds: type) -> list:
    return [action for action in actions if isinstance(action, kinds)]


class World:
    """A machine, its clock, and the outcomes of what it asked for: by default nobody answers, at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.membership = Membership(RUN, "ME", random.Random(0))
        self.members = self.membership.members
        self.dials: list[tuple[float, Dial]] = []
        self.told: list[str] = []
        self._timers: list[tuple[float, SetTimer]] = []
        self.does(Start("me", ("/ip4/10.0.0.1/tcp/4001/p2p/me",)))

    def does(self, event: Event) -> list[Action]:
        actions = self.membership.handle(event, self.now)
        self.dials += [(self.now, dial) for dial in only(actions, Dial)]
        self.told += [tell.text for tell in only(actions, Tell)]
        self._timers += [(self.now + timer.delay_s, timer) for timer in only(actions, SetTimer)]
        return actions

    def refuses(self, event: Event) -> None:
        """Give an event to the machine, and let nobody answer any dial that comes of it."""
        pending = deque(only(self.does(event), Dial))
        while pending:
            pending += only(self.does(DialFailed(pending.popleft().errand, AWAY)), Dial)

    def passes(self, seconds: float) -> None:
        """Let time pass, in which nobody answers."""
        end = self.now + seconds
        while due := [entry for entry in self._timers if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self._timers.remove(entry)
            self.now = max(self.now, entry[0])
            self.refuses(TimerFired(entry[1].timer))
        self.now = end

    def meets(self, *peers: str) -> None:
        """Be greeted by peers, and find them where they say they are."""
        for peer in peers:
            for dial in only(self.does(Asked(peer, hello(peer))), Dial):
                self.does(Dialed(dial.errand, dial.peer))

    @property
    def up(self) -> set[str]:
        return {peer for peer, member in self.members.by_id.items() if member.is_up}


# -- made-up peers


def test_a_flood_of_made_up_peers_costs_few_dials_and_never_the_place_of_a_newcomer() -> None:
    """A stranger that announced a thousand once filled the table for an hour, and had us dial 65 times a second."""
    world = World()
    world.meets("old friend")
    began = world.now
    for number in range(5000):
        world.now += 0.004
        world.refuses(presence(f"made-up-{number}"))
    world.passes(60.0)
    assert len(world.members.by_id) <= 1 + RUMORS_MAX
    dials = [dial for at, dial in world.dials if dial.peer.startswith("made-up")]
    assert len(dials) <= RUMOR_DIALS_BURST + RUMOR_DIALS_PER_S * (world.now - began) + 1
    world.meets("newcomer")
    assert world.up == {"old friend", "newcomer"}


def test_rumors_that_nobody_answers_hold_up_neither_friends_nor_more_than_their_share_of_dials() -> None:
    world = World()
    world.meets("friend")
    world.dials.clear()
    for number in range(100):
        world.does(presence(f"silent-{number}"))
    assert len(world.dials) == RUMOR_DIALS_MAX
    (dial,) = only(world.does(Disconnected("friend")), Dial)
    assert (dial.peer, dial.addresses) == ("friend", (address("friend"),))


def test_trusted_dials_leave_room_for_newcomers() -> None:
    world = World()
    friends = [f"friend-{number}" for number in range(20)]
    world.meets(*friends)
    world.dials.clear()
    for friend in friends:
        world.does(Disconnected(friend))
    assert len(world.dials) == TRUSTED_DIALS_MAX
    world.does(presence("newcomer"))
    assert world.dials[-1][1].peer == "newcomer"
    for number in range(100):
        world.does(presence(f"more-{number}"))
    assert len(world.dials) == DIALS_MAX == world.membership._dials.under_way


def test_one_peer_fills_no_more_than_its_share_with_those_it_names() -> None:
    world = World()
    world.meets("liar", "other")
    for number in range(50):
        names = [address(f"made-up-{number}-{place}") for place in range(20)]
        world.refuses(Asked("liar", hello("liar", *names)))
    rumors = [peer for peer, member in world.members.by_id.items() if not member.has_answered]
    assert len(rumors) == PLACES_PER_SOURCE
    world.refuses(Asked("other", hello("other", address("somebody"))))
    assert "somebody" in world.members.by_id


def test_one_peer_cannot_have_us_dial_faster_than_its_rate() -> None:
    world = World()
    world.meets("liar")
    began = world.now
    for second in range(100):
        world.now = began + second
        for peer in [peer for peer, member in world.members.by_id.items() if not member.has_answered]:
            world.does(presence(peer, leaving=True))
        names = [address(f"made-up-{second}-{place}") for place in range(16)]
        world.refuses(Asked("liar", hello("liar", *names)))
    dials = [dial for _, dial in world.dials if dial.peer.startswith("made-up")]
    assert len(dials) <= SOURCE_DIALS_BURST + SOURCE_DIALS_PER_S * 100


@pytest.mark.parametrize(
    "place",
    [
        "/dns4/slow.example.org/tcp/4001",
        "/ip4/127.0.0.1/tcp/22",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/10.0.0.1/tcp/4001",  # we are there
        "/ip4/12.0.0.1/tcp/0",
        "/ip4/12.0.0.1/tcp/4001/p2p/somebody/p2p-circuit",
        "nonsense",
    ],
)
def test_nobody_is_dialed_at_an_address_that_is_none(place: str) -> None:
    world = World()
    bad = f"{place}/p2p/b"
    assert [one.addresses for one in only(world.does(presence("b", bad)), Dial)] in ([], [()])
    world.does(Asked("b", hello("b", addresses=(bad,))))
    world.does(Asked("c", hello("c", bad, addresses=())))
    assert world.members.by_id["b"].addresses == ()
    assert all(dial.addresses == () for _, dial in world.dials)
    assert world.members.known() == ()
    assert world.members.to_remember(world.now) == ()


# -- what is passed on, and what is kept


def test_an_address_is_passed_on_once_its_peer_has_answered_there() -> None:
    world = World()
    (proof,) = only(world.does(Asked("a", hello("a"))), Dial)
    assert isinstance(proof.errand, DialBack)
    assert proof.addresses == (address("a"),)
    assert world.members.known() == ()
    world.does(Dialed(proof.errand, "a"))
    assert world.members.known() == (address("a"),)


def test_an_address_where_somebody_else_answers_or_nobody_is_not_passed_on() -> None:
    world = World()
    second = "/ip4/12.0.0.1/tcp/1/p2p/a"
    (proof,) = only(world.does(Asked("a", hello("a", addresses=(address("a"), second)))), Dial)
    (proof,) = only(world.does(Dialed(proof.errand, "b")), Dial)
    assert proof.addresses == (second,)
    assert only(world.does(DialFailed(proof.errand, AWAY)), Dial) == []
    assert world.members.known() == ()
    world.does(TimerFired(HeartbeatsDue()))
    assert len(world.dials) == 2
    world.now += PROOF_PAUSE_S
    (proof,) = only(world.does(TimerFired(HeartbeatsDue())), Dial)  # it may have opened its port meanwhile
    world.does(Dialed(proof.errand, "a"))
    assert world.members.known() == (address("a"),)


@pytest.mark.parametrize("typed", ["/dns4/friend.example.org/tcp/1/p2p/a", "/ip4/127.0.0.1/tcp/1/p2p/a"])
def test_what_the_user_typed_is_dialed_and_kept_but_not_passed_on_if_it_is_for_us_alone(typed: str) -> None:
    world = World()
    dial, _ = world.does(Join(0, (typed,), 15.0, required=True))
    (ask,) = world.does(Dialed(dial.errand, "a"))
    (proof,) = only(world.does(Answered(ask.errand, hello("a"))), Dial)
    assert world.members.known() == ()
    world.does(Dialed(proof.errand, "a"))
    assert world.members.known() == (address("a"),)
    assert world.members.to_remember(world.now) == (typed,)
    (dial,) = only(world.does(Disconnected("a")), Dial)
    assert dial.addresses == (typed, address("a"))


def test_new_claims_never_displace_the_place_where_a_peer_has_answered() -> None:
    world = World()
    world.meets("a")
    lies = tuple(f"/ip4/12.0.0.{number}/tcp/1/p2p/a" for number in range(1, 9))
    world.does(presence("a", *lies))
    assert world.members.by_id["a"].addresses == (address("a"), *lies[:3])
    assert world.members.known() == (address("a"),)


def test_a_full_table_lets_go_of_rumors_then_of_those_long_away_and_never_of_those_who_are_up() -> None:
    world = World()
    with mock.patch("gossip.member_places.PEERS_MAX", 6), mock.patch("gossip.member_places.RUMORS_MAX", 6):
        world.meets("up", "away")
        world.now += 100.0
        world.does(presence("away", leaving=True))
        for number in range(20):
            world.refuses(presence(f"rumor-{number}"))
        assert len(world.members.by_id) == 6
        assert {"up", "away"} <= set(world.members.by_id)
        world.meets("b", "c", "d", "e")
        assert set(world.members.by_id) == {"up", "away", "b", "c", "d", "e"}
        assert only(world.does(presence("rumor")), Dial) == []
        assert "rumor" not in world.members.by_id
        world.meets("f")
        assert world.up == set(world.members.by_id) == {"up", "b", "c", "d", "e", "f"}
        world.meets("g")
        assert "g" not in world.members.by_id


def test_anchors_outlive_forgetting_and_are_never_displaced() -> None:
    """Those that were up longest are searched for as long as we live: a partition may last for hours."""
    world = World()
    friends = [f"friend-{number:02}" for number in range(2 * ANCHORS)]
    for friend in friends:
        world.meets(friend)
        world.now += 60.0
    for friend in friends:
        world.refuses(Disconnected(friend))
    world.passes(FORGET_S + 200.0)
    assert set(world.members.by_id) == set(friends[:ANCHORS])
    world.dials.clear()
    with (
        mock.patch("gossip.member_places.PEERS_MAX", ANCHORS + 2),
        mock.patch("gossip.member_places.RUMORS_MAX", 2),
    ):
        for number in range(100):
            world.refuses(presence(f"made-up-{number}"))
            world.refuses(Asked(f"sybil-{number}", hello(f"sybil-{number}")))
            world.refuses(Disconnected(f"sybil-{number}"))
        assert set(friends[:ANCHORS]) <= set(world.members.by_id)
    world.passes(70.0)
    assert set(friends[:ANCHORS]) <= {dial.peer for _, dial in world.dials}


def test_the_peers_that_were_up_longest_are_remembered_over_a_restart_away_or_not() -> None:
    world = World()
    world.meets("a")
    world.now += 1000.0
    world.refuses(Disconnected("a"))
    world.meets("b")
    world.now += 10.0
    world.meets(*(f"sybil-{number}" for number in range(50)))
    world.refuses(presence("rumor"))
    kept = world.members.to_remember(world.now)
    assert kept[:2] == (address("a"), address("b"))
    assert len(kept) == REMEMBERED


# -- what fills disks


def test_greetings_of_another_run_are_told_once_and_cut_off_in_the_end() -> None:
    """One identity once wrote 131 MB of journal an hour with them."""
    world = World()
    answers: Counter[str] = Counter()
    for _ in range(1000):
        world.now += 0.1
        for answer in only(world.does(Asked("stranger", hello("stranger", seed=1))), Answer):
            answers[answer.message.reason] += 1
    assert answers == {"manifest": REFUSALS, "busy": 1000 - REFUSALS}
    assert world.told == [
        "refused peer stranger of another run: seed differs: ours is 0, theirs is 1",
        "peer ranger (stranger) is cut off for 600 s: greets with another run",
    ]
    assert world.does(Connected("stranger")) == [Drop("stranger")]
    world.does(TimerFired(HeartbeatsDue()))
    assert world.told[2:] == [
        f"{REFUSALS - 1} more times peers came, went or were refused, not told one by one"
    ]


def test_many_identities_cannot_write_more_lines_than_a_person_reads() -> None:
    world = World()
    began = world.now
    for number in range(20_000):
        world.now += 0.01
        world.does(Asked(f"stranger-{number}", hello(f"stranger-{number}", seed=1)))
        if number % 1000 == 0:
            world.does(TimerFired(HeartbeatsDue()))
    took_s = world.now - began
    assert len(world.told) <= NOTICES_BURST + NOTICES_PER_S * took_s + took_s / NOTICE_S + 1
    left_out = sum(int(line.split()[0]) for line in world.told if "not told one by one" in line)
    assert left_out > 10_000
    assert world.members.by_id == {}
    assert len(world.membership._cut_offs._refusals) <= STRIKERS_MAX


def test_a_flapping_peer_leaves_nothing_behind_and_is_dialed_ever_less_often() -> None:
    world = World()
    pauses = []
    for _ in range(10):
        world.meets("flap")
        world.now += 1.0
        actions = world.does(Disconnected("flap"))
        if dials := only(actions, Dial):
            actions = world.does(DialFailed(dials[0].errand, AWAY))
        pauses += [timer.delay_s for timer in only(actions, SetTimer) if isinstance(timer.timer, Search)]
        assert "flap" not in world.up
    assert len(pauses) == 10
    assert all(pause <= 1.0 for pause in pauses[:FLAPS_MAX])
    assert pauses[-1] > 16.0
    assert set(world.members.by_id) == {"flap"}
    assert len(world.told) == 2 * NOTICES_PER_PEER
    world.meets("flap")
    world.now += 3600.0
    world.refuses(Disconnected("flap"))
    world.meets("flap")
    assert only(world.does(Disconnected("flap")), Dial)  # it has been steady since


def test_who_repeats_itself_does_not_fill_the_nodes_inbox() -> None:
    world = World()
    world.meets("a")
    assert only(world.does(presence("a")), Post) == []
    assert only(world.does(Asked("a", Ping(0))), Post) == []
    assert only(world.does(Asked("a", Ping(1))), Post) == [Post(PeerUp("a", 1))]
    assert only(world.does(Asked("a", hello("a"))), Post) == [Post(PeerUp("a", 0))]
    assert only(world.does(Asked("a", hello("a"))), Post) == [
        Post(PeerUp("a", 0))
    ]  # on a new connection, perhaps


def test_names_that_we_announce_are_kept_from_others_and_the_user_is_told() -> None:
    membership = Membership(RUN, "ME", random.Random(0))
    own = ("/dns4/example.org/tcp/1/p2p/me", "/ip4/12.0.0.1/tcp/1/p2p/me")
    told, announce, *_ = membership.handle(Start("me", own), 0.0)
    assert told == Tell(
        "others are not told /dns4/example.org/tcp/1/p2p/me: they take no names from peers; announce an IP address too"
    )
    assert announce.presence.addresses == own[1:]


# -- strikes


def test_strangers_are_struck_too() -> None:
    world = World()
    for _ in range(STRIKES - 1):
        assert world.does(Strike("stranger", "malformed")) == []
    told, drop = world.does(Strike("stranger", "malformed"))
    assert told == Tell("peer ranger (stranger) is cut off for 600 s: malformed")
    assert drop == Drop("stranger")
    assert world.does(Strike("stranger", "malformed")) == [Drop("stranger")]
    assert world.does(Asked("stranger", hello("stranger"))) == [
        Answer(Refusal("busy", "cut off for a while after repeated faults"))
    ]
    assert world.does(presence("stranger")) == []
    assert only(world.does(Asked("a", hello("a", address("stranger")))), Dial)[0].peer == "a"
    assert "stranger" not in world.members.by_id


def test_a_peer_that_is_cut_off_cannot_be_joined_either() -> None:
    world = World()
    for _ in range(STRIKES):
        world.does(Strike("a", "malformed"))
    dial, _ = world.does(Join(0, (address("a"),), 15.0, required=True))
    (ask,) = world.does(Dialed(dial.errand, "a"))
    assert only(world.does(Answered(ask.errand, hello("a"))), Post) == []
    assert world.up == set()


def test_the_table_of_strikes_is_bounded_and_bans_go_last() -> None:
    strikes = Strikes(2)
    for _ in range(2):
        strikes.add("banned", 0.0)
    for number in range(5 * STRIKERS_MAX):
        strikes.add(f"other-{number}", 1.0)
    assert len(strikes) == STRIKERS_MAX
    assert strikes.is_over("banned", 1.0)
    for number in range(STRIKERS_MAX):
        for _ in range(2):
            strikes.add(f"new-{number}", 2.0)
    assert len(strikes) == STRIKERS_MAX
    strikes.forget_old(2.0 + STRIKES_S)
    assert len(strikes) == 0


# -- whatever happens


class Hostile(World):
    """A world that does anything, in any order, and looks at what the machine makes of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.open: list[Action] = []
        self.node_sees: set[str] = set()
        self.joins = 0
        super().__init__()

    def event(self) -> Event:
        rng = self.rng
        if self.open and rng.random() < 0.5:
            place = rng.randrange(len(self.open))
            self.open[place], self.open[-1] = self.open[-1], self.open[place]
            return self.outcome(self.open.pop())
        peer = f"peer-{min(int(rng.expovariate(0.01)), 5000)}"
        hostile = rng.choice(
            ("/dns4/a.b/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip4/12.0.0.1/tcp/0", "", "x" * 300)
        )
        others = [address(f"peer-{rng.randrange(3000)}") for _ in range(rng.randrange(8))]
        said = rng.choice(((address(peer),), (address(peer), f"{hostile}/p2p/{peer}"), (), tuple(others)))
        if rng.random() < 0.001:
            self.joins += 1
            return Join(self.joins, tuple(others[:2]), 15.0, rng.random() < 0.5)
        return rng.choice(
            (
                presence(peer, *said, leaving=rng.random() < 0.2),
                presence(f"made-up-{rng.random()}"),
                Asked(peer, hello(peer, *others, addresses=said, seed=int(rng.random() < 0.2))),
                Asked(peer, hello(peer, f"{hostile}/p2p/{peer}", *others)),
                Asked(peer, Ping(rng.randrange(9))),
                Connected(peer),
                Disconnected(peer),
                Suspect(peer),
                Strike(peer, "malformed"),
                Progressed(rng.randrange(9)),
                TimerFired(HeartbeatsDue()),
                TimerFired(DialsDue()),
                TimerFired(JoinOver(self.joins)),
                Dialed(Search(peer, rng.randrange(99)), peer),
                DialFailed(DialBack(peer, address(peer), rng.randrange(99)), AWAY),
            )
        )

    def outcome(self, action: Action) -> Event:
        rng = self.rng
        match action:
            case Dial(errand, _, peer) if rng.random() < 0.5:
                return Dialed(errand, peer or (errand.address.rpartition("/")[2]))
            case Dial(errand):
                return DialFailed(
                    errand, rng.choice((AWAY, LocalError("no address"), Incompatible("another run")))
                )
            case Ask(errand, peer) if rng.random() < 0.7:
                answers = (
                    hello(peer),
                    hello(peer, seed=1),
                    Ping(1),
                    Refusal("busy"),
                    Refusal("manifest", "seed"),
                )
                return Answered(errand, rng.choice(answers))
            case Ask(errand):
                return AskFailed(errand, AWAY)
            case SetTimer(timer):
                return TimerFired(timer)
        raise AssertionError(action)

    def step(self) -> None:
        event = self.event()
        before = self.up
        self.now += self.rng.choice((0.0, 0.0, 0.01, 0.1, 1.0, 30.0))
        actions = self.membership.handle(event, self.now)
        self.open += only(actions, Dial, Ask, SetTimer)
        joined = len(event.addresses) if isinstance(event, Join) else 0
        assert len(actions) <= 8 + len(before) + DIALS_MAX + joined
        for post in only(actions, Post):
            (self.node_sees.add if isinstance(post.event, PeerUp) else self.node_sees.remove)(post.event.peer)
        for dial in only(actions, Dial):
            assert dial.peer != "me"
            assert not any("dns" in one or "127.0.0.1" in one for one in dial.addresses)

    def check(self) -> None:
        members, dials = self.members, self.membership._dials
        assert self.node_sees == self.up
        assert "me" not in members.by_id
        assert len(members.by_id) <= PEERS_MAX
        rumors = Counter(member.source for member in members.by_id.values() if not member.has_answered)
        assert rumors.total() <= RUMORS_MAX
        assert max(rumors.values(), default=0) <= PLACES_PER_SOURCE
        assert len(only(self.open, Dial)) == dials.under_way <= DIALS_MAX
        assert dials.waiting <= 2 * PEERS_MAX + 2 * self.joins
        for member in members.by_id.values():
            assert len(member.addresses) <= 4
            assert member.proven <= set(member.addresses)
            assert not (member.is_up and not member.has_answered)
        assert not any(self.membership._cut_offs.holds(peer, self.now) for peer in self.up)
        assert len(self.membership._cut_offs._strikes) <= STRIKERS_MAX
        assert len(self.membership._notices) <= 2 * NOTICED_MAX


@pytest.mark.parametrize("seed", range(2))
def test_random_events_break_no_promise(seed: int) -> None:
    """``RANDOM_EVENTS=100000`` is the long form."""
    world = Hostile(seed)
    for number in range(int(os.environ.get("RANDOM_EVENTS", "10000"))):
        world.step()
        if number % 500 == 0:
            world.check()
    world.check()
    assert len(world.up) > 10
    assert len(world.members.by_id) > 100
