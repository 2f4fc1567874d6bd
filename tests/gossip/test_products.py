"""Products of LoRA factors against dense linear algebra in float64, and what averaging them must keep."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods.factors import FACTORS, factor_pairs
from gossip.methods.mixing import weighted_sum
from gossip.methods.products import (
    average_products,
    cross_term,
    with_rank,
)

SHAPES = {"q": (24, 20), "k": (9, 20), "o": (24, 20)}
"""Outputs and inputs of the modules: two of equal shape, one of another."""
WEIGHTS = [0.5, 0.3, 0.2]


def spec_of_rank(rank: int, magnitude: bool = False) -> AdapterSpec:
    entries = {}
    for name, (outputs, inputs) in SHAPES.items():
        entries[f"m.{name}_proj.lora_A.weight"] = (rank, inputs)
        entries[f"m.{name}_proj.lora_B.weight"] = (outputs, rank)
        if magnitude:
            entries[f"m.{name}_proj.lora_magnitude_vector"] = (outputs,)
    return AdapterSpec(tuple(sorted(entries.items())))


SPEC = spec_of_rank(4)


def random_state(seed: int, spec: AdapterSpec = SPEC) -> AdapterState:
    return AdapterState(spec, torch.randn(spec.size, generator=torch.Generator().manual_seed(seed)))


def near(state: AdapterState, seed: int, distance: float = 0.3) -> AdapterState:
    return AdapterState(state.spec, state.flat + distance * random_state(seed, state.spec).flat)


def without_b(state: AdapterState) -> AdapterState:
    return state.with_selected(
        AdapterState(b := state.spec.only(lambda name: "lora_B" in name), torch.zeros(b.size))
    )


def products(state: AdapterState) -> list[Tensor]:
    """Return each module's dense product, float64."""
    return [
        state.flat[pair.b].view(pair.outputs, pair.rank).double()
        @ state.flat[pair.a].view(pair.rank, pair.inputs).double()
        for pair in factor_pairs(state.spec)
    ]


def mean_products(states: Sequence[AdapterState], weights: Sequence[float]) -> list[Tensor]:
    return [
        sum(weight * product for weight, product in zip(weights, of_module, strict=True))
        for of_module in zip(*(products(state) for state in states), strict=True)
    ]


def norm(dense: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(each.square().sum()) for each in dense))


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return norm([a - b for a, b in zip(one, other, strict=True)]) / norm(other)


def factor_mean(states: Sequence[AdapterState], weights: Sequence[float]) -> AdapterState:
    return AdapterState(states[0].spec, weighted_sum([state.flat for state in states], weights))


