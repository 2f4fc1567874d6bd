"""Parts of an adapter that take turns: against networks computed densely, and what goes wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.events import Publish, RoundReport, Train
from gossip.messages import Offer, Pull
from gossip.methods.catalogue import find
from gossip.methods.method_set import MethodNames, resolve
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.parts import parts_of
from gossip.methods.requirements import State
from gossip.methods.stage import RoundContext
from gossip.offers import RunShape
from gossip.pipelines import Pipelines, Row
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.simulation import Simulation
from peer.config import PeerConfig
from peer.run_plan import plan_run

PEERS, SIZE, ROUNDS = 4, 11, 13
MIXED = AdapterSpec((("head", (3,)), ("m.w", (4, 2)), ("n.w", (5,))))


def network(fragments: int, **methods: Any) -> Quadratic:
    names = MethodNames(fragments=fragments, merge="none", **methods)
    return Quadratic(peers=PEERS, dimension=SIZE, rounds=ROUNDS, topology="complete", methods=names)


def computed(network: Quadratic, fragments: int, optimizer: str = "none") -> Tensor:
    """Return float64[peers, P] after all rounds of a dense model of parts that take turns."""
    method, optima = find("optimizer", optimizer, OPTIMIZERS), network.optima().double()
    x, starts = torch.zeros(2, PEERS, SIZE, dtype=torch.float64)
    places = [part.place for part in parts_of(AdapterSpec((("x", (SIZE,)),)), fragments)]
    states: list[list[State]] = [[method.init(SIZE) for _ in range(PEERS)] for _ in places]
    for round in range(ROUNDS):
        x = optima + network.shrink * (x - optima)
        place, of_part = places[round % fragments], states[round % fragments]
        mean = x[:, place].mean(dim=0)
        for peer in range(PEERS):
            start, trained = starts[peer, place].clone(), x[peer, place].clone()
            steps = network.local_steps
            in_turn = method.ramp(round // fragments) if method.ramp else method
            x[peer, place], of_part[peer] = in_turn.update(
                start, trained, [mean.clone()], steps, of_part[peer]
            )
        starts[:, place] = x[:, place]
    return x


def ran(network: Quadratic) -> Simulation:
    simulation = network.simulation()
    simulation.run()
    assert simulation.penalties == []
    return simulation


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_parts_are_all_values_once_and_of_equal_size(count: int) -> None:
    state = AdapterState(MIXED, torch.arange(16.0))
    parts = parts_of(MIXED, count)
    assert torch.equal(torch.cat([part.of(state).flat for part in parts]), state.flat)
    sizes = [part.spec.size for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    other, rest = AdapterState(MIXED, -state.flat), state
    for part in parts:
        rest = part.into(rest, part.of(other))
    assert torch.equal(rest.flat, other.flat)
    assert torch.equal(state.flat, torch.arange(16.0))


def test_parts_leave_what_never_travels_alone() -> None:
    state = AdapterState(MIXED, torch.arange(16.0))
    travels = MIXED.only(lambda name: name != "head")
    changed = state
    for part in parts_of(travels, 3):
        changed = part.into(changed, AdapterState(part.spec, -part.of(state).flat))
    assert torch.equal(changed.flat[:3], state.flat[:3])
    assert torch.equal(changed.flat[3:], -state.flat[3:])


@pytest.mark.parametrize("optimizer", ["none", "noloco:0.5:0.7", "diloco", "diloco:0.9:1"])
@pytest.mark.parametrize("fragments", [1, 2, 4])
def test_a_network_of_parts_is_what_a_dense_model_gives(fragments: int, optimizer: str) -> None:
    parts = network(fragments, optimizer=optimizer)
    left = positions(ran(parts), parts.names).double()
    assert torch.allclose(left, computed(parts, fragments, optimizer), atol=1e-5)


@pytest.mark.parametrize("fragments", [2, 4])
def test_overlapped_a_part_of_the_start_is_mixed_and_local_steps_come_on_top(fragments: int) -> None:
    overlapped = replace(network(fragments), overlap=True)
    optima, x = overlapped.optima().double(), torch.zeros(PEERS, SIZE, dtype=torch.float64)
    places = [part.place for part in parts_of(AdapterSpec((("x", (SIZE,)),)), fragments)]
    for round in range(ROUNDS):
        learned = optima + overlapped.shrink * (x - optima) - x
        place = places[round % fragments]
        x[:, place] = x[:, place].mean(dim=0)
        x = x + learned
    assert torch.allclose(positions(ran(overlapped), overlapped.names).double(), x, atol=1e-5)


@pytest.mark.parametrize("codec", ["float32", "int8", "topk:0.3"])
def test_a_round_costs_its_share_and_the_merge_carries_all(codec: str) -> None:
    sent: list[PublishedAdapter] = []
    whole = network(1, codec=codec)
    parts = replace(whole, methods=replace(whole.methods, fragments=4, merge="average"))
    simulation = parts.simulation()
    handle = simulation.node("p0000").handle

    def noted(event: Any, now: float) -> list[Any]:
        actions = handle(event, now)
        sent.extend(action.published for action in actions if isinstance(action, Publish))
        return actions

    simulation.node("p0000").handle = noted  # type: ignore[method-assign]  # to listen
    simulation.run()
    left = positions(simulation, parts.names)
    assert torch.equal(left, left[:1].expand_as(left)), "the merge carries everything"
    methods = resolve(parts.methods, AdapterSpec((("x", (SIZE,)),)))
    rounds = [one for one in sent if one.kind == "round"]
    assert len(rounds) == ROUNDS
    for one in rounds:
        assert len(one.payload) in methods.parts[one.round % 4].specs
    assert max(len(one.payload) for one in rounds) < min(
        size for size in resolve(whole.methods, methods.spec).parts[0].specs
    )


# -- hostile and late


def pipelines_of(fragments: int, **methods: Any) -> Pipelines:
    settings = network(fragments, **methods).make_node("p0000").settings
    state = AdapterState(AdapterSpec((("x", (SIZE,)),)), torch.zeros(SIZE))
    return Pipelines("p0000", settings, state)


def published(round: int, values: int) -> PublishedAdapter:
    return PublishedAdapter(round, 3, "float32", bytes(4 * values))


def test_a_payload_of_another_part_s_length_is_refused_before_and_after_it_has_come() -> None:
    pipelines, methods = pipelines_of(4), resolve(network(4).methods, AdapterSpec((("x", (SIZE,)),)))
    shape = RunShape.of(methods, ROUNDS)
    sizes = [3, 3, 3, 2]  # of 11 values
    for round in range(8):
        for values in (0, 1, 2, 3, 4, SIZE):
            pull = Pull(bytes(16), round, -1, 0.0)
            offer = Offer(round, 3, "float32", 4 * values, bytes(32))
            if values == sizes[round % 4]:
                shape.check(offer, pull)
                pipelines.read("p0001", published(round, values), 0.25)
                continue
            with pytest.raises(RemoteError, match="shape"):
                shape.check(offer, pull)
            with pytest.raises(RemoteError, match="shape"):
                pipelines.read("p0001", published(round, values), 0.25)


def test_a_late_part_is_not_mixed_into_another() -> None:
    pipelines = pipelines_of(4)
    late = pipelines.read("p0001", published(4, 3), 0.25)
    assert [round for round in range(13) if pipelines.is_usable(late, round)] == [0, 4, 8, 12]
    assert not pipelines.is_usable(late, ROUNDS), "a part is no adapter that a merge could take"


def test_a_restart_goes_on_bit_for_bit() -> None:
    """Outer states and starts of all parts survive; those of another number of parts are left aside."""

    def rounds(pipelines: Pipelines, state: AdapterState, first: int, last: int) -> AdapterState:
        for round in range(first, last):
            trained = AdapterState(state.spec, state.flat + torch.linspace(0.1, 1.0, SIZE) * (round + 1))
            context = RoundContext(
                round=round, age=0, steps=3, start=state, trained=trained, readers=lambda: 3
            )
            pipelines.publish(context)
            state = pipelines.mix(Row(context, (), 0.75, 3)).state
        return state

    zeros = AdapterState(AdapterSpec((("x", (SIZE,)),)), torch.zeros(SIZE))
    settings = network(4, optimizer="diloco:0.9:0.7").make_node("p0000").settings
    straight = rounds(Pipelines("p0000", settings, zeros), zeros, 0, 9)
    first = Pipelines("p0000", settings, zeros)
    half = rounds(first, zeros, 0, 6)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert torch.equal(
        rounds(Pipelines("p0000", settings, zeros, saved, half), half, 6, 9).flat, straight.flat
    )
    lost = rounds(Pipelines("p0000", settings, zeros, None, half), half, 6, 9)
    assert not torch.equal(lost.flat, straight.flat), "there was something to survive"
    other = network(2, optimizer="diloco:0.9:0.7").make_node("p0000").settings
    assert set(Pipelines("p0000", other, zeros, saved, half).tensors()).isdisjoint(saved)


def test_a_peer_that_goes_back_begins_its_parts_there() -> None:
    pipelines = pipelines_of(4, optimizer="diloco:0.9:1")
    spec = AdapterSpec((("x", (SIZE,)),))
    there = AdapterState(spec, torch.full((SIZE,), 5.0))
    pipelines.reset(there)
    context = RoundContext(round=0, age=0, steps=3, start=there, trained=there, readers=lambda: 3)
    pipelines.publish(context)
    assert torch.equal(pipelines.mix(Row(context, (), 0.75, 3)).state.flat, there.flat)


# -- what does not go together


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "qg"}, "use --fragments 1"),
        ({"optimizer": "k-gt", "topology": "complete"}, "use --fragments 1"),
        ({"optimizer": "d2", "topology": "complete"}, "use --fragments 1"),
        ({"mixing": "push-sum", "topology": "exponential"}, "use --fragments 1"),
        ({"factors": "tsvd"}, "use --fragments 1"),
        ({"factors": "alternate"}, "use --fragments 1"),
        ({"codec": "lowrank"}, "use --fragments 1"),
        ({"codec": "int4", "feedback": "replica"}, "use --fragments 1"),
        ({"collect_s": 0.0}, "use --collect-s 60"),
        ({"rounds": 3}, "use 3 or fewer"),
        ({"rounds": 1000, "fragments": 65}, "use 64 or fewer"),
        ({"fragments": 0}, "must be greater than 0"),
    ],
)
def test_what_does_not_go_with_parts_is_refused_with_a_way_out(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LocalError, match=said):
        plan_run(PeerConfig.of(**{"fragments": 4, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": True},
        {"optimizer": "noloco"},
        {"optimizer": "diloco:0.5:0.7", "topology": "complete"},
        {"optimizer": "fedadam"},
        {"factors": "ffa"},
        {"mixing": "age"},
        {"codec": "topk:0.1"},
        {"robust": "median"},
    ],
)
def test_what_goes_with_parts_reaches_the_node(options: dict[str, Any]) -> None:
    plan = plan_run(PeerConfig.of(fragments=3, **options))
    spec = AdapterSpec((("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 2))))
    assert plan.node_settings(plan.methods(spec)).names.fragments == 3


def test_more_parts_than_values_are_refused() -> None:
    with pytest.raises(LocalError, match="use --fragments 1"):
        resolve(MethodNames(fragments=3), AdapterSpec((("x", (2,)),)))


def test_guards_go_by_the_part() -> None:
    """A neighbor may lie as far off in a part as rounds move the part, not as far as they move the whole."""
    reports: list[RoundReport] = []
    parts = replace(network(4), step_cap=1.0, heterogeneity=0.0, rounds=8)

    def far(round: int, flat: Tensor) -> Tensor:
        return flat + (100.0 if round == 6 else 0.0)

    simulation = parts.simulation(on_report=lambda now, name, report: reports.append(report))
    _bend(simulation, "p0003", far)
    simulation.run()
    objected = {(report.round, peer) for report in reports for peer, reason in report.objections if reason}
    assert {(6, "p0003")} <= objected
    assert all(peer == "p0003" or round >= 6 for round, peer in objected)


def _bend(simulation: Simulation, liar: str, bent: Callable[[int, Tensor], Tensor]) -> None:
    train = simulation.train

    def lying(name: str, action: Train) -> Any:
        steps = train(name, action)
        if name != liar:
            return steps
        return steps._replace(state=replace(steps.state, flat=bent(action.round, steps.state.flat)))

    simulation.train = lying


def test_likeness_and_reports_are_of_the_part_that_was_mixed() -> None:
    reports: list[RoundReport] = []
    parts = replace(network(2), rounds=6)
    simulation = parts.simulation(on_report=lambda now, name, report: reports.append(report))
    simulation.run()
    seen = [neighbor for report in reports if report.round >= 2 for neighbor in report.neighbors]
    assert seen
    assert all(-1.0 <= neighbor.cosine <= 1.0 and neighbor.drift > 0.0 for neighbor in seen)
