"""Topologies at size: sparse consensus beside a plain scipy loop, spectra, cost per edge, and the real protocol.

Two sides of a ratio are measured in turns in the same process.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gossip.quadratic import Quadratic
from gossip.simulated_network import LinkModel
from peer.child_python import child_environment, python_module
from scripts.benchmarks.rows import Row, at_most, row, timed
from topology.consensus import run_consensus, static
from topology.finite_time import base_schedule
from topology.links import parse_topology
from topology.spectral import spectral_gap

Values = NDArray[np.float64]

GOLDEN = {
    1: {2: 1, 3: 3, 5: 5, 7: 5, 9: 7, 12: 5, 25: 9, 31: 9, 48: 7, 50: 10, 64: 6, 96: 8, 100: 11},
    2: {3: 1, 5: 3, 7: 4, 18: 3, 25: 6, 32: 5, 50: 7, 100: 8},
    4: {5: 1, 6: 2, 7: 3, 10: 2, 25: 2, 32: 3, 50: 3, 64: 3, 100: 3},
}
"""k -> n -> rounds of Base-(k+1) by its authors' generator; longer would be a bug of ours (algorithms.md 1.2)."""
DEGREES = (4, 32)
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        nodes: of the graphs of consensus and spectra.
        turns: how often the two sides of the comparison take turns.
        slice: rounds of one turn: both sides meet the same weather on the machine.
        values: of each node.
        peers, rounds: of the real protocol.
        length_max: largest number of peers whose finite-time schedules are checked.
    """

    nodes: int = 10_000
    turns: int = 4
    slice: int = 250
    values: int = 64
    peers: int = 256
    rounds: int = 100
    length_max: int = 64


FULL, QUICK = Size(), Size(nodes=100, turns=2, slice=5, peers=8, rounds=3, length_max=8)


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure everything, about 15 seconds on two cores."""
    size = QUICK if quick else FULL
    yield from _consensus(quick)
    yield from _spectra(size)
    yield _cost_per_edge(size)
    yield _protocol(size)
    yield from _lengths(size)


def _consensus(quick: bool) -> list[Row]:
    """Measure in a process with one BLAS thread: scipy's products use one, and a busy core makes two wait."""
    command = python_module("scripts.benchmarks.topology", *(["quick"] if quick else []))
    printed = subprocess.check_output(command, env=child_environment(**ONE_THREAD), text=True)
    return [Row(**row) for row in json.loads(printed)]


def consensus_here(size: Size) -> Iterator[Row]:
    """Measure consensus beside the bare products, in this process."""
    matrix = parse_topology("torus", seed=0).matrix(
        size.nodes
    )  # slow enough not to be done before the last round
    ours_s, plain_s = [], []
    values = plain = np.random.default_rng(0).standard_normal((size.nodes, size.values))
    for _ in range(size.turns):
        elapsed_s, run = timed(partial(run_consensus, static(matrix), values, size.slice))
        ours_s.append(elapsed_s)
        values = run.values
        assert len(run.distance) == size.slice + 1
        elapsed_s, plain = timed(partial(_plain_loop, matrix, plain, size.slice))
        plain_s.append(elapsed_s)
    ratio = statistics.median(ours / bare for ours, bare in zip(ours_s, plain_s, strict=True))
    yield at_most("topology: consensus, 10,000 x 1,000 rounds x 64", sum(ours_s), "s", 30.0)
    yield row("topology: the same as a plain scipy.sparse loop", sum(plain_s), "s")
    yield at_most("topology: consensus / plain loop", ratio, "x", 1.2)


def _plain_loop(matrix: csr_array, values: Values, rounds: int) -> Values:
    """Multiply and look at nothing: ours also takes distance and drift after each round."""
    for _ in range(rounds):
        values = matrix @ values
    return values


def _spectra(size: Size) -> Iterator[Row]:
    for name in ("random-regular:4", "ring", "torus"):
        matrix = parse_topology(name, seed=0).matrix(size.nodes)
        elapsed_s, _ = timed(partial(spectral_gap, matrix))
        yield at_most(f"topology: spectral gap, {name}, 10,000 nodes", elapsed_s, "s", 10.0)


def _cost_per_edge(size: Size) -> Row:
    """Seconds per round and edge of a graph with eight times the edges, against the sparse one: 1 = linear."""
    start = np.random.default_rng(0).standard_normal((size.nodes, size.values))
    sparse, dense = DEGREES
    cost = {}
    for degree in DEGREES:
        matrix = parse_topology(f"random-regular:{degree}", seed=0).matrix(size.nodes)
        times = [timed(partial(run_consensus, static(matrix), start, 20))[0] for _ in range(3)]
        cost[degree] = statistics.median(times) / matrix.nnz
    ratio = cost[dense] / cost[sparse]
    return at_most(f"topology: seconds per edge, degree {dense} / degree {sparse}", ratio, "x", 1.2)


def _protocol(size: Size) -> Row:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = Quadratic(
            peers=size.peers,
            rounds=size.rounds,
            dimension=1000,
            topology="epidemic:3",
            links=LinkModel(loss=0.05),
        )
        elapsed_s, _ = timed(network.simulation().run)
    finally:
        torch.set_num_threads(threads)
    return at_most("topology: real node and wire, 256 peers x 100 rounds", elapsed_s, "s", 60.0)


def _lengths(size: Size) -> Iterator[Row]:
    longer = max(
        len(base_schedule(n, k)) - rounds for k, table in GOLDEN.items() for n, rounds in table.items()
    )
    lengths = range(2, size.length_max + 1)
    off = max(_distance_from_average(n, k) for k in (1, 2, 3, 4) for n in lengths)
    yield at_most("topology: Base-(k+1), most rounds beyond its authors'", longer, "", 0.0)
    yield at_most("topology: Base-(k+1), n <= 64, k <= 4: |product - J|", off, "", 1e-9)


def _distance_from_average(n: int, k: int) -> float:
    product = np.eye(n)
    for weighted in base_schedule(n, k):
        product = weighted.matrix() @ product
    return float(np.abs(product - 1.0 / n).max())


if __name__ == "__main__":
    here = consensus_here(QUICK if sys.argv[1:] == ["quick"] else FULL)
    print(json.dumps([dataclasses.asdict(row) for row in here]))
