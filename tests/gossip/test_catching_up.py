"""Whoever comes late begins with what the others have: what that spares the group, and what liars can do to it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.catching_up import ASKED, TIMER, WAIT_S, CatchingUp
from gossip.errors import RemoteError
from gossip.events import (
    Action,
    Check,
    Checked,
    Fetch,
    Fetched,
    FetchFailed,
    PeerUp,
    Penalize,
    Report,
    RoundReport,
    SetTimer,
    Start,
    TimerFired,
    Train,
)
from gossip.invariants import NodeLife
from gossip.messages import Offer, Pull
from gossip.methods.method_set import MethodNames, resolve
from gossip.node import GossipNode
from gossip.offers import RunShape
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.settings import NodeSettings
from gossip.whole_adapters import WholeAdapters
from topology.links import parse_topology

SPEC = AdapterSpec((("w", (6,)),))
OTHERS = tuple(f"p{number}" for number in range(1, 6))
INITIAL = AdapterState(SPEC, torch.linspace(1.0, 2.0, 6))
LEARNED = torch.tensor([3.0, -1.0, 2.0, 0.5, 4.0, 1.0])


def settings_of(**changes: Any) -> NodeSettings:
    usual: dict[str, Any] = {
        "topology": parse_topology("complete", seed=0),
        "names": MethodNames(merge="average"),
        "rounds": 20,
        "collect_s": 60.0,
        "norm_cap": 10.0,
    }
    return NodeSettings(**{**usual, **changes})


def newcomer(
    round: int = 7, others: tuple[str, ...] = OTHERS, **changes: Any
) -> tuple[GossipNode, list[Action]]:
    """Return a node that has heard of others in a round, and what it does first."""
    node = GossipNode("p0", INITIAL, settings_of(**changes), random.Random(0))
    for peer in others:
        node.handle(PeerUp(peer, round), 0.0)
    return node, node.handle(Start(), 0.0)


def asked_of(actions: list[Action]) -> list[str]:
    return [action.peer for action in actions if isinstance(action, Fetch) and action.kind == "whole"]


def whole(values: Tensor, round: int = 7, age: int = 70) -> PublishedAdapter:
    return PublishedAdapter(round, age, "float32", values.float().numpy().tobytes(), kind="whole")


def answered(node: GossipNode, peers: list[str], wholes: list[PublishedAdapter]) -> list[Action]:
    actions: list[Action] = []
    for peer, published in zip(peers, wholes, strict=True):
        actions = node.handle(Fetched(peer, published), 1.0)
    return actions


def test_it_asks_some_of_the_others_and_goes_on_where_they_are() -> None:
    node, actions = newcomer()
    asked = asked_of(actions)
    assert len(asked) == ASKED
    assert SetTimer(TIMER, WAIT_S) in actions
    assert not any(isinstance(action, Train) for action in actions)
    assert node.handle(Fetched(asked[0], whole(LEARNED)), 1.0) == []
    (train,) = answered(node, asked[1:], [whole(LEARNED, round) for round in (8, 7, 9)])
    assert isinstance(train, Train)
    assert train.round == node.round == 7
    assert node.age == 70
    assert torch.equal(train.state.flat, LEARNED)


@pytest.mark.parametrize(
    "lie",
    [
        whole(torch.full((6,), torch.nan)),
        whole(torch.full((6,), 1e20)),
        whole(torch.full((6,), -9.0), round=19, age=10**5),
        whole(torch.ones(5)),
        whole(LEARNED, round=10**9),
        replace(whole(LEARNED), kind="round"),
        replace(whole(LEARNED), codec="int8"),
    ],
    ids=["nan", "huge", "far", "length", "round", "kind", "codec"],
)
@pytest.mark.parametrize("honest", [2, 3])
def test_one_liar_among_three_or_four_moves_it_no_farther_than_the_honest_are(
    lie: PublishedAdapter, honest: int
) -> None:
    node, actions = newcomer(others=OTHERS[: honest + 1])
    asked = asked_of(actions)
    near = [whole(LEARNED + 0.1 * number, age=70 + number) for number in range(honest)]
    actions = answered(node, asked, [lie, *near])
    (train,) = [action for action in actions if isinstance(action, Train)]
    assert (train.state.flat - LEARNED).min() >= -1e-6
    assert (train.state.flat - LEARNED).max() <= 0.1 * (honest - 1) + 1e-6
    assert node.round == 7
    assert 70 <= node.age < 70 + honest
    penalized = [action.peer for action in actions if isinstance(action, Penalize)]
    assert penalized == ([] if lie.round == 19 else [asked[0]]), "what could be true is nobody's fault"


@pytest.mark.parametrize("way", ["failed", "late"])
def test_where_nobody_answers_it_begins_as_all_began(way: str) -> None:
    node, actions = newcomer()
    asked = asked_of(actions)
    if way == "failed":
        for peer in asked:
            actions = node.handle(FetchFailed(peer, "nothing"), 1.0)
    else:
        actions = node.handle(TimerFired(TIMER), WAIT_S)
    (train,) = actions
    assert isinstance(train, Train)
    assert train.round == 0
    assert torch.equal(train.state.flat, INITIAL.flat)
    assert node.handle(TimerFired(TIMER), WAIT_S) == [], "a timer that is too late ends nothing else"
    for peer in asked:  # nor does an answer that is too late
        assert node.handle(Fetched(peer, whole(LEARNED)), 70.0) == []
    assert node.state is INITIAL


def test_some_answers_are_enough_when_the_time_is_over() -> None:
    node, actions = newcomer()
    node.handle(Fetched(asked_of(actions)[0], whole(LEARNED)), 1.0)
    (train,) = node.handle(TimerFired(TIMER), WAIT_S)
    assert isinstance(train, Train)
    assert (train.round, train.state.flat.tolist()) == (7, LEARNED.tolist())


@pytest.mark.parametrize(("loss", "kept"), [(2.0, True), (6.2, True), (6.3, False), (float("nan"), False)])
def test_our_own_rows_have_the_last_word(loss: float, kept: bool) -> None:
    """In order is what is at most a quarter above the loss of the adapter that all began with, 5."""
    node, actions = newcomer(check_every=10)
    asked = asked_of(actions)
    (check,) = answered(node, asked, [whole(LEARNED)] * ASKED)
    assert isinstance(check, Check)
    assert check.candidate is INITIAL
    (check,) = node.handle(Checked(check.round, 5.0), 2.0)
    assert isinstance(check, Check)
    assert torch.equal(check.candidate.flat, LEARNED)
    (train,) = node.handle(Checked(check.round, loss), 3.0)
    assert isinstance(train, Train)
    assert train.round == (7 if kept else 0)
    assert torch.equal(train.state.flat, LEARNED if kept else INITIAL.flat)


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 0},
        {"round": 1},
        {"others": ()},
        {"roster": ("p0", *OTHERS)},
        {"roster": ("p0", *OTHERS), "masked": True},
    ],
    ids=["begin together", "a round apart", "alone", "roster", "masks"],
)
def test_who_has_nothing_to_catch_up_with_or_may_not_begins_at_once(changes: dict[str, Any]) -> None:
    node, actions = newcomer(**changes)
    assert isinstance(actions[0], Train)
    assert node.round == 0


def test_a_restart_goes_on_from_its_checkpoint_but_where_changes_travel() -> None:
    for names, asks in ((MethodNames(), False), (MethodNames(feedback="pseudo-gradient"), True)):
        settings = settings_of(names=names)
        first = GossipNode("p0", INITIAL, settings, random.Random(0))
        node = GossipNode("p0", INITIAL, settings, random.Random(0), snapshot=first.snapshot())
        for peer in OTHERS:
            node.handle(PeerUp(peer, 5), 0.0)
        assert bool(asked_of(node.handle(Start(), 0.0))) == asks


def test_of_a_run_that_is_over_the_adapter_is_taken_and_not_the_round() -> None:
    node, actions = newcomer(round=21)
    (train,) = answered(node, asked_of(actions), [whole(LEARNED, round=21)] * ASKED)
    assert isinstance(train, Train)
    assert (train.round, train.state.flat.tolist()) == (0, LEARNED.tolist())


def test_ranks_may_differ_and_what_never_travels_stays_ours() -> None:
    layout = AdapterSpec((("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 2))))
    state = AdapterState(layout, torch.randn(22, generator=torch.Generator().manual_seed(0)))
    other = AdapterState(layout, state.flat + 1.0)
    for factors in ("tsvd", "share-a"):
        settings = settings_of(names=MethodNames(factors=factors, merge="clipped"))
        sender, reader = (WholeAdapters(name, settings, state) for name in ("p1", "p0"))
        shown = sender.shown(other, 5, 50)
        assert shown is not None
        passed, objections = reader.guarded([reader.read("p1", shown.for_reader(b""))])
        assert objections == []
        merged = reader.merged(passed)
        if factors == "share-a":
            assert torch.equal(merged.flat, torch.cat([other.flat[:12], state.flat[12:]]))
        else:
            product = other.flat[12:].view(5, 2) @ other.flat[:12].view(2, 6)
            torch.testing.assert_close(merged.flat[12:].view(5, 2) @ merged.flat[:12].view(2, 6), product)


def test_offers_of_whole_adapters_have_the_length_of_the_merge() -> None:
    shape = RunShape.of(resolve(MethodNames(codec="topk:0.5", fragments=2, merge="average"), SPEC), 20)
    pull, size = Pull(bytes(16), None, -1, 0.0, kind="whole"), 6 + 4  # int8
    shape.check(Offer(7, 70, "int8", size, bytes(32), kind="whole"), pull)
    for length in (size - 1, size + 1, 24, 0):
        with pytest.raises(RemoteError, match="shape"):
            shape.check(Offer(7, 70, "int8", length, bytes(32), kind="whole"), pull)
    with pytest.raises(RemoteError, match="malformed"):
        shape.check(Offer(100, 70, "int8", size, bytes(32), kind="whole"), pull)


# -- networks


def network(**methods: Any) -> Quadratic:
    names = MethodNames(**{"merge": "average", **methods})
    return Quadratic(
        peers=4,
        dimension=16,
        rounds=40,
        topology="complete",
        methods=names,
        heterogeneity=0.1,
        step_size=0.05,
    )


def late_joiner(quadratic: Quadratic) -> tuple[list[float], GossipNode]:
    """Let p0003 die at the beginning and come anew, knowing nothing, in round 20.

    Returns:
        The mean loss of the others after each round, on |x - mean of the optima|^2 / 2; and the newcomer.
    """
    losses: dict[int, list[float]] = {}
    center = quadratic.optima().mean(dim=0)
    lives: list[NodeLife] = []

    def note(now: float, name: str, report: RoundReport) -> None:
        if name != "p0003":
            losses.setdefault(report.round, []).append(float((report.state.flat - center).square().sum()) / 2)
        if (name, report.round) == ("p0000", 20):
            node = quadratic.make_node("p0003", ("p0003",))
            lives.append(NodeLife(node))
            simulation.revive("p0003", node)

    simulation = quadratic.simulation(note)
    simulation.run(until_s=0.0)
    simulation.kill("p0003")
    simulation.observers.append(Watch(lives))
    simulation.run()
    assert simulation.penalties == []
    final = positions(simulation, quadratic.names)
    assert (final - final.mean(dim=0)).abs().max() < 1e-2
    return [sum(losses[round]) / len(losses[round]) for round in sorted(losses)], simulation.node("p0003")


class Watch:
    """Follows the newcomer's second life with the invariants of every node."""

    def __init__(self, lives: list[NodeLife]) -> None:
        self._lives = lives

    def handled(self, peer: str, event: Any, actions: Any) -> None:
        if peer == "p0003":
            for life in self._lives:
                life.handled(event, actions)


