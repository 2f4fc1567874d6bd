# ruff: noqa: T201 - printing is what a command line is for
"""``peer topology``: which topology for my case, and what there is. Imports nothing heavy until a command runs."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from gossip.errors import LocalError

if TYPE_CHECKING:
    from topology.advice import Advice

topology = App(name="topology", help="Choose a topology: advice for your own case, and the catalogue.")


@topology.command
def advise(
    *,
    peers: Annotated[int, Parameter(help="How many peers, at least 2.")],
    degree_max: Annotated[int, Parameter(help="Most peers that one may read in one round.")],
    payload_mb: Annotated[float, Parameter(help="Size of an adapter as it travels, MB (10^6 bytes).")],
    bandwidth_mbit: Annotated[float, Parameter(help="Of each peer, up and down, Mbit/s.")],
    latency_s: Annotated[float, Parameter(help="One way, seconds.")] = 0.05,
    loss: Annotated[float, Parameter(help="Probability that a transfer fails.")] = 0.0,
    churn: Annotated[float, Parameter(help="Share of peers that may vanish at once.")] = 0.0,
    tolerance: Annotated[float, Parameter(help="Consensus distance to reach, relative to the first.")] = 1e-3,
    seed: Annotated[int, Parameter(help="Of random graphs, losses and start values.")] = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print a JSON list and nothing else.")] = False,
) -> None:
    """Rank the catalogue for your case by simulated consensus, fastest first."""
    import dataclasses

    from topology.advice import advise as ranked
    from topology.cost import LinkModel
    from topology.errors import TopologyError

    if not payload_mb > 0:
        raise LocalError(f"--payload-mb must be greater than 0, not {payload_mb!r}")
    if not 0 < tolerance < 1:
        raise LocalError(f"--tolerance must lie between 0 and 1 (both excluded), not {tolerance!r}")
    try:
        ranking = ranked(
            peers,
            degree_max=degree_max,
            payload_bytes=payload_mb * 1e6,
            link=LinkModel(latency_s, bandwidth_mbit, bandwidth_mbit),
            loss=loss,
            churn=churn,
            tolerance=tolerance,
            seed=seed,
        )
    except TopologyError as error:
        raise LocalError(str(error)) from error
    if json:
        print(json_text.dumps([dataclasses.asdict(advice) for advice in ranking]))
    else:
        _print_ranking(ranking)


def _print_ranking(ranking: Sequence[Advice]) -> None:
    """Print a table of the candidates, and then the reason for each."""
    row = "{:24} {:>6} {:>12} {:>14} {:>8} {:>10} {:>10}"
    print(
        row.format("topology", "rounds", "MB per peer", "MB of busiest", "seconds", "mean error", "connected")
    )
    for advice in ranking:
        print(
            row.format(
                advice.name,
                advice.rounds,
                f"{advice.bytes_per_peer / 1e6:.1f}",
                f"{advice.bytes_busiest / 1e6:.1f}",
                f"{advice.seconds:.1f}",
                f"{advice.mean_error:.2g}",
                f"{advice.connected_share:.0%}",
            )
        )
    print()
    for advice in ranking:
        print(f"- {advice.reason}.")


@topology.command(name="list")
def list_all(
    *, json: Annotated[bool, Parameter(negative=(), help="Print one JSON object and nothing else.")] = False
) -> None:
    """List every topology and every weight rule, with parameters."""
    from topology.links import catalogue, describe, weight_catalogue

    if json:
        print(json_text.dumps({"topologies": catalogue(), "weights": weight_catalogue()}))
        return
    print("Topologies\n")
    print(describe())
    print("\nWeights of static graphs\n")
    print(describe(weight_catalogue()))
