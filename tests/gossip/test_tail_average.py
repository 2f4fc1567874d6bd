"""The mean over the last rounds: what it is of, that nothing before changes, and what befalls a peer meanwhile."""

import dataclasses
import math
from collections import defaultdict

import pytest
import torch

from gossip.adapter import AdapterState
from gossip.events import RoundReport, Train
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.quadratic import Quadratic, positions
from gossip.settings import NodeSnapshot
from gossip.simulation import LocalSteps, Simulation
from gossip.tail_average import TailAverage

ROUNDS = 9
NETWORK = Quadratic(peers=5, dimension=16, rounds=ROUNDS)
Course = dict[str, list[torch.Tensor]]


def courses(network: Quadratic) -> Course:
    """Return every peer's adapters at the ends of its rounds, in their order."""
    found: Course = defaultdict(list)
    network.simulation(lambda now, peer, report: found[peer].append(report.state.flat)).run()
    return found


def tail(course: list[torch.Tensor], last: int) -> torch.Tensor:
    return torch.stack(course[ROUNDS - last : ROUNDS]).double().mean(dim=0).float()


@pytest.mark.parametrize(
    "network", [NETWORK, dataclasses.replace(NETWORK, overlap=True)], ids=["plain", "overlap"]
)
@pytest.mark.parametrize("last", [2, 4, ROUNDS])
def test_the_last_round_ends_with_the_mean_and_those_before_as_ever(network: Quadratic, last: int) -> None:
    plain, averaged = courses(network), courses(dataclasses.replace(network, average_last=last))
    for peer in network.names:
        assert all(map(torch.equal, plain[peer][:-1], averaged[peer][:-1]))
        torch.testing.assert_close(averaged[peer][-1], tail(plain[peer], last), rtol=1e-6, atol=1e-7)
        assert not torch.equal(averaged[peer][-1], plain[peer][-1])


def test_the_mean_of_one_is_the_plain_run_bit_for_bit() -> None:
    plain, single = courses(NETWORK), courses(dataclasses.replace(NETWORK, average_last=1))
    for peer in NETWORK.names:
        assert len(single[peer]) == ROUNDS
        assert all(map(torch.equal, plain[peer], single[peer]))


def test_the_mean_goes_into_the_final_merge() -> None:
    merging = dataclasses.replace(NETWORK, methods=MethodNames(merge="average"))
    plain, averaged = courses(merging), courses(dataclasses.replace(merging, average_last=3))
    assert all(len(course) == ROUNDS + 1 for course in averaged.values())
    expected = torch.stack([tail(course, 3) for course in plain.values()]).mean(dim=0)
    for course in averaged.values():
        torch.testing.assert_close(course[-1], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(course[-1], averaged["p0000"][-1])


def test_it_undoes_most_of_the_noise_of_steps_at_a_constant_rate() -> None:
    """Noise of one round after the other is independent here but for the share a = (1 - eta)^H that stays of it."""

    def error(last: int) -> float:
        network = Quadratic(peers=4, dimension=256, topology="complete", rounds=60, average_last=last)
        simulation = network.simulation()
        train, noise = simulation.train, torch.Generator().manual_seed(0)

        def noisy(name: str, action: Train) -> LocalSteps:
            steps = train(name, action)
            flat = steps.state.flat + torch.randn(256, generator=noise)
            return steps._replace(state=dataclasses.replace(steps.state, flat=flat))

        simulation.train = noisy
        simulation.run()
        return float((positions(simulation, network.names)[0] - network.optima().mean(dim=0)).square().mean())

    # The mean of K values of variance v and correlation a^|lag| has about v (1 + a) / ((1 - a) K).
    a, last = NETWORK.shrink, 30
    assert error(last) < 1.5 * error(0) * (1 + a) / ((1 - a) * last)


def test_a_restart_in_the_middle_of_the_last_rounds_changes_nothing() -> None:
    network = dataclasses.replace(NETWORK, peers=1, average_last=5)
    (whole,) = courses(network).values()
    kept = {}

    def keep(now: float, peer: str, report: RoundReport) -> None:
        kept[report.round] = report.state, simulation.node(peer).snapshot()

    simulation = network.simulation(keep)
    simulation.run()
    for round in (ROUNDS - 4, ROUNDS - 2):
        state, snapshot = kept[round]
        assert {name for name in snapshot.tensors if "tail-average" in name}
        assert _ended_after(network, state, snapshot) == whole[-1].tolist()
    assert kept[ROUNDS - 1][1].tensors == {}  # all is said


def _ended_after(network: Quadratic, state: AdapterState, snapshot: NodeSnapshot) -> list[float]:
    """Return the last adapter of a lone peer that goes on from a checkpoint."""
    simulation = network.simulation()
    fresh = network.make_node("p0000")
    node = GossipNode("p0000", state, fresh.settings, fresh._rng, ("p0000",), snapshot, fresh.state)
    simulation = Simulation({"p0000": node}, simulation.train, network.links, seed=0)
    simulation.run()
    return simulation.node("p0000").state.flat.tolist()


def test_what_was_summed_up_for_another_run_is_left_aside() -> None:
    state = NETWORK.make_node("p0000").state
    ours = TailAverage(9, 3, {})
    ours.note(6, state)
    assert TailAverage(9, 3, ours.tensors()).tensors().keys() == ours.tensors().keys()
    for rounds, last in ((10, 3), (9, 4), (9, 0)):
        assert TailAverage(rounds, last, ours.tensors()).tensors() == {}


def test_rounds_that_led_nowhere_are_left_out_of_the_mean() -> None:
    plain, averaged = (_with_a_return_in_round_16(last) for last in (0, 6))
    assert [report.round for report in plain if report.went_back] == [16]
    expected = torch.stack([report.state.flat for report in plain[17:20]]).double().mean(dim=0).float()
    torch.testing.assert_close(averaged[19].state.flat, expected, rtol=1e-6, atol=1e-7)


def _with_a_return_in_round_16(last: int) -> list[RoundReport]:
    """Return what a peer reports of 20 rounds, two of which have come to nothing."""
    settings = {"topology": "complete", "heterogeneity": 0.5, "check_every": 10, "rounds": 20}
    network = dataclasses.replace(NETWORK, average_last=last, **settings)
    reports: list[RoundReport] = []
    simulation = network.simulation(lambda now, peer, report: peer == "p0002" and reports.append(report))
    train = simulation.train

    def broken(name: str, action: Train) -> LocalSteps:
        steps = train(name, action)
        if name != "p0002" or action.round not in (15, 16):
            return steps
        return steps._replace(state=dataclasses.replace(steps.state, flat=steps.state.flat * math.nan))

    simulation.train = broken
    simulation.run()
    return reports
