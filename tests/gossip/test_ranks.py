"""Peers whose LoRA ranks differ: the real nodes mix products, each keeps its own rank."""

import random

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.events import Train
from gossip.methods import products
from gossip.methods.contribution import Contribution
from gossip.methods.guards import within_reach
from gossip.methods.method_set import MethodNames, resolve
from gossip.methods.reach import RoundReach
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


def network(rounds: int, merge: str, codec: str = "float32", topology: str = "complete") -> Simulation:
    settings = NodeSettings(
        topology=parse_topology(topology, seed=0),
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
    dense = [
        state.flat[rank * IN :].view(OUT, rank) @ state.flat[: rank * IN].view(rank, IN)
        for state, rank in zip(states, RANKS.values(), strict=True)
    ]
    mean = sum(dense) / 3
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


@pytest.mark.parametrize("codec", ["float32", "int8", "topk:0.5"])
@pytest.mark.parametrize("merge", ["average", "product"])
def test_unequal_ranks_also_find_who_is_like_them_and_merge(merge: str, codec: str) -> None:
    simulation = network(rounds=3, merge=merge, codec=codec, topology="similar:1")
    simulation.run()
    assert simulation.penalties == []
    assert {simulation.node(name).round for name in RANKS} == {4}
    likeness = simulation.node("a")._neighbors.likeness()
    assert likeness
    assert all(-1.0 <= cosine <= 1.0 for cosine in likeness.values())


def test_likeness_of_unequal_ranks_is_the_cosine_of_products() -> None:
    one, other = drawn(2, 0), drawn(3, 1)
    inner = float((product(one) * product(other)).sum())
    assert products.inner(one, other) == pytest.approx(inner, rel=1e-6)
    assert products.distance(one, other) == pytest.approx(product_distance(one, other), rel=1e-6)
    assert products.distance(one, one) == pytest.approx(0.0, abs=1e-5)


def test_ranks_of_which_one_mix_would_take_hours_are_refused() -> None:
    with pytest.raises(LocalError, match="rank 64 at most, and this one has rank 65: use a lower --lora-r"):
        resolve(MethodNames(factors="tsvd"), spec_of(65))
    resolve(MethodNames(factors="tsvd"), spec_of(64))


def test_the_cross_term_of_ranks_beyond_the_width_is_that_of_the_dense_products() -> None:
    states, weights = [drawn(20, seed) for seed in range(3)], [0.5, 0.3, 0.2]
    mean = sum(weight * product(state) for state, weight in zip(states, weights, strict=True))
    flat = sum(weight * state.flat.double() for state, weight in zip(states, weights, strict=True))
    of_means = product(AdapterState(spec_of(20), flat.float()))
    expected = float((mean - of_means).norm() / mean.norm())
    assert products.cross_term(states, weights) == pytest.approx(expected, rel=1e-5)


def test_a_liar_among_unequal_ranks_is_kept_within_reach_by_weight() -> None:
    own = Contribution("me", drawn(2, 0), 0.5, 1, 0)
    others = [
        Contribution("far", AdapterState(spec_of(3), 30 * drawn(3, 1).flat), 0.25, 1, 0),
        Contribution("near", drawn(4, 2), 0.25, 1, 0),
    ]
    reach = RoundReach(products.distance, lambda distances: 40.0, by_weight=True)
    passed, objections = within_reach(own, others, reach)
    assert [(each.sender, each.reason, each.is_fault) for each in objections] == [("far", "far", False)]
    far, near = passed
    assert near == others[1]
    assert far.weight * products.distance(far.state, own.state) == pytest.approx(0.25 * 40.0)


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
