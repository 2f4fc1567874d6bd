"""What robust rules promise: how far liars move a row, what honest rows lose, that the order does not matter."""

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods import products
from gossip.methods.catalogue import find
from gossip.methods.centers import SMOOTHING, krum_choice, middle_mean, weiszfeld
from gossip.methods.contribution import Contribution, Guarded
from gossip.methods.reach import vector_distance
from gossip.methods.robust import READS_MIN, ROBUST, RobustRow, borne

RULES = [*ROBUST, "trim-clip:2", "nna:2", "trimmed:2", "krum:2"]
CLIPPERS = ("clip", "trim-clip", "trim-clip:1", "trim-clip:2", "auto")
COORDINATES = ("trimmed", "trimmed:2", "median")
"""Rules whose result lies, in every coordinate, among what the honest sent."""


def contribution(sender: str, values: Tensor, weight: float) -> Contribution:
    return Contribution(sender, AdapterState(AdapterSpec((("w", (values.numel(),)),)), values), weight, 1, 0)


def row_of(own: Tensor, others: Tensor) -> tuple[Contribution, list[Contribution]]:
    """Return a row of equal weights; senders are sorted."""
    weight = 1 / (len(others) + 1)
    return contribution("me", own, 1 - weight * len(others)), [
        contribution(f"p{place:02d}", values, weight) for place, values in enumerate(others)
    ]


def apply(name: str, own: Contribution, others: list[Contribution], reads: int | None = None) -> Guarded:
    row = RobustRow(len(others) if reads is None else reads, vector_distance, by_weight=False)
    return find("robust rule", name, ROBUST).apply(own, others, row)


def mixed(name: str, own: Contribution, others: list[Contribution]) -> Tensor:
    """Return the row's mean after the rule, float64."""
    passed, _ = apply(name, own, others)
    start = own.state.flat.double()
    pulls = [one.weight * (one.state.flat.double() - start) for one in passed]
    return start + sum(pulls, torch.zeros_like(start))


def rows(seed: int, count: int, size: int = 40) -> tuple[Contribution, list[Contribution]]:
    generator = torch.Generator().manual_seed(seed)
    own, others = torch.randn(size, generator=generator), torch.randn(count, size, generator=generator)
    return row_of(own, others)


SEEDS, COUNTS = st.integers(0, 10_000), st.integers(0, 12)

# -- laws of all


@pytest.mark.parametrize("name", RULES)
def test_nobody_there_leaves_us_as_we_are(name: str) -> None:
    own, _ = rows(0, 0)
    assert apply(name, own, []) == ([], [])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_equal_adapters_stay_exactly_what_they_are(name: str, count: int) -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))
    own, others = row_of(values, values.expand(count, -1))
    passed, objections = apply(name, own, others)
    assert all(torch.equal(one.state.flat, values) for one in passed)
    assert all(objection.is_routine and not objection.is_fault for objection in objections)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=COUNTS)
def test_weights_are_of_a_row_and_senders_in_order(name: str, seed: int, count: int) -> None:
    own, others = rows(seed, count)
    passed, objections = apply(name, own, others)
    weights = [one.weight for one in passed]
    assert min(weights, default=0.0) >= 0.0
    assert sum(weights) <= 1 + 1e-9
    senders = [one.sender for one in others]
    assert [one.sender for one in passed] == [
        sender for sender in senders if sender in {one.sender for one in passed}
    ]
    assert {objection.sender for objection in objections} <= set(senders)
    assert {objection.reason for objection in objections} <= {"trimmed", "clipped to row"}


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 8))
def test_the_order_of_the_others_does_not_matter(name: str, seed: int, count: int) -> None:
    own, others = rows(seed, count)
    if name.startswith("krum") and count < 5:
        return  # with one nearest that counts, two that are each other's are equals, and the first is taken
    turned = others[::-1]
    torch.testing.assert_close(mixed(name, own, others), mixed(name, own, turned), rtol=1e-5, atol=1e-6)
    if name.partition(":")[0] in COORDINATES:
        (first, *_), _ = apply(name, own, others)
        (second, *_), _ = apply(name, own, turned)
        assert torch.equal(first.state.flat, second.state.flat)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 8), scale=st.sampled_from([0.25, 2.0, 64.0]))
