"""The protocol, one event at a time: what a node asks for, and what no neighbor can make it do."""

import math
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import Diverged, LocalError
from gossip.events import (
    Action,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Finish,
    PeerDown,
    PeerUp,
    Penalize,
    Publish,
    Report,
    RoundReport,
    SetTimer,
    Start,
    Stop,
    TimerFired,
    Train,
    Trained,
)
from gossip.final_merge import MERGE_ROUNDS_MAX
from gossip.methods.codecs import CODECS
from gossip.methods.method_set import MethodNames
from gossip.neighbor import PATIENCE
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.round import Phase
from gossip.settings import NodeSettings
from topology.links import parse_topology

SPEC = AdapterSpec((("w", (4,)),))


def state(*values: float) -> AdapterState:
    return AdapterState(SPEC, torch.tensor(values, dtype=torch.float32))


def adapter(round: int, *values: float, codec: str = "float32", age: int = 1) -> PublishedAdapter:
    return PublishedAdapter(round, age, codec, CODECS[codec].make().encode(state(*values).flat, SPEC, round))


def make(
    me: str = "b",
    members: tuple[str, ...] = ("a", "b", "c"),
    collect_s: float = 10.0,
    rounds: int = 3,
    **more: object,
) -> GossipNode:
    chosen = NodeSettings(
        topology=parse_topology(str(more.get("topology", "ring")), seed=0),
        names=MethodNames(
            mixing=str(more.get("mixing", "average")),
            codec=str(more.get("codec", "float32")),
            feedback=str(more.get("feedback", "auto")),
            merge=str(more.get("merge", "none")),
        ),
        rounds=rounds,
        collect_s=collect_s,
        norm_cap=10.0,
        overlap=bool(more.get("overlap")),
    )
    return GossipNode(me, state(1, 1, 1, 1), chosen, random.Random(0), members)


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def reports(actions: list[Action]) -> list[RoundReport]:
    return [action.report for action in actions if isinstance(action, Report)]


def collecting(node: GossipNode) -> list[Action]:
    node.handle(Start(), 0.0)
    return node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 1.0)


def test_a_round_trains_publishes_asks_and_sets_a_timer() -> None:
    node = make()
    assert kinds(node.handle(Start(), 0.0)) == ["Train"]
    actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 1.0)
    assert kinds(actions) == ["Publish", "Fetch", "Fetch", "SetTimer"]
    assert isinstance(actions[0], Publish)
    assert (actions[0].published.round, actions[0].published.age) == (0, 2)
    assert {action.peer for action in actions if isinstance(action, Fetch)} == {"a", "c"}
    assert isinstance(actions[3], SetTimer)
    assert actions[3].delay_s == 10.0


def test_mixing_happens_when_the_last_neighbor_has_come_and_uses_the_row_of_w() -> None:
    node = make()
    collecting(node)
    # half of the neighbors are here: the first deadline ever is set by what has been seen
    assert node.handle(Fetched("c", adapter(0, 0, 0, 0, 0)), 1.2) == [SetTimer(0, pytest.approx(0.8))]
    actions = node.handle(Fetched("a", adapter(0, 6, 6, 6, 6)), 1.5)
    assert kinds(actions) == ["Report", "Train"]
    (report,) = reports(actions)
    torch.testing.assert_close(report.state.flat, torch.full((4,), 3.0))  # (3 + 0 + 6) / 3
    assert [(peer, round) for peer, round, _ in report.mixed] == [("a", 0), ("c", 0)]
    assert report.collect_s == pytest.approx(0.5)
    assert report.mixing_change == 0.0
    assert node.round == 1


def test_arrival_order_does_not_change_a_bit() -> None:
    results = []
    for order in (("a", "c"), ("c", "a")):
        node = make()
        collecting(node)
        for peer in order:
            actions = node.handle(
                Fetched(peer, adapter(0, *((0.1, 0.2, 0.3, 0.4) if peer == "a" else (7, 8, 9, 1)))), 2
            )
        results.append(reports(actions)[0].state.flat)
    assert torch.equal(*results)


