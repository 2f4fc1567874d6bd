"""Both pure machines under any order of events: nothing raises, no invariant breaks.

One peer with its node and its membership, as the shell joins them: what the membership posts, the node gets. The
world around them is the adversary: others say what they like, answers come in any order and late, timers fire late.
More of it: ``pytest -n 0 -o timeout=0 --hypothesis-profile long tests/gossip/test_machines.py``.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gossip import events, membership_events
from gossip.adapter import AdapterState
from gossip.errors import RemoteError
from gossip.invariants import NodeLife, check_membership
from gossip.messages import Hello, Message, Offer, Ping, Presence, Pull, Refusal
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic
from gossip.simulated_membership import address_of
from gossip.wire import ROUND_MAX

settings.register_profile(
    "long", max_examples=2_000, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)

ME, DIMENSION = "p0000", 4
PEERS = ("p0001", "p0002", "p0003", "stranger")
peers = st.sampled_from((*PEERS, ME))
rounds = st.integers(0, 6) | st.integers(0, ROUND_MAX)
addresses = st.lists(
    st.sampled_from([address_of(peer) for peer in (*PEERS, ME)] + ["/bad", "", "/p2p/"]), max_size=6
)
values = st.floats(width=32) | st.sampled_from((0.0, 1.0, -1.0, 3e38, 1e-40))
payloads = (
    st.lists(values, min_size=DIMENSION, max_size=DIMENSION).map(lambda drawn: struct.pack("<4f", *drawn))
    | st.binary(max_size=40)
)  # fmt: skip
published = st.builds(
    PublishedAdapter,
    round=rounds,
    age=st.integers(0, 20) | st.integers(0, 2**60),
    codec=st.sampled_from(("float32", "float32", "float32", "int8", "nonsense")),
    payload=payloads,
    base=st.sampled_from((b"", b"", bytes(16))),
)
names = st.text(st.characters(codec="utf-8"), max_size=40)
NETWORKS = [
    Quadratic(peers=4, dimension=DIMENSION, rounds=4, topology=topology, collect_s=collect_s, overlap=overlap,
              methods=MethodNames(mixing=mixing, merge=merge))
    for topology, collect_s, overlap, mixing, merge in (
        ("complete", 60.0, False, "average", "average"),
        ("complete", 60.0, True, "age", "none"),
        ("epidemic:2", 0.0, False, "staleness", "average"),
        ("exponential", 5.0, False, "push-sum", "none"),
    )
]  # fmt: skip


class Machines(RuleBasedStateMachine):
    """One peer, and a world that may do to it whatever the contracts of events allow."""

    @initialize(network=st.sampled_from(NETWORKS))
    def begin(self, network: Quadratic) -> None:
        self.now = 0.0
        self.network = network
        self.membership = network.make_membership(ME)
        self.manifest = dict(self.membership._introduction._manifest)
        self.run = self.membership._introduction.run
        self.live(network.make_node(ME, (ME,)))
        self.questions: list[membership_events.Ask] = []
        self.dials: list[membership_events.Dial] = []
        self.timers: list[membership_events.Timer] = []
        self.to_membership(membership_events.Start(ME, (address_of(ME),)))
        self.to_node(events.Start())

    def live(self, node: GossipNode) -> None:
        self.node, self.life = node, NodeLife(node)
        self.training: list[events.Train] = []
        self.round_timers: list[int] = []
        self.fetches: list[str] = []
        self.saved: tuple[AdapterState, Any] | None = None

    def to_node(self, event: events.Event) -> None:
        actions = self.node.handle(event, self.now)
        self.life.handled(event, actions)
        for action in actions:
            match action:
                case events.Train():
                    self.training.append(action)
                case events.SetTimer(round=round):
                    self.round_timers.append(round)
                case events.Fetch(peer=peer):
                    self.fetches.append(peer)
                case events.Penalize(peer=peer, reason=reason):
                    self.to_membership(membership_events.Strike(peer, reason))
                case events.Report(report=report):
                    self.saved = report.state, self.node.snapshot()
                    self.to_membership(membership_events.Progressed(report.round + 1))

    def to_membership(self, event: membership_events.Event) -> None:
        actions = self.membership.handle(event, self.now)
        check_membership(self.membership)
        for action in actions:
            match action:
                case membership_events.Ask():
                    self.questions.append(action)
                case membership_events.Dial():
                    self.dials.append(action)
                case membership_events.SetTimer(timer=timer):
                    self.timers.append(timer)
                case membership_events.Post(event=posted):
                    self.to_node(posted)

    # -- the node's world

    @precondition(lambda self: self.training)
    @rule(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=DIMENSION, max_size=DIMENSION))
    def trained(self, values: list[float]) -> None:
        state = self.training.pop().state
        after = state.flat.new_tensor(values)
        self.to_node(events.Trained(AdapterState(state.spec, after), 2, 1.0))

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), published=published)
    def fetched(self, data: st.DataObject, published: PublishedAdapter) -> None:
        peer = self.fetches.pop(data.draw(st.integers(0, len(self.fetches) - 1)))
        self.to_node(events.Fetched(peer, published))

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), reason=st.sampled_from(("nothing", "unreachable", "busy", "digest", "run")))
    def fetch_failed(self, data: st.DataObject, reason: str) -> None:
        peer = self.fetches.pop(data.draw(st.integers(0, len(self.fetches) - 1)))
        self.to_node(events.FetchFailed(peer, reason))

    @rule(peer=peers, round=rounds)
    def served(self, peer: str, round: int) -> None:
        self.to_node(events.Served(peer, round))

    @precondition(lambda self: self.round_timers)
    @rule(data=st.data())
    def round_timer(self, data: st.DataObject) -> None:
        self.to_node(
            events.TimerFired(self.round_timers.pop(data.draw(st.integers(0, len(self.round_timers) - 1))))
        )

    @precondition(lambda self: self.saved)
    @rule()
    def restart(self) -> None:
        """Killed and started again from its checkpoint: nobody ends what its last life had under way."""
        assert self.saved
        state, snapshot = self.saved
        fresh = self.network.make_node(ME, (ME,))
        self.live(
            GossipNode(ME, state, fresh.settings, random.Random(0), (ME,), snapshot, initial=fresh.state)
        )
        self.membership = self.network.make_membership(ME)
        self.questions, self.dials, self.timers = [], [], []
        self.to_membership(membership_events.Progressed(snapshot.round))
        self.to_membership(membership_events.Start(ME, (address_of(ME),)))
        self.to_node(events.Start())

    # -- the membership's world

    @rule(seconds=st.floats(0, 5) | st.floats(0, 1e5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def message(self, data: st.DataObject) -> Message:
        """Draw anything that can arrive as a message: of our run, of another, or out of place."""
        hello = st.builds(
            Hello,
            manifest=st.sampled_from((self.manifest, self.manifest, self.manifest | {"seed": 7}, {})),
            name=names, round=rounds, addresses=addresses.map(tuple), known=addresses.map(tuple),
        )  # fmt: skip
        run = st.sampled_from((self.run, self.run, bytes(16)))
        presence = st.builds(
            Presence, run=run, name=names, round=rounds, addresses=addresses.map(tuple), leaving=st.booleans()
        )
        others = st.builds(Ping, rounds) | st.builds(
            Refusal, st.sampled_from(("manifest", "busy", "nothing")), names
        )
        strange = st.just(Pull(bytes(16), None, -1, 0.0)) | st.just(Offer(0, 0, "int8", 1, bytes(32)))
        return data.draw(hello | presence | others | strange)

    @rule(data=st.data(), peer=peers)
    def heard(self, data: st.DataObject, peer: str) -> None:
        self.to_membership(membership_events.Heard(peer, self.message(data)))

    @rule(peer=st.sampled_from(PEERS), round=st.integers(0, 6))
    def greeted(self, peer: str, round: int) -> None:
        hello = Hello(self.manifest, peer, round, (address_of(peer),))
        self.to_membership(membership_events.Asked(peer, hello))

    @rule(data=st.data(), peer=st.sampled_from(PEERS))
    def asked(self, data: st.DataObject, peer: str) -> None:
        self.to_membership(membership_events.Asked(peer, self.message(data)))

    @precondition(lambda self: self.questions)
    @rule(data=st.data(), is_answered=st.booleans())
    def question_ends(self, data: st.DataObject, is_answered: bool) -> None:
        ask = self.questions.pop(data.draw(st.integers(0, len(self.questions) - 1)))
        if is_answered:
            self.to_membership(membership_events.Answered(ask.errand, self.message(data)))
        else:
            self.to_membership(membership_events.AskFailed(ask.errand, RemoteError("unreachable")))

    @precondition(lambda self: self.dials)
    @rule(data=st.data(), is_there=st.booleans(), other=st.sampled_from(PEERS))
    def dial_ends(self, data: st.DataObject, is_there: bool, other: str) -> None:
        dial = self.dials.pop(data.draw(st.integers(0, len(self.dials) - 1)))
        if is_there:
            self.to_membership(membership_events.Dialed(dial.errand, dial.peer or other))
        else:
            self.to_membership(membership_events.DialFailed(dial.errand, RemoteError("unreachable")))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def timer(self, data: st.DataObject) -> None:
        timer = self.timers.pop(data.draw(st.integers(0, len(self.timers) - 1)))
        self.to_membership(membership_events.TimerFired(timer))

    @rule(peer=st.sampled_from(PEERS), is_there=st.booleans())
    def connection(self, peer: str, is_there: bool) -> None:
        happened = membership_events.Connected if is_there else membership_events.Disconnected
        self.to_membership(happened(peer))

    @rule(peer=st.sampled_from(PEERS))
    def suspect(self, peer: str) -> None:
        self.to_membership(membership_events.Suspect(peer))

    @rule(peer=st.sampled_from(PEERS))
    def strike(self, peer: str) -> None:
        self.to_membership(membership_events.Strike(peer, "malformed"))

    @rule(addresses=addresses, number=st.integers(0, 3))
    def join(self, addresses: list[str], number: int) -> None:
        self.to_membership(membership_events.Join(number, tuple(addresses), 15.0, required=False))


def is_long() -> bool:
    return settings.get_current_profile_name() == "long"


TestMachines = Machines.TestCase
TestMachines.settings = settings(
    settings.get_profile("long") if is_long() else settings.default, derandomize=not is_long()
)
if not is_long():
    TestMachines.settings = settings(TestMachines.settings, max_examples=60, stateful_step_count=40)