def test_a_row_that_is_scaled_or_moved_gives_a_result_that_is(
    name: str, seed: int, count: int, scale: float
) -> None:
    own, others = rows(seed, count)
    before = mixed(name, own, others)
    by = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    for change, expected in (
        (lambda flat: flat * scale, before * scale),
        (lambda flat: flat + by, before + by.double()),
    ):
        changed = [
            one._replace(state=AdapterState(one.state.spec, change(one.state.flat))) for one in (own, *others)
        ]
        torch.testing.assert_close(
            mixed(name, changed[0], changed[1:]), expected, rtol=1e-4, atol=1e-4 * max(1.0, scale)
        )


@pytest.mark.parametrize("name", RULES)
def test_the_same_row_gives_the_same_bytes(name: str) -> None:
    results = []
    for _ in range(2):
        passed, _ = apply(name, *rows(3, 6, 1_000))
        results.append([(one.sender, one.weight, one.state.flat.numpy().tobytes()) for one in passed])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", RULES)
def test_what_came_is_never_written(name: str) -> None:
    own, others = rows(5, 5)
    before = [one.state.flat.clone() for one in (own, *others)]
    apply(name, own, others)
    assert all(torch.equal(one.state.flat, flat) for one, flat in zip((own, *others), before, strict=True))


# -- liars


@pytest.mark.parametrize("name", CLIPPERS)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(4, 12), liars=st.integers(1, 3), lie=st.floats(1e-3, 1e12))
def test_clipping_bounds_what_liars_move_by_their_weight_times_an_honest_distance(
    name: str, seed: int, count: int, liars: int, lie: float
) -> None:
    """Half of the row may lie, and pull as they like: each moves us by no more than an honest one might."""
    liars = min(liars, count // 2)
    own, others = rows(seed, count)
    direction = torch.randn(40, generator=torch.Generator().manual_seed(seed + 1))
    lies = [
        one._replace(state=AdapterState(one.state.spec, one.state.flat + lie * direction))
        for one in others[:liars]
    ]
    honest = others[liars:]
    passed, _ = apply(name, own, [*lies, *honest])
    pull = sum(
        (one.weight * (one.state.flat - own.state.flat) for one in passed if one.sender < honest[0].sender),
        torch.zeros(40),
    )
    radius = max(vector_distance(one.state, own.state) for one in honest)
    assert float(pull.norm()) <= liars * others[0].weight * radius * (1 + 1e-4)


@pytest.mark.parametrize("name", COORDINATES)
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(4, 12), lie=st.floats(-1e30, 1e30))
def test_coordinates_stay_among_those_of_the_honest(name: str, seed: int, count: int, lie: float) -> None:
    own, others = rows(seed, count)
    liars = count // 2 if name == "median" else borne(2 if name == "trimmed:2" else None, count)
    lies = [
        one._replace(state=AdapterState(one.state.spec, torch.full((40,), lie))) for one in others[:liars]
    ]
    honest = torch.stack([one.state.flat for one in (own, *others[liars:])])
    (first, *_), _ = apply(name, own, [*lies, *others[liars:]])
    assert bool((first.state.flat >= honest.amin(dim=0)).all())
    assert bool((first.state.flat <= honest.amax(dim=0)).all())


