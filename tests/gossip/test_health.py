"""What a member can do to the adapters of others, and how a peer comes back to one that is in order.

All with the real node, wire and codec bytes on a simulated network, where a peer's own held-out loss is |x - b|^2 / 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch

from gossip.adapter import AdapterState
from gossip.errors import Diverged
from gossip.events import RoundReport, Train
from gossip.methods.method_set import MethodNames
from gossip.methods.stage import RoundContext
from gossip.node import GossipNode
from gossip.published import PublishedAdapter
from gossip.quadratic import Quadratic
from gossip.simulation import LocalSteps, Simulation

Lie = Callable[[RoundContext], torch.Tensor]
CULPRIT = "p0001"
NETWORK = Quadratic(peers=5, topology="complete", rounds=40, step_cap=5.0, check_every=10, heterogeneity=0.5)


def nine_times_its_norm(context: RoundContext) -> torch.Tensor:
    return 9.9 * (context.trained.flat if context.round else torch.ones_like(context.trained.flat))


def flipped(context: RoundContext) -> torch.Tensor:
    return -9.0 * context.trained.flat


def slowly(context: RoundContext) -> torch.Tensor:
    return torch.full_like(context.trained.flat, 1.1**context.round)


def honest_until_the_merge(context: RoundContext) -> torch.Tensor:
    return (
        context.trained.flat
        if context.round < NETWORK.rounds
        else 30.0 * torch.ones_like(context.trained.flat)
    )


LIES = (nine_times_its_norm, flipped, slowly)


def attacked(network: Quadratic, lie: Lie) -> Simulation:
    """Return the network after a run in which one member publishes a lie, with the run's own codec."""
    simulation = network.simulation()
    lie_from(simulation, CULPRIT, lie)
    simulation.run()
    return simulation


def lie_from(simulation: Simulation, culprit: str, lie: Lie) -> None:
    pipelines = simulation.node(culprit)._pipelines
    publish = pipelines.publish

    def publish_lie(context: RoundContext) -> PublishedAdapter:
        trained = AdapterState(context.trained.spec, lie(context))
        return publish(dataclasses.replace(context, trained=trained))

    pipelines.publish = publish_lie  # type: ignore[method-assign]


def honest(network: Quadratic) -> list[str]:
    return [name for name in network.names if name != CULPRIT]


def worst_loss(network: Quadratic, simulation: Simulation) -> float:
    """Return the largest loss of an honest peer, on the sum of all honest peers' optima."""
    others = honest(network)
    optima = dict(zip(network.names, network.optima(), strict=True))
    mean = sum(optima[name] for name in others) / len(others)
    return max(float((simulation.node(name).state.flat - mean).square().sum()) / 2 for name in others)


def accused(simulation: Simulation) -> dict[str, int]:
    """Return how often each peer was left out."""
    counts: dict[str, int] = {}
    for _, distrust in simulation.distrusts:
        counts[distrust.peer] = counts.get(distrust.peer, 0) + 1
    return counts


METHODS = {
    "plain": NETWORK,
    "merge": dataclasses.replace(NETWORK, methods=MethodNames(merge="average")),
    "overlap": dataclasses.replace(NETWORK, overlap=True, methods=MethodNames(merge="average")),
    "asynchronous": dataclasses.replace(NETWORK, collect_s=0.0),
    "epidemic": dataclasses.replace(NETWORK, peers=8, topology="epidemic:3"),
    "int8": dataclasses.replace(NETWORK, dimension=40, methods=MethodNames(codec="int8")),
    "replicas": dataclasses.replace(
        NETWORK, dimension=64, methods=MethodNames(codec="topk:0.25", feedback="replica")
    ),
    "k-gt": dataclasses.replace(NETWORK, methods=MethodNames(optimizer="k-gt")),
    "fedexp": dataclasses.replace(NETWORK, topology="complete", methods=MethodNames(optimizer="fedexp")),
    "fedadam": dataclasses.replace(NETWORK, methods=MethodNames(optimizer="fedadam:0.05")),
    "push-sum": dataclasses.replace(NETWORK, methods=MethodNames(mixing="push-sum")),
}


@pytest.mark.parametrize("name", METHODS)
def test_honest_peers_are_neither_clipped_nor_accused(name: str) -> None:
    network = METHODS[name]
    reports: list[RoundReport] = []
    simulation = network.simulation(lambda now, peer, report: reports.append(report))
    simulation.run()
    assert simulation.penalties == []
    assert simulation.distrusts == []
    read = sum(len(report.mixed) for report in reports)
    far = sum(reason == "far" for report in reports for _, reason in report.objections)
    assert read > 0.9 * network.peers * network.rounds
    assert far <= 0.003 * read
    checked = [report for report in reports if report.is_healthy]
    assert 0 < len(checked) < 0.7 * len(reports)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "push-sum"])