def test_the_weight_of_what_did_not_come_returns_to_self() -> None:
    node = make()
    collecting(node)
    node.handle(Fetched("a", adapter(0, 6, 6, 6, 6)), 1.5)
    (report,) = reports(node.handle(TimerFired(0), 11.0))
    torch.testing.assert_close(report.state.flat, torch.full((4,), 4.0))  # 2/3 * 3 + 1/3 * 6
    assert report.failed == (("c", "late"),)


def test_a_late_adapter_is_mixed_in_the_next_round() -> None:
    node = make()
    collecting(node)
    node.handle(TimerFired(0), 11.0)
    assert node.handle(Fetched("c", adapter(0, 9, 9, 9, 9)), 11.5) == []
    actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 12.0)
    # a may be lost, so it is asked a second time; from c only something newer will do
    assert [(a.peer, a.newer_than) for a in actions if isinstance(a, Fetch)] == [("a", -1), ("c", 0)]
    (report,) = reports(node.handle(TimerFired(1), 30.0))
    assert report.mixed == (("c", 0, pytest.approx(1 / 3)),)


def test_from_one_neighbor_there_are_two_fetches_at_most_and_both_count() -> None:
    node = make(rounds=9)
    collecting(node)
    asked = []
    for round in range(3):
        node.handle(TimerFired(round), 100.0)
        actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 101.0)
        asked.append([action.peer for action in actions if isinstance(action, Fetch)])
    assert asked == [["a", "c"], [], []]
    assert node.handle(FetchFailed("a", "timeout"), 102.0) == []  # the second one may still bring it
    node.handle(Fetched("a", adapter(1, 6, 6, 6, 6)), 102.0)
    assert node.handle(Fetched("a", adapter(7, 9, 9, 9, 9)), 102.0) == []  # a third never was under way
    (report,) = reports(node.handle(TimerFired(3), 110.0))
    assert [(peer, round) for peer, round, _ in report.mixed] == [("a", 1)]


def test_a_failed_fetch_or_a_death_ends_the_wait() -> None:
    node = make()
    collecting(node)
    assert node.handle(FetchFailed("a", "unreachable"), 1.1) == []
    actions = node.handle(PeerDown("c"), 1.2)
    (report,) = reports(actions)
    assert report.failed == (("a", "unreachable"), ("c", "down"))
    assert node.members == ("a", "b")


def test_asynchronous_nodes_never_wait() -> None:
    node = make(collect_s=0.0, rounds=9)
    actions = collecting(node)
    assert kinds(actions) == ["Publish", "Fetch", "Fetch", "Report", "Train"]
    assert all(action.round is None and action.wait_s == 0 for action in actions if isinstance(action, Fetch))
    node.handle(Fetched("a", adapter(4, 6, 6, 6, 6)), 1.5)
    actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 2.0)
    (report,) = reports(actions)
    assert [(peer, round) for peer, round, _ in report.mixed] == [("a", 4)]
    # c is still under way; from a only something newer than what was just mixed will do
    assert [(a.peer, a.newer_than) for a in actions if isinstance(a, Fetch)] == [("a", 4)]


def test_a_adapter_is_not_asked_for_twice() -> None:
    node = make(collect_s=0.0, rounds=9)
    collecting(node)
    node.handle(Fetched("a", adapter(4, 6, 6, 6, 6)), 1.5)
    node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 2.0)
    node.handle(FetchFailed("a", "nothing"), 2.5)
    actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 3.0)
    assert [(a.peer, a.newer_than) for a in actions if isinstance(a, Fetch)] == [("a", 4)]


def test_a_neighbor_far_behind_is_read_but_not_waited_for() -> None:
    node = make(rounds=9)
    collecting(node)
    for round in range(3):
        node.handle(PeerUp("c", round + 1), 10.0)
        node.handle(FetchFailed("a", "nothing"), 10.0)
        node.handle(Fetched("c", adapter(round, 1, 1, 1, 1)), 10.0)
        actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 11.0)
    asked = {action.peer: action for action in actions if isinstance(action, Fetch)}
    assert asked["c"].round == 3
    assert asked["a"].round is None
    assert asked["a"].wait_s == 0


