"""Topologies at size: sparse consensus beside a plain scipy loop, spectra, cost per edge, and the real protocol.

Two sides of a ratio are measured in turns in the same process. ``scripts/bench.py topology`` prints the figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from peer.child_python import child_environment, python_module
from topology.consensus import run_consensus, static
from topology.finite_time import base_schedule
from topology.links import parse_topology
from topology.spectral import spectral_gap

NODES, ROUNDS, VALUES = 10_000, 1_000, 64
SLICE = 250
"""Rounds of one turn of the comparison: both sides meet the same weather on the machine."""
GOLDEN = {
    1: {2: 1, 3: 3, 5: 5, 7: 5, 9: 7, 12: 5, 25: 9, 31: 9, 48: 7, 50: 10, 64: 6, 96: 8, 100: 11},
    2: {3: 1, 5: 3, 7: 4, 18: 3, 25: 6, 32: 5, 50: 7, 100: 8},
    4: {5: 1, 6: 2, 7: 3, 10: 2, 25: 2, 32: 3, 50: 3, 64: 3, 100: 3},
}
"""k -> n -> rounds of Base-(k+1) by its authors' generator; longer would be a bug of ours (algorithms.md 1.2)."""


def rows() -> list[dict[str, Any]]:
    """Measure everything, about 15 seconds on two cores."""
    return [*_consensus(), *_spectra(), *_cost(), *_protocol(), *_lengths()]


def _regular(degree: int) -> csr_array:
    return parse_topology(f"random-regular:{degree}", seed=0).matrix(NODES)


def _consensus() -> list[dict[str, Any]]:
    """Measure in a process with one BLAS thread: scipy's products use one, and a busy core makes two wait."""
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    made: list[dict[str, Any]] = json.loads(
        subprocess.check_output(
            python_module("scripts.benchmarks.topology"), env=child_environment(**one), text=True
        )
    )
    return made


def _consensus_here() -> list[dict[str, Any]]:
    matrix = parse_topology("torus", seed=0).matrix(NODES)  # slow enough not to be done before the last round
    start = np.random.default_rng(0).standard_normal((NODES, VALUES))
    ours, plain = [], []
    values, bare = start, start
    for _ in range(ROUNDS // SLICE):
        seconds, run = _timed(lambda values=values: run_consensus(static(matrix), values, SLICE))
        ours.append(seconds)
        values = run.values
        assert len(run.distance) == SLICE + 1
        seconds, bare = _timed(lambda bare=bare: _plain_loop(matrix, bare))
        plain.append(seconds)
    ratio = statistics.median(one / other for one, other in zip(ours, plain, strict=True))
    return [
        _row("topology: consensus, 10,000 x 1,000 rounds x 64", sum(ours), "s", 30.0),
        _row("topology: the same as a plain scipy.sparse loop", sum(plain), "s", None),
        _row("topology: consensus / plain loop", ratio, "x", 1.2),
    ]


def _plain_loop(matrix: csr_array, values: Any) -> Any:
    """Multiply and look at nothing: ours also takes distance and drift after each round."""
    for _ in range(SLICE):
        values = matrix @ values
    return values


def _spectra() -> list[dict[str, Any]]:
    made = []
    for name in ("random-regular:4", "ring", "torus"):
        matrix = parse_topology(name, seed=0).matrix(NODES)
        made.append(_row(f"topology: spectral gap, {name}, 10,000 nodes", _timed(lambda m=matrix: spectral_gap(m))[0],
                         "s", 10.0))  # fmt: skip
    return made


def _cost() -> list[dict[str, Any]]:
    """Seconds per round and edge of a graph with eight times the edges, against the sparse one: 1 = linear."""
    start = np.random.default_rng(0).standard_normal((NODES, VALUES))
    each = {}
    for degree in (4, 32):
        matrix = _regular(degree)
        times = [_timed(lambda m=matrix: run_consensus(static(m), start, 20))[0] for _ in range(3)]
        each[degree] = statistics.median(times) / matrix.nnz
    return [_row("topology: seconds per edge, degree 32 / degree 4", each[32] / each[4], "x", 1.2)]


def _protocol() -> list[dict[str, Any]]:
    import torch

    from gossip.quadratic import Quadratic
    from gossip.simulated_network import LinkModel

    torch.set_num_threads(1)
    network = Quadratic(
        peers=256, rounds=100, dimension=1000, topology="epidemic:3", links=LinkModel(loss=0.05)
    )
    seconds, _ = _timed(network.simulation().run)
    return [_row("topology: real node and wire, 256 peers x 100 rounds", seconds, "s", 60.0)]


def _lengths() -> list[dict[str, Any]]:
    longer = max(
        len(base_schedule(n, k)) - rounds for k, table in GOLDEN.items() for n, rounds in table.items()
    )
    off = max(_distance_from_average(n, k) for k in (1, 2, 3, 4) for n in range(2, 65))
    return [
        _row("topology: Base-(k+1), most rounds beyond its authors'", longer, "", 0.0),
        _row("topology: Base-(k+1), n <= 64, k <= 4: |product - J|", off, "", 1e-9),
    ]


def _distance_from_average(n: int, k: int) -> float:
    product = np.eye(n)
    for weighted in base_schedule(n, k):
        product = weighted.matrix() @ product
    return float(np.abs(product - 1.0 / n).max())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def _row(name: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    met = None if limit is None else value <= limit
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "target": "" if limit is None else f"<= {limit:g}",
        "met": met,
    }


if __name__ == "__main__":
    print(json.dumps(_consensus_here()))