@pytest.mark.parametrize("name", ["nna", "krum", "trim-clip"])
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, count=st.integers(4, 12), lie=st.floats(1e3, 1e12))
def test_who_is_far_away_has_no_say_at_all(name: str, seed: int, count: int, lie: float) -> None:
    own, others = rows(seed, count)
    liars = borne(None, count)
    lies = [one._replace(state=AdapterState(one.state.spec, one.state.flat + lie)) for one in others[:liars]]
    _, objections = apply(name, own, [*lies, *others[liars:]])
    assert {one.sender for one in lies} <= {one.sender for one in objections if one.reason == "trimmed"}


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(3, 10), lie=st.floats(1.0, 1e9))
def test_the_geometric_median_is_held_by_the_honest_half(seed: int, count: int, lie: float) -> None:
    """Its distance from the honest ones' mean is at most C(f/n) times the largest of theirs, RFA's lemma."""
    own, others = rows(seed, count)
    liars = count // 3
    lies = [one._replace(state=AdapterState(one.state.spec, one.state.flat + lie)) for one in others[:liars]]
    honest = torch.stack([one.state.flat.double() for one in (own, *others[liars:])])
    center = honest.mean(dim=0)
    share = liars / (count + 1)
    bound = 2 * (1 - share) / (1 - 2 * share) * float((honest - center).norm(dim=1).max())
    result = mixed("geometric-median", own, [*lies, *others[liars:]])
    assert float((result - center).norm()) <= bound * 1.01


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 12))
def test_without_anybody_to_bear_nothing_is_lost(seed: int, count: int) -> None:
    own, others = rows(seed, count)
    plain = mixed("none", own, others)
    for name in ("trimmed:0", "nna:0"):
        torch.testing.assert_close(mixed(name, own, others), plain, rtol=1e-5, atol=1e-5)
    passed, objections = apply("trim-clip:0", own, others)
    assert len(passed) == count
    assert "trimmed" not in {objection.reason for objection in objections}


# -- known answers


def line(*values: float) -> tuple[Contribution, list[Contribution]]:
    own, *others = (torch.tensor([value]) for value in values)
    return row_of(own, torch.stack(others))


def test_the_farthest_quarter_goes_and_the_rest_is_drawn_to_its_median_distance() -> None:
    own, others = line(0.0, 1.0, -2.0, 3.0, 100.0)
    passed, objections = apply("trim-clip", own, others)
    assert [(one.sender, float(one.state.flat)) for one in passed] == [
        ("p00", 1.0),
        ("p01", -2.0),
        ("p02", 2.0),
    ]
    assert [(one.sender, one.reason) for one in objections] == [("p03", "trimmed"), ("p02", "clipped to row")]
    assert [one.weight for one in passed] == [0.2, 0.2, 0.2]


def test_clipping_alone_draws_all_beyond_the_lower_median() -> None:
    own, others = line(0.0, 1.0, -2.0, 3.0, -100.0)
    passed, _ = apply("clip", own, others)
    assert [float(one.state.flat) for one in passed] == pytest.approx([1.0, -2.0, 2.0, -2.0])


def test_nearest_neighbors_share_the_weight_of_who_is_left_out() -> None:
    own, others = line(0.0, 1.0, -2.0, 3.0, 100.0)
    assert float(mixed("nna", own, others)) == pytest.approx((0 + 1 - 2 + 3) / 4)


def test_trimmed_mean_and_median_of_a_row() -> None:
    own, others = line(0.0, 1.0, -2.0, 3.0, 100.0)
    assert float(mixed("trimmed", own, others)) == pytest.approx((0 + 1 + 3) / 3)
    assert float(mixed("trimmed:2", own, others)) == pytest.approx(1.0)
    assert float(mixed("median", own, others)) == pytest.approx(1.0)
    own, others = line(0.0, 1.0, -2.0, 100.0)
    assert float(mixed("median", own, others)) == pytest.approx(0.5)
    vectors = [torch.tensor([value]) for value in (5.0, 5.0, 7.0, -1e30)]
    assert float(middle_mean(vectors, 1)) == 5.0


def test_the_geometric_median_of_known_figures() -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    distances = torch.cdist(square, square).double().numpy()
    np.testing.assert_allclose(weiszfeld(distances) @ square.double().numpy(), [0.5, 0.5], atol=1e-9)
    # Of a triangle without an angle of 120 degrees: Fermat's point, which sees all sides under that angle.
    triangle = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    point = weiszfeld(torch.cdist(triangle, triangle).double().numpy()) @ triangle.double().numpy()
    arms = triangle.double().numpy() - point
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    np.testing.assert_allclose([a @ b for a, b in itertools.combinations(arms, 2)], [-0.5] * 3, atol=1e-3)
    # With an angle of more, the corner itself, as far as smoothing lets it be.
    flat = torch.tensor([[0.0, 0.0], [10.0, 1.0], [-10.0, 1.0]])
    point = weiszfeld(torch.cdist(flat, flat).double().numpy()) @ flat.double().numpy()
    assert float(np.linalg.norm(point)) <= 2 * SMOOTHING * 20
    assert weiszfeld(np.zeros((1, 1))).tolist() == [1.0]


