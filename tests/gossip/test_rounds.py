"""Whole rounds with every kind of method: the real node, wire and codec bytes, against what theory says."""

import dataclasses

import numpy as np
import pytest
import torch

from gossip.methods.method_set import MethodNames
from gossip.quadratic import Quadratic, positions
from gossip.simulated_network import LinkModel
from gossip.simulation import Simulation
from topology.links import parse_topology

EPS = 2e-6  # float32 on the wire


def run(network: Quadratic) -> Simulation:
    simulation = network.simulation()
    simulation.run()
    return simulation


def reached(network: Quadratic) -> np.ndarray:
    return positions(run(network), network.names).double().numpy()


def optimum(network: Quadratic) -> np.ndarray:
    return network.optima().double().numpy().mean(axis=0)


@pytest.mark.parametrize(
    ("topology", "weights"), [("ring", "metropolis-hastings"), ("exponential", "metropolis-hastings")]
)
def test_overlap_ends_where_combine_then_adapt_does(topology: str, weights: str) -> None:
    network = Quadratic(peers=8, topology=topology, weights=weights, rounds=300, local_steps=1, overlap=True)
    matrix = parse_topology(topology, seed=0, weights=weights).matrix(network.names).toarray()
    # y = W y - eta (y - b): x* = eta ((1 + eta) I - W)^-1 b (algorithms.md section 1.4)
    eta = network.step_size
    fixed = eta * np.linalg.solve((1 + eta) * np.eye(8) - matrix, network.optima().double().numpy())
    assert np.abs(reached(network) - fixed).max() < EPS


@pytest.mark.parametrize("merge", ["product", "average"])
@pytest.mark.parametrize("codec", ["float32", "int8", "topk:0.25", "int4"])
def test_after_the_final_merge_all_peers_hold_the_same_bytes(merge: str, codec: str) -> None:
    plain = Quadratic(peers=6, rounds=12, local_steps=5, methods=MethodNames(codec=codec))
    merged = dataclasses.replace(plain, methods=MethodNames(codec=codec, merge=merge))
    before, after = positions(run(plain), plain.names), positions(run(merged), plain.names)
    assert (before.std(dim=0) > 1e-3).any()
    assert all(torch.equal(after[0], other) for other in after)
    assert float((after[0] - before.mean(dim=0)).abs().max()) < 0.01


def test_a_large_group_merges_in_a_few_rounds_of_few_reads() -> None:
    network = Quadratic(peers=20, rounds=3, methods=MethodNames(merge="average"))
    reports = []
    simulation = network.simulation(lambda now, peer, report: reports.append(report))
    simulation.run()
    after = positions(simulation, network.names)
    assert float((after - after.mean(dim=0)).abs().max()) < EPS
    assert max(len(report.mixed) for report in reports if report.merging) <= 4


def test_a_peer_that_is_late_for_the_merge_is_waited_for_also_in_an_asynchronous_run() -> None:
    network = Quadratic(peers=4, rounds=6, collect_s=0.0, methods=MethodNames(merge="average"))
    simulation = network.simulation()
    train = simulation.train

    def slow(name, action):
        steps = train(name, action)
        return steps._replace(seconds=3.0 if name == "p0002" else steps.seconds)

    simulation.train = slow
    simulation.run()
    after = positions(simulation, network.names)
    assert all(torch.equal(after[0], other) for other in after)


@pytest.mark.parametrize(
    ("optimizer", "weights"), [("k-gt", "metropolis-hastings"), ("k-gt", "lazy"), ("d2", "lazy")]
)
def test_corrected_local_steps_end_at_the_common_optimum(optimizer: str, weights: str) -> None:
    plain = Quadratic(peers=8, dimension=3, weights=weights, rounds=600, local_steps=4)
    corrected = dataclasses.replace(plain, methods=MethodNames(optimizer=optimizer))
    assert np.abs(reached(plain) - optimum(plain)).max() > 0.1
    assert np.abs(reached(corrected) - optimum(plain)).max() < 1e-3


@pytest.mark.parametrize("optimizer", ["fedexp", "fedadam:0.1"])
def test_steps_by_mixed_displacements_over_the_complete_graph_are_those_of_a_server(optimizer: str) -> None:
    methods = MethodNames(optimizer=optimizer)
    network = Quadratic(peers=8, topology="complete", rounds=6, heterogeneity=0.5, methods=methods)
    optima = network.optima().double().numpy()
    x, m, v, etas = np.zeros(8), np.zeros(8), np.full(8, 1e-6), [1.0]
    for _ in range(network.rounds):
        moved = (1 - network.shrink) * (optima - x)
        mean = moved.mean(axis=0)
        if optimizer == "fedexp":
            etas.append(min(4.0, max(1.0, (moved**2).sum() / (16 * ((mean**2).sum() + 1e-3)))))
            x = x + etas[-1] * mean
        else:
            m, v = 0.9 * m + 0.1 * mean, 0.99 * v + 0.01 * mean**2
            x = x + 0.1 * m / (np.sqrt(v) + 1e-3)
    assert (max(etas) > 1.5) == (optimizer == "fedexp")
    assert np.abs(reached(network) - x).max() < 1e-5


