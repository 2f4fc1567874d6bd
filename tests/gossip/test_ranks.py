"""Peers whose LoRA ranks differ: the real nodes mix products, each keeps its own rank."""

import random

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import Train
from gossip.methods.method_set import MethodNames, resolve
from gossip.methods.stage import RoundContext
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.settings import NodeSettings
from gossip.simulation import LocalSteps, Simulation
from topology.links import parse_topology

OUT, IN = 6, 8
RANKS = {"a": 2, "b": 3, "c": 4}


def spec_of(rank: int) -> AdapterSpec:
    return AdapterSpec((("m.lora_A.weight", (rank, IN)), ("m.lora_B.weight", (OUT, rank))))


def product(state: AdapterState) -> torch.Tensor:
    """Return B A, dense, float64."""
    rank = state.spec.size // (OUT + IN)
    a, b = state.flat.double().split([rank * IN, OUT * rank])
    return b.view(OUT, rank) @ a.view(rank, IN)


def product_distance(one: AdapterState, other: AdapterState) -> float:
    return float((product(one) - product(other)).norm())


def drawn(rank: int, seed: int) -> AdapterState:
    spec = spec_of(rank)
    return AdapterState(spec, torch.randn(spec.size, generator=torch.Generator().manual_seed(seed)))


def network(rounds: int, merge: str, codec: str = "float32") -> Simulation:
    settings = NodeSettings(
        topology=parse_topology("complete", seed=0),
        names=MethodNames(factors="tsvd", merge=merge, codec=codec),
        rounds=rounds,
        collect_s=60.0,
        norm_cap=100.0,
    )
    nodes = {
        name: GossipNode(name, drawn(rank, place), settings, random.Random(place), tuple(RANKS))
        for place, (name, rank) in enumerate(RANKS.items())
    }

    def rest(name: str, action: Train) -> LocalSteps:
        return LocalSteps(action.state, 1, 0.0, 1.0)

    return Simulation(nodes, rest)


def test_each_gets_the_best_of_its_own_rank_of_the_mean_product() -> None:
    states = [drawn(rank, place) for place, rank in enumerate(RANKS.values())]
    products = [
        state.flat[rank * IN :].view(OUT, rank) @ state.flat[: rank * IN].view(rank, IN)
        for state, rank in zip(states, RANKS.values(), strict=True)
    ]
    mean = sum(products) / 3
    left, values, right = torch.linalg.svd(mean)
    simulation = network(rounds=1, merge="none")
    simulation.run()
    assert simulation.penalties == []
    for name, rank in RANKS.items():
        state = simulation.node(name).state
        assert state.spec == spec_of(rank)
        product = state.flat[rank * IN :].view(OUT, rank) @ state.flat[: rank * IN].view(rank, IN)
        best = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
        torch.testing.assert_close(product, best, atol=1e-4, rtol=1e-4)


def test_after_the_merge_equal_ranks_would_hold_the_same_and_others_what_fits() -> None:
    simulation = network(rounds=3, merge="product")
    simulation.run()
    largest, middle = simulation.node("c").state, simulation.node("b").state
    tail = torch.linalg.svdvals(largest.flat[4 * IN :].view(OUT, 4) @ largest.flat[: 4 * IN].view(4, IN))[3:]
    assert product_distance(largest, middle) <= float(tail.norm()) * 1.01 + 1e-4


def test_a_payload_of_no_possible_rank_is_the_sender_s_fault() -> None:
    simulation = network(rounds=1, merge="none")
    pipelines = simulation.node("b")._pipelines
    publish = pipelines.publish

    def cut(context: RoundContext) -> PublishedAdapter:
        published = publish(context)
        return PublishedAdapter(published.round, published.age, published.codec, published.payload[:-4])

    pipelines.publish = cut
    simulation.run()
    assert {(victim, culprit) for victim, culprit, _ in simulation.penalties} == {("a", "b"), ("c", "b")}


@pytest.mark.parametrize(("codec", "bound"), [("bfloat16", 0.02), ("int8", 0.03), ("int4", 0.4)])
def test_adapters_of_other_ranks_also_come_through_lossy_codecs(codec: str, bound: float) -> None:
    exact, lossy = network(rounds=1, merge="none"), network(rounds=1, merge="none", codec=codec)
    exact.run()
    lossy.run()
    assert lossy.penalties == []
    for name in RANKS:
        one, other = exact.node(name).state, lossy.node(name).state
        assert 0 < product_distance(one, other) < bound * float(one.flat.norm())


def test_replicas_are_refused_where_ranks_may_differ() -> None:
    with pytest.raises(LocalError, match="use --feedback error"):
        resolve(MethodNames(factors="tsvd", codec="int8", feedback="replica"), spec_of(2))
