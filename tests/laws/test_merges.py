"""What every way to merge promises: the same bytes for all, what equal adapters become, and how far liars carry it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import products
from gossip.methods.catalogue import find
from gossip.methods.centers import CROWD_MIN, clipped, middle_mean, pairwise
from gossip.methods.merging import MERGES
from gossip.methods.reach import vector_distance

SPEC = AdapterSpec((("w", (40,)),))
FACTORS = AdapterSpec((("bias", (3,)), ("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 2))))
ROBUST_MERGES = ("clipped", "trimmed", "median")


def adapters(seed: int, count: int, spec: AdapterSpec = SPEC) -> list[AdapterState]:
    generator = torch.Generator().manual_seed(seed)
    return [AdapterState(spec, torch.randn(spec.size, generator=generator)) for _ in range(count)]


def merged(name: str, states: list[AdapterState], weights: list[float] | None = None) -> Tensor:
    equal = [1 / len(states)] * len(states)
    return find("merge", name, MERGES).merge(states, weights or equal, states[0].spec).flat


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("spec", [SPEC, FACTORS], ids=["vector", "factors"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_equal_adapters_merge_to_what_they_are(name: str, spec: AdapterSpec, count: int) -> None:
    (state,) = adapters(0, 1, spec)
    result = AdapterState(spec, merged(name, [state] * count))
    scale = float(state.flat.norm())
    assert products.distance(result, state) <= 1e-5 * scale**2
    if name in ("trimmed", "median"):
        assert torch.equal(result.flat, state.flat)


@pytest.mark.parametrize("name", ROBUST_MERGES)
@pytest.mark.parametrize("spec", [SPEC, FACTORS], ids=["vector", "factors"])
@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_are_averaged_as_before(name: str, spec: AdapterSpec, count: int) -> None:
    states = adapters(1, count, spec)
    plain = "product" if name == "clipped" else "average"
    torch.testing.assert_close(merged(name, states), merged(plain, states), rtol=1e-5, atol=1e-6)
    if name == "clipped":
        assert torch.equal(merged(name, states), merged(plain, states))


@pytest.mark.parametrize("name", MERGES)
def test_the_same_adapters_give_the_same_bytes(name: str) -> None:
    first, second = (merged(name, adapters(2, 7, FACTORS)).numpy().tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ROBUST_MERGES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(5, 12), lie=st.floats(1.0, 1e6))
def test_a_quarter_of_liars_carries_a_robust_merge_no_farther_than_honest_ones_lie(
    name: str, seed: int, count: int, lie: float
) -> None:
    states = adapters(seed, count)
    liars = (count - 1) // 4
    direction = torch.randn(40, generator=torch.Generator().manual_seed(seed + 1))
    honest = torch.stack([state.flat for state in states[liars:]])
    lies = [AdapterState(SPEC, honest.mean(dim=0) + lie * direction) for _ in range(liars)]
    center = honest.mean(dim=0)
    radius = float((honest - center).norm(dim=1).max())
    assert float((merged(name, [*lies, *states[liars:]]) - center).norm()) <= radius


def test_liars_undo_a_plain_mean() -> None:
    states = adapters(3, 10)
    lies = [AdapterState(SPEC, torch.full((40,), 1e4))] * 2
    assert float(merged("product", [*lies, *states]).norm()) > 1e3
    for name in ROBUST_MERGES:
        assert float(merged(name, [*lies, *states]).norm()) < 10


@pytest.mark.parametrize("name", ROBUST_MERGES)
def test_a_merge_of_products_and_one_of_vectors_move_with_the_adapters(name: str) -> None:
    states = adapters(4, 9)
    by = torch.randn(40, generator=torch.Generator().manual_seed(5))
    moved = [AdapterState(SPEC, 2 * state.flat + by) for state in states]
    torch.testing.assert_close(merged(name, moved), 2 * merged(name, states) + by, rtol=1e-4, atol=1e-4)


def test_factors_that_are_turned_are_no_lie() -> None:
    """(B R, R^-1 A) is the same adapter: a clipped merge sees products, and leaves such a one as it is."""
    (state,) = adapters(6, 1, FACTORS)
    turned = []
    for angle in np.linspace(0.1, 6.0, 7):
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        turn = turn.float()
        b, a = state.flat[15:].view(5, 2), state.flat[3:15].view(2, 6)
        turned.append(
            AdapterState(FACTORS, torch.cat([state.flat[:3], (turn.mT @ a).flatten(), (b @ turn).flatten()]))
        )
    result = AdapterState(FACTORS, merged("clipped", turned))
    assert products.distance(result, state) < 1e-5


def test_who_is_within_the_median_distance_counts_whole_and_who_is_beyond_by_its_share() -> None:
    """Huber's condition: the pulls, cut to the radius, cancel."""
    points = torch.randn(9, 5, generator=torch.Generator().manual_seed(7)).double()
    points[0] += 50.0
    states = [AdapterState(AdapterSpec((("w", (5,)),)), point.float()) for point in points]
    shares = clipped(pairwise(states, vector_distance), [1.0] * 9)
    center = shares @ points.numpy()
    pulls = points.numpy() - center
    lengths = np.linalg.norm(pulls, axis=1)
    radius = lengths[shares < shares.max() * (1 - 1e-9)] @ shares[shares < shares.max() * (1 - 1e-9)]
    radius /= shares.max() * (shares < shares.max() * (1 - 1e-9)).sum()
    cut = pulls * np.minimum(1.0, radius / lengths)[:, None]
    assert float(np.linalg.norm(cut.sum(axis=0))) < 1e-5 * radius
    assert shares[0] < shares[1] / 10


def test_unequal_weights_cut_the_same_share_of_all_weight() -> None:
    vectors = [torch.tensor([value]) for value in (1.0, 2.0, 3.0, 4.0)]
    assert float(middle_mean(vectors, 1, [0.25] * 4)) == 2.5
    # A quarter of all weight goes at either end: of 1 all but .15, then 2 and 3 whole, of 4 nothing but .05 - .05.
    assert float(middle_mean(vectors, 1, [0.4, 0.2, 0.2, 0.2])) == pytest.approx(
        (0.15 * 1 + 0.2 * 2 + 0.15 * 3) / 0.5
    )
    huge = [torch.tensor([value]) for value in (-3e38, 2.0, 3.0, 3e38)]
    assert math.isfinite(float(middle_mean(huge, 1, [0.2, 0.3, 0.3, 0.2])))
    same = torch.full((3,), 0.1)
    assert torch.equal(middle_mean([same] * 5, 2, [0.1, 0.2, 0.3, 0.2, 0.2]), same)


def test_fewer_than_four_have_no_crowd() -> None:
    assert CROWD_MIN == 4
    assert clipped(
        np.array([[0.0, 9.0, 9.0], [9.0, 0.0, 1.0], [9.0, 1.0, 0.0]]), [1.0, 1.0, 2.0]
    ).tolist() == [
        0.25,
        0.25,
        0.5,
    ]
