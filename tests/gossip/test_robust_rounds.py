"""Robust rules in whole rounds: what they do with every codec and mixing rule, what they cost, and what is told."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics

import pytest
import torch

from gossip.adapter import AdapterSpec, AdapterState
from gossip.events import RoundReport
from gossip.methods.contribution import Contribution, Objection
from gossip.methods.method_set import MethodNames
from gossip.methods.reach import Distances, vector_distance
from gossip.methods.stage import RoundContext
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic, positions
from gossip.round_end import MEASUREMENTS_MAX, SUSPECTS_MAX, TRIES_MAX
from gossip.sightings import NEIGHBORS_MAX, SAMPLE, Sightings
from gossip.simulation import Simulation

NETWORK = Quadratic(
    peers=10, topology="random-regular:4", rounds=25, dimension=40, heterogeneity=0.5, robust="auto"
)
LIARS = ("p0002", "p0007")


def lying(network: Quadratic, factor: float = -4.0) -> tuple[Simulation, list[RoundReport]]:
    """Return a network in which two publish the opposite of what they have learned, after its run; all reports."""
    reports: list[RoundReport] = []

    def note(at: float, peer: str, report: RoundReport) -> None:
        if peer not in LIARS:
            reports.append(report)

    simulation = network.simulation(on_report=note)
    for liar in LIARS:
        pipelines = simulation.node(liar)._pipelines
        publish = pipelines.publish

        def publish_lie(context: RoundContext, publish: object = publish) -> PublishedAdapter:
            trained = AdapterState(context.trained.spec, factor * context.trained.flat)
            return publish(dataclasses.replace(context, trained=trained))  # type: ignore[operator,no-any-return]

        pipelines.publish = publish_lie  # type: ignore[method-assign]
    simulation.run()
    return simulation, reports


def error(network: Quadratic, simulation: Simulation) -> float:
    """Return the largest distance of an honest peer from the mean of the honest ones' optima."""
    honest = [name for name in network.names if name not in LIARS]
    optima = dict(zip(network.names, network.optima(), strict=True))
    mean = torch.stack([optima[name] for name in honest]).mean(dim=0)
    return float((positions(simulation, tuple(honest)) - mean).norm(dim=1).max())


@pytest.mark.parametrize(
    "methods",
    [
        MethodNames(),
        MethodNames(mixing="age"),
        MethodNames(mixing="staleness"),
        MethodNames(codec="int8"),
        MethodNames(codec="int4", feedback="error"),
        MethodNames(codec="topk:0.25", feedback="replica"),
        MethodNames(optimizer="qg"),
    ],
    ids=lambda methods: f"{methods.mixing}/{methods.codec}/{methods.optimizer}",
)
def test_the_default_rule_bears_two_liars_with_every_method_it_goes_with(methods: MethodNames) -> None:
    network = dataclasses.replace(NETWORK, methods=methods)
    robust, _ = lying(network)
    plain, _ = lying(dataclasses.replace(network, robust="none"))
    assert error(network, robust) < 0.6 * error(network, plain)
    assert error(network, robust) < 3.5


def test_with_overlap_too() -> None:
    network = dataclasses.replace(NETWORK, overlap=True)
    robust, _ = lying(network)
    plain, _ = lying(dataclasses.replace(network, robust="none"))
    assert error(network, robust) < 0.9 * error(network, plain)


def test_a_ring_is_mixed_as_it_came_by_default() -> None:
    ring = dataclasses.replace(NETWORK, topology="ring")
    by_default, as_it_came = ring.simulation(), dataclasses.replace(ring, robust="none").simulation()
    by_default.run()
    as_it_came.run()
    assert torch.equal(positions(by_default, ring.names), positions(as_it_came, ring.names))


# -- the final merge


@pytest.mark.parametrize("merge", ["clipped", "trimmed", "median"])
@pytest.mark.parametrize(("peers", "apart"), [(10, 1e-6), (20, 1e-6), (19, 0.15)])
def test_a_robust_merge_ends_in_one_adapter_or_near_it_where_groups_are_uneven(
    merge: str, peers: int, apart: float
) -> None:
    network = Quadratic(peers=peers, rounds=2, dimension=40, methods=MethodNames(merge=merge))
    before: dict[str, torch.Tensor] = {}

    def note(at: float, peer: str, report: RoundReport) -> None:
        if not report.merging:
            before[peer] = report.state.flat

    simulation = network.simulation(on_report=note)
    simulation.run()
    start, end = torch.stack([before[name] for name in network.names]), positions(simulation, network.names)
    spread = (start - start.mean(dim=0)).norm(dim=1).mean()
    assert float((end - end.mean(dim=0)).norm(dim=1).mean()) <= apart * float(spread)


def test_every_peer_of_a_small_group_ends_with_the_same_bytes() -> None:
    network = Quadratic(peers=9, rounds=2, dimension=40, methods=MethodNames(merge="clipped", codec="int8"))
    simulation = network.simulation()
    simulation.run()
    assert len({simulation.node(name).state.flat.numpy().tobytes() for name in network.names}) == 1


def test_two_liars_of_ten_do_not_undo_in_the_merge_what_rounds_have_saved() -> None:
    plain = dataclasses.replace(NETWORK, methods=MethodNames(merge="product"))
    clipped = dataclasses.replace(NETWORK, methods=MethodNames(merge="clipped"))
    assert error(clipped, lying(clipped)[0]) < 0.5 * error(plain, lying(plain)[0])


# -- what a check costs