def test_push_sum_reaches_the_mean_over_one_way_links_although_messages_are_lost() -> None:
    network = Quadratic(
        peers=8,
        topology="exponential",
        dimension=4,
        rounds=120,  # with every second fetch lost, some neighbors are not always waited for
        links=LinkModel(loss=0.3),
        collect_s=3.0,
        methods=MethodNames(mixing="push-sum"),
        seed=3,
    )
    kept, drifted = (spread_start(n) for n in (network, dataclasses.replace(network, methods=MethodNames())))
    assert kept < 1e-4
    assert drifted > 0.02


def spread_start(network: Quadratic) -> float:
    """Return how far peers that begin at their optima end from the optima's mean by mixing alone."""
    simulation = run_from_optima(network)
    return float(np.abs(positions(simulation, network.names).double().numpy() - optimum(network)).max())


def test_symmetric_drop_waits_for_both_directions_and_then_mixes_as_w_says() -> None:
    network = Quadratic(peers=6, dimension=4, rounds=12)
    dropping = dataclasses.replace(network, methods=MethodNames(mixing="symmetric-drop"))
    assert np.array_equal(reached(network), reached(dropping))


def run_from_optima(network: Quadratic) -> Simulation:
    optima = dict(zip(network.names, network.optima(), strict=True))
    simulation = network.simulation()
    train = simulation.train

    def jump(name, action):
        flat = optima[name].clone() if action.round == 0 else action.state.flat.clone()
        return train(name, action)._replace(state=dataclasses.replace(action.state, flat=flat))

    simulation.train = jump
    simulation.run()
    return simulation


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "int4", "sign", "topk:0.25", "randomk:0.5"])
def test_lossy_codecs_keep_the_mean(codec: str) -> None:
    network = Quadratic(peers=8, dimension=64, rounds=20, methods=MethodNames(codec=codec))
    simulation = run_from_optima(network)
    mean = positions(simulation, network.names).double().numpy().mean(axis=0)
    assert np.abs(mean - optimum(network)).max() < 1e-5


def test_replicas_agree_where_an_error_memory_stalls() -> None:
    spreads = {}
    for feedback in ("replica", "error"):
        methods = MethodNames(codec="topk:0.1", feedback=feedback, gamma=0.3)
        network = Quadratic(peers=8, dimension=200, rounds=150, methods=methods)
        spreads[feedback] = float(positions(run_from_optima(network), network.names).std(dim=0).norm())
    assert spreads["replica"] < 0.02 * spreads["error"]


def test_a_reader_that_missed_a_replica_reads_the_whole_and_goes_on() -> None:
    methods = MethodNames(codec="topk:0.25", feedback="replica", gamma=0.4)
    network = Quadratic(
        peers=6, dimension=64, topology="epidemic:2", rounds=60, links=LinkModel(loss=0.2), methods=methods
    )
    simulation = run_from_optima(network)
    after = positions(simulation, network.names)
    assert simulation.penalties == []
    assert float(after.std(dim=0).max()) < 1e-3


def test_noloco_with_the_momentum_of_diloco_drives_pairs_apart() -> None:
    spreads = {}
    for optimizer in ("noloco:0.5:0.7", "noloco:0.9:0.7"):
        network = Quadratic(
            peers=16, topology="random-matching", rounds=60, methods=MethodNames(optimizer=optimizer)
        )
        spreads[optimizer] = float(positions(run_from_optima(network), network.names).std(dim=0).max())
    assert spreads["noloco:0.5:0.7"] < 1e-2
    assert spreads["noloco:0.9:0.7"] > 1.0


@pytest.mark.parametrize("optimizer", ["k-gt", "fedadam"])
def test_a_restored_node_goes_on_with_all_its_states(optimizer: str) -> None:
    methods = MethodNames(codec="int4", optimizer=optimizer, feedback="error")
    network = Quadratic(peers=4, dimension=32, rounds=6, methods=methods)
    whole = run(network).node("p0001").snapshot()
    assert {name.partition("/")[0] for name in whole.tensors} == {"optimizer", "feedback"}
    again = network.make_node("p0001")
    settings, members = again.settings, network.names
    restored = type(again)("p0001", again.state, settings, again._rng, members, whole, initial=again.state)
    assert all(
        torch.equal(whole.tensors[name], tensor) for name, tensor in restored.snapshot().tensors.items()
    )
