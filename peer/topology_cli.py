# ruff: noqa: T201 - printing is what a command line is for
"""``peer topology``: which topology for my case, and what there is. Imports nothing heavy until a command runs."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from gossip.errors import LocalError

if TYPE_CHECKING:
    from topology.adversaries import ColluderExposure, LiarExposure
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
    liars: Annotated[int | None, Parameter(help="Peers that may lie: whose rows they overrun.")] = None,
    colluders: Annotated[
        int | None, Parameter(help="Members that may share what they read: what masks hide from them.")
    ] = None,
    rounds: Annotated[int, Parameter(help="Looked at for --liars and --colluders where rows change.")] = 10,
    tolerance: Annotated[float, Parameter(help="Consensus distance to reach, relative to the first.")] = 1e-3,
    seed: Annotated[int, Parameter(help="Of random graphs, losses, start values and placements.")] = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print a JSON list and nothing else.")] = False,
) -> None:
    """Rank the catalogue for your case by simulated consensus, fastest first."""
    from topology.advice import Adversaries
    from topology.advice import advise as ranked
    from topology.cost import LinkModel
    from topology.errors import TopologyError

    _check(payload_mb, tolerance, **{"--liars": liars, "--colluders": colluders, "--rounds": rounds})
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
            against=Adversaries(liars or 0, colluders or 0, rounds),
        )
    except TopologyError as error:
        raise LocalError(str(error)) from error
    if json:
        print(json_text.dumps([_asked(advice) for advice in ranking]))
    else:
        _print_all(ranking)


def _check(payload_mb: float, tolerance: float, **counts: int | None) -> None:
    """Refuse what no number of peers would make possible."""
    if not payload_mb > 0:
        raise LocalError(f"--payload-mb must be greater than 0, not {payload_mb!r}")
    if not 0 < tolerance < 1:
        raise LocalError(f"--tolerance must lie between 0 and 1 (both excluded), not {tolerance!r}")
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise LocalError(f"{flag} must be at least 1, not {count}")


def _print_all(ranking: Sequence[Advice]) -> None:
    """Print the ranking, and what adversaries can reach where that was asked."""
    _print_ranking(ranking)
    if ranking[0].liars:
        _print_liars(ranking)
    if ranking[0].colluders:
        _print_colluders(ranking)
    if ranking[0].liars and ranking[0].colluders:
        print("\n--robust and --mask exclude each other: a mask hides what a rule would compare.")


def _asked(advice: Advice) -> dict[str, object]:
    """Return the fields of an advice that were asked for."""
    import dataclasses

    return {name: value for name, value in dataclasses.asdict(advice).items() if value is not None}


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


def _print_liars(ranking: Sequence[Advice]) -> None:
    """Print what liars can reach with each candidate, in figures, in words, and which one withstands them."""
    from topology.withstanding import against_liars, of_liars, percent

    met = [(advice.name, advice.liars) for advice in ranking if advice.liars]
    liars, rounds = met[0][1].liars, met[0][1].rounds
    print(f"\n{liars} of the peers lie, at random places ({_tried(met[0][1])}); shares of honest peers:\n")
    row = "{:24} {:>6} {:>9} {:>9} {:>9} {:>9} {:>11} {:>9} {:>9}"
    print(
        row.format(
            "topology",
            "reads",
            "lied to",
            "overrun",
            "if asked",
            "unbounded",
            f"in {rounds} rounds",
            "worst",
            "joined",
        )
    )
    for name, one in met:
        reads = f"{one.reads_least}" + f"-{one.reads_most}" * (one.reads_most > one.reads_least)
        shares = (one.lied_to, one.overrun, one.overrun_asked, one.unbounded, one.overrun_ever)
        worst = "-" if one.overrun_worst is None else percent(one.overrun_worst)
        print(row.format(name, reads, *map(percent, shares), worst, percent(one.joined)))
    print(
        "\nLied to: a liar stands in the row. Overrun: more than the default rule drops, in one round; if asked: the\n"
        "same with --robust trim-clip, which guards short rows too. Unbounded: so many that they choose how far they\n"
        "move the reader. Joined: honest peers still reach each other.\n"
    )
    for name, one in met:
        print(f"- {of_liars(name, one)}.")
    print(f"\n{against_liars(ranking)}")


def _print_colluders(ranking: Sequence[Advice]) -> None:
    """Print what colluders learn with each candidate, in figures, in words, and which one hides most under masks."""
    from topology.withstanding import against_colluders, of_colluders, percent

    met = [(advice.name, advice.colluders) for advice in ranking if advice.colluders]
    colluders = met[0][1].colluders
    print(
        f"\n{colluders} members share what they read ({_tried(met[0][1])}); shares of the others' adapters:\n"
    )
    row = "{:24} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}"
    print(row.format("topology", "in rows", "isolated", "worst", "still", "idle", "group"))
    for name, one in met:
        worst = "-" if one.isolated_worst is None else percent(one.isolated_worst)
        shares = (one.isolated_still, one.isolated_idle)
        print(
            row.format(
                *(name, percent(one.in_rows), percent(one.isolated), worst),
                *(*map(percent, shares), one.group_least),
            )
        )
    print(
        "\nIn rows: read in the clear without masks. With masks, isolated: sums of one round give the adapter away;\n"
        "still: of all rounds, while adapters stand still; idle: while all mix on without training. Group: fewest in\n"
        "one sum.\n"
    )
    for name, one in met:
        print(f"- {of_colluders(name, one)}.")
    print(f"\n{against_colluders(ranking)}")


def _tried(met: LiarExposure | ColluderExposure) -> str:
    return f"all {met.placements} placements" if met.is_exhaustive else f"{met.placements} placements drawn"


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