def one_round(node: GossipNode, now: float, *came: Event) -> list[Action]:
    """Let a node train, and then hear what came; return all that it did."""
    actions = node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), now)
    for event in came:
        actions += node.handle(event, now + 0.5)
    return actions


def test_an_adapter_that_was_mixed_is_not_mixed_again_by_those_who_have_gone_on() -> None:
    node = make(members=("a", "b"), rounds=9)
    node.handle(Start(), 0.0)
    mixed = []
    for round in range(4):
        again = Fetched("a", adapter(0, 6, 6, 6, 6))
        (report,) = reports(one_round(node, float(round), PeerUp("a", 0), again, TimerFired(round)))
        mixed.append([sender for sender, _, _ in report.mixed])
    assert mixed == [["a"], [], [], []]


def test_a_finished_peer_is_read_until_we_have_caught_up() -> None:
    node = make(members=("a", "b"), rounds=4)
    node.handle(Start(), 0.0)
    mixed = []
    for round in range(4):
        (report,) = reports(one_round(node, float(round), Fetched("a", adapter(3, 6, 6, 6, 6))))
        mixed.append([(sender, of) for sender, of, _ in report.mixed])
    assert mixed == [[("a", 3)]] * 4


def test_a_new_life_begins_where_its_checkpoint_was_and_an_old_word_changes_nothing() -> None:
    node = make(members=("a", "b"), rounds=9)
    node.handle(Start(), 0.0)
    mixed = []
    for round, of, life in ((0, 7, 1), (1, 0, 1), (2, 1, 2), (3, 1, 2), (4, 2, 1)):
        events = (PeerUp("a", of, None, life), Fetched("a", adapter(of, 6, 6, 6, 6)), TimerFired(round))
        (report,) = reports(one_round(node, float(round), *events))
        mixed.append([of for _, of, _ in report.mixed])
    assert mixed == [[7], [], [1], [], [2]]


@pytest.mark.parametrize(
    "impossible",
    [
        adapter(2**40, 1, 1, 1, 1),
        adapter(3, 1, 1, 1, 1),  # of the merge, by its number
        replace(adapter(0, 1, 1, 1, 1), kind="merge"),
        replace(adapter(3 + MERGE_ROUNDS_MAX, 1, 1, 1, 1), kind="merge"),
        replace(adapter(0, 1, 1, 1, 1), kind="initial"),
    ],
    ids=["far", "beyond", "merge", "endless merge", "initial"],
)
def test_an_adapter_that_no_round_of_the_run_has_is_a_fault(impossible: PublishedAdapter) -> None:
    node = make()
    collecting(node)
    actions = node.handle(Fetched("a", impossible), 1.5)
    assert [(a.peer, a.reason) for a in actions if isinstance(a, Penalize)] == [("a", "malformed")]


def test_the_merge_asks_for_its_own_kind_and_reads_it_in_its_own_way() -> None:
    node = make(members=("a", "b"), rounds=1, codec="int8", merge="average")
    actions = collecting(node) + node.handle(FetchFailed("a", "unreachable"), 1.5)
    fetches = [(a.kind, a.round) for a in actions if isinstance(a, Fetch)]
    assert fetches == [("round", 0), ("merge", 1)]
    ordinary = adapter(0, 0, 0, 0, 0, codec="int8")  # the initial adapter, less itself
    of_merge = replace(adapter(1, 7, 7, 7, 7, codec="int8"), kind="merge")
    node.handle(
        Fetched("a", ordinary), 1.6
    )  # nobody asked for it: it ends a fetch, and is no adapter of the merge
    node.handle(FetchFailed("a", "nothing"), 1.7)
    again = make(members=("a", "b"), rounds=1, codec="int8", merge="average")
    collecting(again)
    again.handle(FetchFailed("a", "unreachable"), 1.5)
    (report,) = reports(again.handle(Fetched("a", of_merge), 1.6))
    torch.testing.assert_close(report.state.flat, torch.full((4,), 5.0), atol=0.05, rtol=0.0)