def test_where_most_adapters_are_equal_the_geometric_median_is_they() -> None:
    own, others = line(2.0, 2.0, 2.0, 2.0, 1e6)
    assert float(mixed("geometric-median", own, others)) == 2.0


def test_krum_takes_whoever_has_the_nearest_neighbors() -> None:
    values = np.array([0.0, 1.0, 2.2, 10.0, 11.0])
    distances = np.abs(values[:, None] - values)
    # n - f - 2 = 2 nearest: sums of squares 5.84, 2.44, 6.28, ...
    assert krum_choice(distances, 1) == 1
    own, others = line(*values.tolist())
    passed, objections = apply("krum", own, others)
    assert {float(one.state.flat) for one in passed} == {1.0}
    assert {one.sender for one in objections} == {"p01", "p02", "p03"}
    own, others = line(5.0, 4.0, 6.0)
    assert {float(one.state.flat) for one in apply("krum", own, others)[0]} == {5.0}  # of equals, ourselves


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_quarter_of_the_row_rounded_up_is_borne_but_of_one_alone_none(count: int, expected: int) -> None:
    assert borne(None, count) == expected
    assert borne(2, count) == min(2, count)


def test_what_is_to_be_borne_is_dropped_even_if_nobody_is_left() -> None:
    own, others = rows(0, 2)
    assert apply("trim-clip:2", own, others)[0] == []
    assert apply("nna:3", own, others)[0] == []


def test_auto_goes_by_how_many_the_row_reads_and_not_by_how_many_came() -> None:
    own, others = rows(0, 3)
    assert apply("auto", own, others, reads=READS_MIN - 1) == (others, [])
    (passed, objections), (expected, same) = (
        apply("auto", own, others, reads=READS_MIN),
        apply("trim-clip", own, others),
    )
    assert objections == same
    assert all(torch.equal(a.state.flat, b.state.flat) for a, b in zip(passed, expected, strict=True))


def test_an_unknown_rule_or_parameter_is_refused_with_what_there_is() -> None:
    with pytest.raises(LocalError, match="trim-clip"):
        find("robust rule", "trimclip", ROBUST)
    with pytest.raises(LocalError, match="whole number"):
        find("robust rule", "trim-clip:-1", ROBUST)
    with pytest.raises(LocalError, match=r"takes 0 parameter"):
        find("robust rule", "clip:1", ROBUST)


# -- products

FACTORS = AdapterSpec((("m.lora_A.weight", (2, 6)), ("m.lora_B.weight", (5, 2))))


@pytest.mark.parametrize("name", ["clip", "trim-clip", "nna", "geometric-median", "krum"])
def test_in_the_space_of_products_weights_do_what_states_do_elsewhere(name: str) -> None:
    """Adapters with one A: then products lie as far apart as their B do, and both ways must give the same mean."""
    generator = torch.Generator().manual_seed(2)
    a = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q.mT.contiguous()
    states = [
        AdapterState(FACTORS, torch.cat([a.flatten(), scale * torch.randn(10, generator=generator)]))
        for scale in (1.0, 1.0, 1.5, 0.7, 5.0)
    ]
    own, *others = [Contribution(f"p{place}", state, 0.2, 1, 0) for place, state in enumerate(states)]
    rule = find("robust rule", name, ROBUST).apply
    means = []
    for distance, by_weight in ((vector_distance, False), (products.distance, True)):
        passed, _ = rule(own, others, RobustRow(4, distance, by_weight))
        pulls = [one.weight * (one.state.flat - own.state.flat) for one in passed]
        means.append(own.state.flat + sum(pulls, torch.zeros(22)))
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)


def test_the_radius_is_the_lower_median_of_those_that_remain() -> None:
    own, others = rows(9, 9)
    distances = sorted(vector_distance(one.state, own.state) for one in others)
    passed, _ = apply("trim-clip", own, others)
    longest = max(vector_distance(one.state, own.state) for one in passed)
    assert math.isclose(longest, statistics.median_low(distances[:6]), rel_tol=1e-5)