@pytest.mark.parametrize(
    "methods",
    [
        {},
        {"optimizer": "diloco:0.5:0.9"},
        {"fragments": 4},
        {"codec": "chunked:1024"},
        {"codec": "int4"},
        {"mixing": "age"},
    ],
    ids=lambda methods: "/".join(map(str, methods.values())) or "average",
)
def test_a_late_joiner_costs_the_group_next_to_nothing(
    methods: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quadratic = network(**methods)
    began = float(quadratic.optima().mean(dim=0).square().sum()) / 2
    caught_up, node = late_joiner(quadratic)
    before = caught_up[20]
    cost = max(caught_up[21:40]) - before
    assert cost < 0.01 * began
    assert node.round >= 40
    if not methods:
        monkeypatch.setattr(CatchingUp, "begin", lambda self, members, round: [])
        untrained, _ = late_joiner(quadratic)
        assert max(untrained[21:40]) - untrained[20] > 0.02 * began, "it was worth it"


def test_what_is_shown_is_where_the_next_round_begins_and_coded_once() -> None:
    quadratic = replace(network(), rounds=3)
    shown: list[PublishedAdapter] = []
    simulation = quadratic.simulation()
    node = simulation.node("p0001")
    handle = node.handle

    def noted(event: Any, now: float) -> list[Action]:
        actions = handle(event, now)
        for action in actions:
            if isinstance(action, Report) and action.whole:
                shown.append(action.whole)
                assert action.whole.round == action.report.round + 1
                made = action.whole.for_reader(b"")
                assert made is action.whole.for_reader(bytes(3))
                assert made.kind == "whole"
                assert made.base == b""
                assert bytes(made.payload) == action.report.state.flat.numpy().tobytes()
        return actions

    node.handle = noted  # type: ignore[method-assign]  # to listen
    simulation.run()
    assert [one.round for one in shown] == [1, 2, 3, 4]