def test_a_member_that_sends_nine_times_its_norm_is_named_and_harms_nobody(name: str) -> None:
    network = METHODS[name]
    simulation = attacked(network, nine_times_its_norm)
    assert worst_loss(network, simulation) < lost_without(network) + 0.6
    named = accused(simulation)
    assert named[CULPRIT] >= 3
    assert named[CULPRIT] > sum(count for peer, count in named.items() if peer != CULPRIT)
    assert {(culprit, reason) for _, culprit, reason in simulation.penalties} >= {(CULPRIT, "unhealthy")}


@functools.cache
def lost_without(network: Quadratic) -> float:
    simulation = network.simulation()
    simulation.run()
    return worst_loss(network, simulation)


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_member_sends_push_sum_does_not_run_away(lie: Lie) -> None:
    """Mass given to a liar is lost, and the others end near their own optima; they do not end far from everything."""
    network = METHODS["push-sum"]
    assert worst_loss(network, attacked(network, lie)) < 1.5


@pytest.mark.parametrize(
    "name", ["plain", "merge", "overlap", "asynchronous", "epidemic", "int8", "replicas", "k-gt"]
)
def test_a_scaled_sign_flip_does_little(name: str) -> None:
    network = METHODS[name]
    assert worst_loss(network, attacked(network, flipped)) < lost_without(network) + 0.6


@pytest.mark.parametrize("name", ["plain", "merge", "overlap", "asynchronous", "epidemic", "int8", "k-gt"])
def test_growth_by_a_tenth_a_round_is_found_before_it_does_great_harm(name: str) -> None:
    network = METHODS[name]
    simulation = attacked(network, slowly)
    assert accused(simulation)[CULPRIT] >= 3
    assert worst_loss(network, simulation) < 3.0


@pytest.mark.parametrize(("lie", "harm"), [(nine_times_its_norm, 1e20), (slowly, 500.0)])
def test_without_bound_and_check_these_lies_do_their_harm(lie: Lie, harm: float) -> None:
    undefended = dataclasses.replace(NETWORK, step_cap=math.inf, check_every=0)
    assert worst_loss(NETWORK, attacked(undefended, lie)) > harm


def test_without_a_check_the_bound_alone_keeps_growth_from_being_geometric() -> None:
    norms = []
    for rounds in (20, 40):
        network = dataclasses.replace(NETWORK, rounds=rounds, check_every=0)
        simulation = attacked(network, nine_times_its_norm)
        norms.append(max(float(simulation.node(name).state.flat.norm()) for name in honest(network)))
    assert max(norms) < 10.0


def test_two_liars_of_five_are_outvoted() -> None:
    """What they do together is too much, though each alone may stay below the limit."""
    simulation = NETWORK.simulation()
    for culprit in (CULPRIT, "p0003"):
        lie_from(
            simulation,
            culprit,
            lambda context: torch.full_like(context.trained.flat, 4.0 + context.round / 2),
        )
    simulation.run()
    norms = [float(simulation.node(name).state.flat.norm()) for name in ("p0000", "p0002", "p0004")]
    assert max(norms) < 6.0
    assert {CULPRIT, "p0003"} <= accused(simulation).keys()


@pytest.mark.parametrize("merge", ["average", "product"])
def test_an_attack_through_the_final_merge_does_not_undo_what_was_learned(merge: str) -> None:
    network = dataclasses.replace(NETWORK, methods=MethodNames(merge=merge))
    simulation = attacked(network, honest_until_the_merge)
    assert accused(simulation) == {CULPRIT: 4}
    assert worst_loss(network, simulation) < lost_without(network) + 0.05
    after = [simulation.node(name).state.flat for name in honest(network)]
    undefended = attacked(
        dataclasses.replace(network, step_cap=math.inf, check_every=0), honest_until_the_merge
    )
    assert worst_loss(network, undefended) > 100.0
    assert all(torch.isfinite(flat).all() for flat in after)


@pytest.mark.parametrize("merge", ["clipped", "trimmed", "median"])
def test_a_robust_merge_bears_the_same_attack_without_bound_and_check(merge: str) -> None:
    network = dataclasses.replace(NETWORK, methods=MethodNames(merge=merge), step_cap=math.inf, check_every=0)
    simulation = attacked(network, honest_until_the_merge)
    assert worst_loss(network, simulation) < 1.5