def test_a_neighbor_that_never_delivers_is_soon_not_waited_for_until_it_does() -> None:
    node = make(rounds=99)
    node.handle(Start(), 0.0)
    waited = []
    for round in range(12):
        honest = Fetched("c", adapter(round, 3, 3, 3, 3))
        actions = one_round(node, 100.0 * round, PeerUp("a", round), PeerUp("c", round), honest)
        waited.append(not reports(actions))
        if waited[-1]:
            node.handle(TimerFired(round), 100.0 * round + 60.0)
            node.handle(FetchFailed("a", "unreachable"), 100.0 * round + 61.0)
    assert waited == [True] * PATIENCE + [False] * (12 - PATIENCE)
    for round in range(12, 14):
        delivered = Fetched("a", adapter(round, 3, 3, 3, 3))
        node.handle(Trained(state(3, 3, 3, 3), 2, 0.5), 100.0 * round)
        node.handle(delivered, 100.0 * round)
        node.handle(Fetched("c", adapter(round, 3, 3, 3, 3)), 100.0 * round)
    assert one_round(node, 1500.0, Fetched("c", adapter(14, 3, 3, 3, 3)))[-1] != Train(node.state, 15)


def test_whoever_is_busy_or_behind_has_not_failed() -> None:
    node = make(members=("a", "b"), rounds=99)
    node.handle(Start(), 0.0)
    for round in range(2 * PATIENCE):
        reason = "busy" if round % 2 else "nothing"
        one_round(node, float(round), FetchFailed("a", reason))
    actions = one_round(node, 99.0)
    assert not reports(actions)


def test_a_round_that_waits_for_confirmation_alone_has_an_end() -> None:
    node = make(members=("a", "b"), rounds=9, mixing="symmetric-drop")
    node.handle(Start(), 0.0)
    one_round(node, 0.0, TimerFired(0))
    node.handle(Fetched("a", adapter(0, 9, 9, 9, 9)), 11.0)  # late, and then its sender says nothing any more
    actions = one_round(node, 12.0, FetchFailed("a", "unreachable"))
    assert not reports(actions)
    (timer,) = [action for action in actions if isinstance(action, SetTimer)]
    assert reports(node.handle(TimerFired(timer.round), 12.0 + timer.delay_s))


def test_the_death_of_whom_a_round_waits_for_ends_it() -> None:
    node = make(members=("a", "b"), rounds=9, mixing="symmetric-drop")
    node.handle(Start(), 0.0)
    one_round(node, 0.0, TimerFired(0))
    node.handle(Fetched("a", adapter(0, 9, 9, 9, 9)), 11.0)
    assert not reports(one_round(node, 12.0, FetchFailed("a", "unreachable")))
    assert reports(node.handle(PeerDown("a"), 12.6))


def test_a_node_that_is_alone_goes_on() -> None:
    node = make(members=("b",))
    actions = collecting(node)
    assert kinds(actions) == ["Publish", "Report", "Train"]


def test_the_last_round_finishes() -> None:
    node = make(members=("b",), rounds=1)
    assert kinds(collecting(node)) == ["Publish", "Report", "Finish"]
    assert node.phase is Phase.DONE
    assert node.handle(Trained(state(1, 1, 1, 1), 1, 1.0), 5.0) == []


def test_stop_finishes_at_once() -> None:
    node = make()
    collecting(node)
    assert kinds(node.handle(Stop(), 2.0)) == ["Finish"]
    assert node.handle(TimerFired(0), 12.0) == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (PublishedAdapter(0, 1, "int8", b"12345678"), "codec"),
        (PublishedAdapter(0, 1, "float32", b"short"), "shape"),
        (adapter(0, math.nan, 0, 0, 0), "non-finite"),
        (adapter(0, 1e30, 0, 0, 0), "norm"),
    ],
)
def test_hostile_adapters_are_dropped_and_penalized(bad: PublishedAdapter, reason: str) -> None:
    node = make()
    collecting(node)
    actions = node.handle(Fetched("a", bad), 1.5)
    actions += node.handle(Fetched("c", adapter(0, 6, 6, 6, 6)), 1.6)
    assert [(a.peer, a.reason) for a in actions if isinstance(a, Penalize)] == [("a", reason)]
    (report,) = reports(actions)
    assert [peer for peer, _, _ in report.mixed] == ["c"]
    torch.testing.assert_close(report.state.flat, torch.full((4,), 4.0))


