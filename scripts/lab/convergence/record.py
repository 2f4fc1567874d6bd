"""One topology's figures as they are shown: the JSON object of ``show --json`` and the lines of its table.

Keys and nulls are an interface: a quantity that has no meaning for a topology is null, never a number. It computes
nothing; ``topology.analysis`` and ``topology.validation`` do.
"""

from __future__ import annotations

import math
from typing import Any

from scripts.lab.convergence.cell import check_analysis, topology_errors
from topology.analysis import Measures, measure
from topology.links import Topology, parse_topology
from topology.validation import validate


def checked_topology(name: str, peers: int, weights: str, seed: int) -> Topology:
    """Return a topology that exists for so many peers.

    Raises:
        LocalError: says what would be valid.
    """
    with topology_errors():
        topology = parse_topology(name, seed=seed, weights=weights)
        check_analysis(topology, peers)
    return topology


def measured(topology: Topology, peers: int) -> Measures:
    """Measure a topology.

    Raises:
        LocalError: the weight rule has no answer for these edges.
    """
    with topology_errors():
        return measure(topology, peers)


def record(measures: Measures) -> dict[str, Any]:
    """Return the object of ``show --json``; infinitely many rounds (W does not mix) are null."""
    rounds = measures.rounds_to_tolerance
    return {
        "peers": measures.peers,
        "edges": measures.edges,
        "degree_max": measures.degree_max,
        "diameter": measures.diameter,
        "spectral_gap": measures.spectral_gap,
        "slem": measures.slem,
        "lambda_min": measures.lambda_min,
        "effective_neighbors": measures.effective_neighbors,
        f"rounds_to_{measures.tolerance:.0e}".replace("e-0", "e-"): rounds if math.isfinite(rounds) else None,
        "doubly_stochastic": measures.doubly_stochastic,
        "symmetric": measures.symmetric,
        "sweep_length": measures.sweep_length,
        "sweep_contraction": measures.sweep_contraction,
    }


def lines(topology: Topology, measures: Measures) -> list[str]:
    """Return the table of ``show``, and below it what this W does not guarantee."""
    shown: dict[str, str] = {"topology": measures.name}
    for key, value in record(measures).items():
        if isinstance(value, dict):
            shown |= {f"n_W({gamma})": f"{neighbors:.4g}" for gamma, neighbors in value.items()}
        else:
            shown[key.replace("_", " ")] = _text(value)
    shown["reads per round"] = f"{measures.reads_per_round:.6g}"
    if measures.expected_contraction is not None:
        mean, error = measures.expected_contraction
        shown["E contraction of Xi^2"] = f"{mean:.4g} ± {error:.1g} a round"
    if not measures.doubly_stochastic:
        shown["drift of the mean"] = f"{measures.mean_drift:.3g} a round, for values of unit variance"
    width = max(map(len, shown))
    notes = validate(topology.matrix(measures.peers)).failures if measures.sweep_length == 1 else ()
    return [
        *(f"{name:<{width}}  {text}" for name, text in shown.items()),
        *(f"note: {failure}" for failure in notes),
    ]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