def test_who_is_left_out_is_neither_asked_nor_waited_for_and_comes_back_later() -> None:
    reports: list[RoundReport] = []
    simulation = NETWORK.simulation(lambda now, peer, report: peer == "p0000" and reports.append(report))
    lie_from(
        simulation, CULPRIT, lambda context: context.trained.flat + (50.0 if context.round == 3 else 0.0)
    )
    simulation.run()
    (distrust,) = [distrust for victim, distrust in simulation.distrusts if victim == "p0000"]
    assert (distrust.peer, distrust.round, distrust.rounds) == (CULPRIT, 3, 4)
    assert distrust.loss > distrust.limit
    assert (CULPRIT, "unhealthy") in reports[3].objections
    left_out = [report.round for report in reports if (CULPRIT, "left out") in report.failed]
    assert left_out == [4, 5, 6, 7]
    for report in reports:
        assert (CULPRIT in {peer for peer, _, _ in report.mixed}) == (report.round not in {3, *left_out})


# -- our own training


def breaking(simulation: Simulation, peer: str, rounds: range) -> None:
    """Let the local steps of a peer come to nothing in some rounds."""
    train = simulation.train

    def broken(name: str, action: Train) -> LocalSteps:
        steps = train(name, action)
        if name != peer or action.round not in rounds:
            return steps
        return steps._replace(state=AdapterState(steps.state.spec, steps.state.flat * math.nan))

    simulation.train = broken


@pytest.mark.parametrize("overlap", [False, True])
def test_a_peer_whose_training_diverges_goes_back_and_on(overlap: bool) -> None:
    network = dataclasses.replace(NETWORK, overlap=overlap)
    reports: list[RoundReport] = []
    simulation = network.simulation(lambda now, peer, report: peer == "p0002" and reports.append(report))
    breaking(simulation, "p0002", range(7, 9))
    simulation.run()
    assert [report.round for report in reports if report.went_back] == [8]
    assert all(torch.isfinite(report.state.flat).all() for report in reports)
    assert simulation.distrusts == []
    assert simulation.node("p0002").round == network.rounds
    assert worst_loss(network, simulation) < lost_without(network) + 0.01


def test_training_that_never_works_again_ends_the_peer_after_three_returns() -> None:
    simulation = NETWORK.simulation()
    breaking(simulation, "p0002", range(7, 100))
    with pytest.raises(Diverged, match=r"after each of 3 returns .* lower the learning rate"):
        simulation.run()


def test_a_restart_from_a_poisoned_adapter_goes_back_to_the_one_in_order() -> None:
    simulation = NETWORK.simulation()
    simulation.run(until_s=8.0)
    node = simulation.node("p0002")
    healthy, snapshot = node._health.healthy, node.snapshot()
    assert len(snapshot.losses) == 2
    simulation.kill("p0002")
    again = NETWORK.make_node("p0002")
    poisoned = AdapterState(healthy.spec, healthy.flat + 1e4)
    revived = GossipNode(
        "p0002", poisoned, again.settings, again._rng, ("p0002",), snapshot, again.state, healthy=healthy
    )
    simulation.revive("p0002", revived)
    simulation.run()
    assert simulation.node("p0002").round == NETWORK.rounds
    assert worst_loss(NETWORK, simulation) < lost_without(NETWORK) + 0.2
    assert max(float(simulation.node(name).state.flat.norm()) for name in NETWORK.names) < 3.0


def test_overfitting_of_one_s_own_is_borne() -> None:
    """Our held-out loss rises by what our own rows teach us: nobody is accused, and the peer does not end."""
    network = dataclasses.replace(NETWORK, peers=3, rounds=60)
    simulation = network.simulation()
    grown: dict[str, int] = {}

    def evaluate(peer: str, state: AdapterState) -> float:
        grown[peer] = grown.get(peer, 0) + 1
        return 1.0 + 0.2 * grown[peer]

    simulation.evaluate = evaluate
    simulation.run()
    assert all(simulation.node(name).round == 60 for name in network.names)


@pytest.mark.parametrize(
    "methods",
    [
        MethodNames(),
        MethodNames(optimizer="diloco"),
        MethodNames(mixing="push-sum"),
        MethodNames(codec="sign", feedback="replica"),
    ],
    ids=["average", "diloco", "push-sum", "replica"],
)
def test_a_mix_that_is_tried_first_is_the_one_that_is_kept(methods: MethodNames) -> None:
    """With nothing amiss, checks change no bit, also of methods that remember something."""

    def ends(check_every: int) -> list[torch.Tensor]:
        network = dataclasses.replace(
            NETWORK, methods=methods, rounds=12, step_cap=math.inf, check_every=check_every, check_slack=1e6
        )
        simulation = network.simulation()
        simulation.run()
        return [simulation.node(name).state.flat for name in network.names]

    assert all(torch.equal(checked, plain) for checked, plain in zip(ends(5), ends(0), strict=True))