def test_what_is_trimmed_and_clipped_in_every_round_is_no_reason_to_measure() -> None:
    reports: list[RoundReport] = []
    network = dataclasses.replace(NETWORK, check_every=10)
    simulation = network.simulation(on_report=lambda at, peer, report: reports.append(report))
    simulation.run()
    routine = {reason for report in reports for _, reason in report.objections}
    assert routine == {"trimmed", "clipped to row"}
    in_turn = [report for report in reports if report.round % 10 == 0]
    assert {report.measurements for report in in_turn if report.round} == {1}
    others = [report.measurements for report in reports if report.round % 10]
    assert sum(others) <= 0.05 * len(others)


def test_whatever_others_send_a_round_measures_so_often_and_no_more() -> None:
    assert MEASUREMENTS_MAX == 3 + SUSPECTS_MAX + TRIES_MAX == 22
    network = dataclasses.replace(
        NETWORK, peers=24, topology="complete", rounds=6, robust="none", check_every=1, check_slack=1e-6
    )
    _, reports = lying(network, -1e3)
    spent = [report.measurements for report in reports]
    assert max(spent) > SUSPECTS_MAX
    assert max(spent) <= MEASUREMENTS_MAX


# -- what is seen of neighbors


def test_reports_tell_liars_from_others() -> None:
    _, reports = lying(NETWORK, -6.0)
    last = [one for report in reports if report.round == NETWORK.rounds - 1 for one in report.neighbors]
    lies = [one for one in last if one.peer in LIARS]
    honest = [one for one in last if one.peer not in LIARS]
    assert lies
    assert min(one.ratio for one in lies) > max(one.ratio for one in honest)
    assert max(one.cosine for one in lies) < 0 < min(one.cosine for one in honest)
    # Of two liars in a row of four one is left out.
    assert statistics.mean(one.trimmed / one.rounds for one in lies) > 0.5
    assert statistics.mean(one.trimmed / one.rounds for one in honest) < 0.25
    assert {one.rounds for one in last} == {NETWORK.rounds}
    assert all(math.isfinite(one.drift) for one in last)


SPEC = AdapterSpec((("w", (SAMPLE * 50,)),))


def came(sender: str, flat: torch.Tensor) -> Contribution:
    return Contribution(sender, AdapterState(SPEC, flat), 0.2, 1, 0)


def test_direction_and_drift_are_estimated_to_a_few_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    initial, learned, noise, step = (torch.randn(SPEC.size, generator=generator) for _ in range(4))
    sightings = Sightings(AdapterState(SPEC, initial))
    own, other = AdapterState(SPEC, initial + learned), came("a", initial + learned + noise)
    distances = {"a": vector_distance(other.state, own)}
    (first,) = sightings.note(own, [other], distances, [])
    assert first.cosine == pytest.approx(math.sqrt(0.5), abs=0.05)
    assert math.isnan(first.drift)
    assert (first.distance, first.ratio) == (distances["a"], 1.0)
    later = came("a", other.state.flat + step)
    (second,) = sightings.note(own, [later], distances, [Objection("a", "trimmed", False, True)])
    assert second.drift == pytest.approx(float(step.norm()), rel=0.05)
    assert (second.rounds, second.trimmed, second.objections) == (2, 1, 0)
    (third,) = sightings.note(own, [later], distances, [Objection("a", "far", is_fault=False)])
    assert (third.drift, third.rounds, third.trimmed, third.objections) == (0.0, 3, 1, 1)


def test_what_is_not_finite_is_seen_without_a_number_and_harms_no_later_one() -> None:
    own = AdapterState(SPEC, torch.ones(SPEC.size))
    sightings = Sightings(AdapterState(SPEC, torch.zeros(SPEC.size)))
    bad, good = came("a", torch.full((SPEC.size,), math.inf)), came("a", torch.ones(SPEC.size))
    (report,) = sightings.note(own, [bad], {"a": math.inf}, [Objection("a", "non-finite", is_fault=True)])
    assert math.isnan(report.cosine)
    assert math.isnan(report.ratio)
    assert report.objections == 1
    (report,) = sightings.note(own, [good], {"a": 0.0}, [])
    assert report.cosine == pytest.approx(1.0)


def test_no_more_neighbors_are_kept_than_the_limit_says() -> None:
    spec = AdapterSpec((("w", (4,)),))
    state = AdapterState(spec, torch.ones(4))
    sightings = Sightings(state)
    for place in range(NEIGHBORS_MAX + 5):
        one = Contribution(f"p{place}", state, 0.5, 1, 0)
        (report,) = sightings.note(state, [one], {one.sender: 0.0}, [])
        assert report.rounds == 1
    assert len(sightings._seen) == NEIGHBORS_MAX
    (again,) = sightings.note(state, [Contribution("p0", state, 0.5, 1, 0)], {"p0": 0.0}, [])
    assert again.rounds == 1


def test_a_distance_is_measured_once_a_round() -> None:
    asked = []

    def measure(one: AdapterState, other: AdapterState) -> float:
        asked.append((one, other))
        return vector_distance(one, other)

    distances, rng = Distances(measure), random.Random(0)
    states = [AdapterState(AdapterSpec((("w", (1,)),)), torch.tensor([rng.random()])) for _ in range(3)]
    pairs = [(one, other) for one in states for other in states]
    assert [distances(*pair) for pair in pairs] == [vector_distance(*pair) for pair in pairs * 1]
    assert [distances(*pair) for pair in pairs] == [vector_distance(*pair) for pair in pairs]
    assert len(asked) == len(pairs)
    distances.forget()
    distances(*pairs[0])
    assert len(asked) == len(pairs) + 1