def test_our_own_divergence_is_our_own_error() -> None:
    node = make()
    node.handle(Start(), 0.0)
    with pytest.raises(Diverged, match="learning rate"):
        node.handle(Trained(state(math.inf, 0, 0, 0), 1, 1.0), 1.0)


def test_starting_twice_is_a_bug() -> None:
    node = make()
    node.handle(Start(), 0.0)
    with pytest.raises(LocalError):
        node.handle(Start(), 0.0)


def test_a_snapshot_goes_on_with_the_same_draws() -> None:
    members = tuple("abcdefgh")
    first = make(members=members, topology="epidemic:2", rounds=99)
    first.handle(Start(), 0.0)

    def one_round(node: GossipNode, now: float) -> list[str]:
        actions = node.handle(Trained(state(1, 2, 3, 4), 2, 0.5), now)
        asked = [action.peer for action in actions if isinstance(action, Fetch)]
        for peer in asked:
            node.handle(FetchFailed(peer, "nothing"), now)
        return asked

    for now in range(5):
        one_round(first, float(now))
    snapshot = first.snapshot()
    second = GossipNode("b", first.state, first.settings, random.Random(99), members, snapshot)
    second.handle(Start(), 10.0)
    assert (second.round, second.age) == (5, 10)
    assert [one_round(second, 20.0 + i) for i in range(5)] == [one_round(first, 20.0 + i) for i in range(5)]


peers = st.sampled_from(["a", "b", "c", "d", "e", "x"])
hostile_adapters = st.one_of(
    st.builds(adapter, st.integers(0, 9), *[st.floats(width=32)] * 4, age=st.integers(0, 2**40)),
    st.builds(
        PublishedAdapter,
        st.integers(0, 2**40),
        st.integers(0, 2**40),
        st.text(max_size=5),
        st.binary(max_size=20),
    ),
)
events = st.one_of(
    st.builds(Trained, st.just(state(1, 2, 3, 4)), st.integers(1, 5), st.floats(0, 5)),
    st.builds(Fetched, peers, hostile_adapters),
    st.builds(FetchFailed, peers, st.sampled_from(["unreachable", "nothing"])),
    st.builds(PeerUp, peers, st.integers(0, 2**40)),
    st.builds(PeerDown, peers),
    st.builds(TimerFired, st.integers(0, 9)),
)


@given(
    st.lists(events, max_size=60),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from(["average", "age"]),
    st.sampled_from(["ring", "epidemic:2", "complete", "exponential"]),
)
@settings(max_examples=200, deadline=None)
def test_no_sequence_of_events_breaks_the_node(
    sequence: list[Event], collect_s: float, mixing: str, topology: str
) -> None:
    node = make(collect_s=collect_s, rounds=6, mixing=mixing, topology=topology)
    actions = node.handle(Start(), 0.0)
    training, rounds = True, 0
    for now, event in enumerate(sequence):
        if isinstance(event, Trained) and not training:
            continue  # the shell never says Trained without having been asked
        actions = node.handle(event, float(now))
        training = training and not isinstance(event, Trained)
        for action in actions:
            match action:
                case Train():
                    assert not training
                    training = True
                case Fetch():
                    assert action.peer != "b"
                    assert action.wait_s <= 5.0
                case Report(report):
                    assert report.round == rounds
                    rounds += 1
                    assert torch.isfinite(report.state.flat).all()
                    assert sum(weight for _, _, weight in report.mixed) <= 1 + 1e-9
                case Finish():
                    assert rounds == 6
                case _:
                    pass
    assert "b" in node.members
    assert list(node.members) == sorted(set(node.members))