def rotated(state: AdapterState, seed: int, angle: float = math.inf) -> AdapterState:
    """Return the same products with factors B R and R^T A, R orthogonal, another in every module.

    R is uniform, or a random rotation by about ``angle``, in radians.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = state.flat.clone()
    for pair in factor_pairs(state.spec):
        square = torch.randn(pair.rank, pair.rank, generator=generator).double()
        q, r = torch.linalg.qr(square)
        turn = q * r.diagonal().sign()  # Haar: QR alone is biased
        if math.isfinite(angle):
            turn = torch.linalg.matrix_exp(angle / 2 * (square - square.mT))
        b, a = flat[pair.b].view(pair.outputs, pair.rank), flat[pair.a].view(pair.rank, pair.inputs)
        b.copy_(b.double() @ turn)
        a.copy_(turn.mT @ a.double())
    return AdapterState(state.spec, flat)


# -- the cross term


@pytest.mark.parametrize("weights", [WEIGHTS, [1 / 3, 1 / 3, 1 / 3], [1.1, 0.2, -0.3], [1.0, 0.0, 0.0]])
@pytest.mark.parametrize("apart", [10.0, 0.3, 1e-3])
def test_the_cross_term_is_what_dense_algebra_says(weights: list[float], apart: float) -> None:
    states = [near(random_state(0), seed, apart) for seed in (1, 2, 3)]
    mean = mean_products(states, weights)
    b_mean_a_mean = []
    for pair in factor_pairs(SPEC):
        a, b = (
            sum(w * s.flat[place].double() for w, s in zip(weights, states, strict=True))
            for place in (pair.a, pair.b)
        )
        b_mean_a_mean.append(b.view(pair.outputs, pair.rank) @ a.view(pair.rank, pair.inputs))
    expected = distance(b_mean_a_mean, mean)
    assert cross_term(states, weights) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_the_cross_term_falls_with_the_square_of_the_distance() -> None:
    far, close = ([near(random_state(0), seed, apart) for seed in (1, 2, 3)] for apart in (0.02, 0.01))
    assert cross_term(far, WEIGHTS) / cross_term(close, WEIGHTS) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("agreed", ["lora_A", "lora_B"])
def test_the_cross_term_is_zero_if_either_factor_is_the_same_everywhere(agreed: str) -> None:
    common = random_state(0).select(SPEC.only(lambda name: agreed in name))
    states = [random_state(seed).with_selected(common) for seed in (1, 2, 3)]
    for weights in (WEIGHTS, [0.7, 0.2, 0.1]):  # the latter sum to a little less than 1 in floating point
        assert cross_term(states, weights) == 0.0
    assert cross_term([random_state(seed) for seed in (1, 2, 3)], WEIGHTS) > 0.5


def test_the_cross_term_of_one_adapter_of_no_products_or_of_no_factors_is_zero() -> None:
    assert cross_term([random_state(1)], [1.0]) == 0.0
    assert cross_term([without_b(random_state(seed)) for seed in (1, 2, 3)], WEIGHTS) == 0.0
    plain = AdapterSpec((("m.ia3_l", (5,)),))
    assert cross_term([random_state(1, plain), random_state(2, plain)], [0.5, 0.5]) == 0.0


# -- the mean of products


@pytest.mark.parametrize("weights", [WEIGHTS, [1.1, 0.2, -0.3]])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 5, 3), (1, 1, 8)])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_mean_is_the_dense_one_truncated(ranks: tuple[int, ...], rank: int, weights: list[float]) -> None:
    """Eckart and Young: nothing of that rank is nearer to the dense mean than its leading singular directions."""
    states = [random_state(seed, spec_of_rank(rank)) for seed, rank in enumerate(ranks)]
    mean = mean_products(states, weights)
    best = []
    for dense in mean:
        u, values, v_t = torch.linalg.svd(dense)
        best.append(u[:, :rank] * values[:rank] @ v_t[:rank])
    got = average_products(states, weights, spec=spec_of_rank(rank))
    assert got.spec == spec_of_rank(rank)
    assert distance(products(got), best) < 1e-6


def test_the_mean_is_exact_if_the_rank_has_room_for_all() -> None:
    states = [random_state(seed, spec_of_rank(rank)) for seed, rank in enumerate((2, 3, 1))]
    for rank in (6, 9):
        got = average_products(states, WEIGHTS, spec=with_rank(states[0].spec, rank))
        assert distance(products(got), mean_products(states, WEIGHTS)) < 1e-6


def test_the_singular_values_are_split_evenly() -> None:
    mean = average_products([random_state(1), random_state(2)], [0.5, 0.5])
    for pair in factor_pairs(SPEC):
        b, a = mean.flat[pair.b].view(-1, pair.rank), mean.flat[pair.a].view(pair.rank, -1)
        torch.testing.assert_close(b.mT @ b, a @ a.mT, atol=1e-4, rtol=1e-5)


def test_rotated_copies_of_an_adapter_average_to_its_products_but_not_by_their_factors() -> None:
    """The mean of m uniform rotations has mean square 1/m: averaged factors keep 1/16 of the product, 15/16 is lost."""
    spec = AdapterSpec(
        tuple((f"m{i:02}.lora_{f}.weight", s) for i in range(40) for f, s in (("A", (4, 24)), ("B", (24, 4))))
    )
    original = random_state(0, spec)
    copies, weights = [rotated(original, seed) for seed in range(16)], [1 / 16] * 16
    assert (
        distance(products(average_products(copies, [1 / len(copies)] * len(copies))), products(original))
        < 1e-6
    )
    naive = distance(products(factor_mean(copies, weights)), products(original))
    assert naive == pytest.approx(15 / 16, abs=0.02)
    assert cross_term(copies, weights) == pytest.approx(naive, rel=1e-5)


def test_the_order_of_adapters_does_not_matter_to_the_product() -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    backward = average_products(states[::-1], WEIGHTS[::-1])
    assert distance(products(average_products(states, WEIGHTS)), products(backward)) < 1e-6


def test_without_a_reference_the_result_depends_on_nothing_but_the_adapters() -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    copies = [AdapterState(state.spec, state.flat.clone()) for state in states]
    one, other = (average_products(each, [1 / 3] * 3) for each in (states, copies))
    assert torch.equal(one.flat, other.flat)
    for pair in factor_pairs(SPEC):
        b = one.flat[pair.b].view(-1, pair.rank)
        assert (b.gather(0, b.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_inputs_are_never_written() -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    average_products(states, WEIGHTS, states[0])
    cross_term(states, WEIGHTS)
    for seed, state in zip((1, 2, 3), states, strict=True):
        assert torch.equal(state.flat, random_state(seed).flat)


def test_what_is_no_factor_is_averaged_plainly() -> None:
    states = [random_state(seed, spec_of_rank(rank, magnitude=True)) for seed, rank in enumerate((4, 2, 3))]
    mean = dict(average_products(states, WEIGHTS).tensors())
    for name in (f"m.{module}_proj.lora_magnitude_vector" for module in SHAPES):
        expected = sum(w * dict(s.tensors())[name] for w, s in zip(WEIGHTS, states, strict=True))
        torch.testing.assert_close(mean[name], expected)
    plain = AdapterSpec((("m.ia3_l", (5,)),))
    got = average_products([random_state(1, plain), random_state(2, plain)], [0.25, 0.75])
    torch.testing.assert_close(
        got.flat, 0.25 * random_state(1, plain).flat + 0.75 * random_state(2, plain).flat
    )


# -- the gauge


def test_a_reference_changes_the_factors_but_not_the_product() -> None:
    states = [near(random_state(0), seed) for seed in (1, 2, 3)]
    plain, turned = average_products(states, WEIGHTS), average_products(states, WEIGHTS, states[0])
    assert distance(products(turned), products(plain)) < 1e-6
    away, close = (float((mean.flat - states[0].flat).norm()) for mean in (plain, turned))
    assert close < 0.6 * away
    for seed in range(20):  # no other rotation is nearer, not even one close by
        for angle in (1e-2, math.inf):
            assert close < float((rotated(turned, seed, angle).flat - states[0].flat).norm())


def test_a_reference_that_is_the_result_but_turned_is_met_exactly() -> None:
    states = [near(random_state(0), seed) for seed in (1, 2, 3)]
    reference = rotated(average_products(states, WEIGHTS), 7)
    torch.testing.assert_close(
        average_products(states, WEIGHTS, reference).flat, reference.flat, atol=1e-5, rtol=1e-5
    )


def test_averaging_again_changes_nothing() -> None:
    once = average_products([random_state(1), random_state(2)], [0.5, 0.5], random_state(1))
    torch.testing.assert_close(
        average_products([once, once], [0.5, 0.5], once).flat, once.flat, atol=1e-5, rtol=1e-5
    )


def test_a_direction_without_a_product_keeps_the_a_of_the_reference_so_that_it_can_learn() -> None:
    start = without_b(random_state(0))
    torch.testing.assert_close(average_products([start, start], [0.5, 0.5], start).flat, start.flat)
    thin = [random_state(seed, spec_of_rank(1)) for seed in (1, 2)]
    wide = average_products(thin, [0.5, 0.5], start)
    assert distance(products(wide), mean_products(thin, [0.5, 0.5])) < 1e-6
    for pair in factor_pairs(SPEC):
        assert float(torch.linalg.svdvals(wide.flat[pair.a].view(pair.rank, -1))[-1]) > 0.1
    dead = average_products(thin, [0.5, 0.5], spec=SPEC)
    assert all((dead.flat[pair.a].view(pair.rank, -1)[2:] == 0).all() for pair in factor_pairs(SPEC))


# -- what needs no products: exact rules, and a common start


def test_with_a_frozen_the_mean_of_b_gives_the_mean_of_products() -> None:
    shared = FACTORS["ffa"].make().shared(SPEC)
    start = random_state(0)
    states = [start.with_selected(random_state(seed).select(shared)) for seed in (1, 2, 3)]
    mixed = start.with_selected(factor_mean([state.select(shared) for state in states], WEIGHTS))
    assert distance(products(mixed), mean_products(states, WEIGHTS)) < 1e-6


def test_sharing_a_leaves_b_at_home() -> None:
    shared = FACTORS["share-a"].make().shared(SPEC)
    states = [random_state(seed) for seed in (1, 2)]
    mixed = dict(
        states[0].with_selected(factor_mean([s.select(shared) for s in states], [0.5, 0.5])).tensors()
    )
    own, other = (dict(state.tensors()) for state in states)
    for name, values in mixed.items():
        torch.testing.assert_close(values, own[name] if "lora_B" in name else (own[name] + other[name]) / 2)


def test_the_mean_of_independent_starts_vanishes() -> None:
    """Variance 1/m, which is why all peers start from the same A (algorithms.md section 3.2)."""
    spec = AdapterSpec((("m.lora_A.weight", (8, 5000)),))
    mean = factor_mean([random_state(seed, spec) for seed in range(16)], [1 / 16] * 16)
    assert float(mean.flat.var()) == pytest.approx(1 / 16, rel=0.03)


# -- ranks, refusals


def test_a_layout_of_another_rank_differs_in_nothing_else() -> None:
    spec = spec_of_rank(4, magnitude=True)
    assert with_rank(spec, 7) == spec_of_rank(7, magnitude=True)
    assert with_rank(with_rank(spec, 7), 4) == spec
    with pytest.raises(LocalError, match="at least 1"):
        with_rank(spec, 0)


def test_what_makes_no_sense_is_refused() -> None:
    state = random_state(1)
    for weights in ([0.5, 0.4], [0.5], [math.nan, 0.5]):
        for mean in (average_products, cross_term):
            with pytest.raises(LocalError, match="sum"):
                mean([state, state], weights)
    for mean in (average_products, cross_term):
        with pytest.raises(LocalError, match="0 adapters"):
            mean([], [])
    with pytest.raises(LocalError, match="one spec"):
        cross_term([state, random_state(2, spec_of_rank(3))], [0.5, 0.5])
    with pytest.raises(LocalError, match="reference"):
        average_products([state], [1.0], random_state(2, spec_of_rank(3)), SPEC)
    for other in (spec_of_rank(4, magnitude=True), AdapterSpec(SPEC.entries[:4])):
        with pytest.raises(LocalError, match="nothing but rank"):
            average_products([state, random_state(2, other)], [0.5, 0.5])
