"""The tables of a comparison's report. What the numbers mean is said in ``statistics.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from scripts.lab.comparison.statistics import (
    ComparisonResults,
    MethodResults,
    above_central,
    base_loss,
    budgets,
    gap_closed,
    loss_within,
    on_edge,
    share_of_gain,
    spent_until_target,
)
from scripts.lab.statistics import Interval, interval


class Table(NamedTuple):
    """A table with what it says; the first row is the heading."""

    title: str
    doc: str
    rows: list[list[str]]


class Column(NamedTuple):
    """A column of numbers with intervals.

    Attributes:
        name: in records.
        heading: in tables, with its unit.
        of: what a method has in it; an interval over no runs where it has nothing.
        digits: after the point; None = four significant ones.
    """

    name: str
    heading: str
    of: Callable[[ComparisonResults, MethodResults], Interval]
    digits: int | None = None


def _outcome(name: str, heading: str, column: str, factor: float = 1.0) -> Column:
    def of(comparison: ComparisonResults, method: MethodResults) -> Interval:
        return method.outcome(column, factor) if method.has(column) else interval([])

    return Column(name, heading, of)


def _percent(
    name: str, heading: str, share: Callable[[ComparisonResults, MethodResults], Interval]
) -> Column:
    def of(comparison: ComparisonResults, method: MethodResults) -> Interval:
        return share(comparison, method).times(100)

    return Column(name, heading, of, digits=1)


MAIN = (
    _percent("share_of_gain", "share of strongest central's gain, %", share_of_gain),
    _outcome("loss", "loss", "final_loss"),
    _outcome("worst_loss", "worst peer", "final_worst"),
    _outcome("accuracy_percent", "accuracy, %", "final_accuracy", 100.0),
    _outcome("megabytes", "MB a peer", "bytes_per_peer", 1e-6),
    _outcome("seconds", "seconds", "seconds"),
)
"""Columns of the first table, after method, budget and rate."""

DETAILS = (
    _percent("gap_closed", "gap closed, %", gap_closed),
    _outcome("mean_adapter_loss", "mean adapter", "final_mean_adapter"),
    _outcome("unmerged_loss", "before the merge", "unmerged_loss"),
    _outcome("unmerged_own_loss", "own text, before", "unmerged_own"),
    _outcome("unmerged_accuracy_percent", "accuracy before the merge, %", "unmerged_accuracy", 100.0),
    _outcome("validation_loss", "validation loss", "validation_loss"),
    _outcome("kilotokens", "tokens a peer, thousands", "tokens_per_peer", 1e-3),
    _outcome("consensus_distance", "consensus distance", "consensus_distance"),
    _outcome("cross_term", "cross term", "cross_term"),
)
"""Columns of the table of details."""


def _above(name: str, heading: str, column: str) -> Column:
    return _percent(name, heading, lambda comparison, method: above_central(comparison, method, column))


def _until_target(name: str, heading: str, column: str, factor: float) -> Column:
    def of(comparison: ComparisonResults, method: MethodResults) -> Interval:
        return spent_until_target(comparison, method, column).times(factor)

    return Column(name, heading, of)


CONVERGENCE = (
    _above("above_central_percent", "loss above central's, %", "final_loss"),
    _above("worst_above_central_percent", "worst peer above central's, %", "final_worst"),
    _above("worst_unmerged_above_central_percent", "the same before the merge, %", "unmerged_worst"),
    _outcome("best_round", "best round", "best_round"),
    _outcome("last_round", "last round", "last_round"),
    _until_target(
        "kilotokens_to_target", "tokens a peer to 95 % of central's gain, thousands", "tokens_per_peer", 1e-3
    ),
    _until_target("megabytes_to_target", "MB a peer to 95 %", "bytes_per_peer", 1e-6),
)
"""Columns of the table of trainings that go on until they have converged; 95 % is ``TARGET_SHARE``."""


def tables(comparison: ComparisonResults) -> list[Table]:
    """Return all tables of the report that have rows."""
    makers = (
        main_table,
        convergence_table,
        paired_table,
        detail_table,
        frontier_table,
        tuning_table,
        split_table,
    )
    return [table for table in (make(comparison) for make in makers) if len(table.rows) > 1]


def main_table(comparison: ComparisonResults) -> Table:
    """Return what every method came to, and the model before training."""
    shown = _filled(comparison, MAIN)
    rows = [["method", "budget", "rate", *(column.heading for column in shown)]]
    base = base_loss(comparison)
    rows.append(["base model", "", "", *(_shown(base) if column.name == "loss" else "" for column in shown)])
    for method in comparison.methods:
        cells = (_cell(column, comparison, method) for column in shown)
        rows.append([method.name, method.what.budget, f"{comparison.rates[method.name]:g}", *cells])
    central = comparison.strongest_central()
    strongest = f" Strongest central: {central.name}." if central else ""
    ended = CONVERGED_DOC if comparison.converges else ""
    return Table("Results", f"{MAIN_DOC}{ended}{strongest}", rows)


MAIN_DOC = (
    "Losses on test rows in nats, mean ± half of the 95 % interval over seeds. Budget: equal tokens = one adapter on "
    "as many tokens as all peers together, in small steps one after the other; equal time = one adapter, as many steps "
    "as a peer takes, each on a batch of every peer, on n machines; server = one that all peers trust; alone, peers = "
    "each peer on its share of the tokens. Share: of what the strongest central training of equal tokens (by "
    "validation loss) gains over the base model, seed by seed. The worst peer is the one with the highest loss over "
    "all text."
)


CONVERGED_DOC = (
    " Every method went on with a constant rate until the loss on validation rows (mean over peers, their own adapters "
    "after mixing) had not improved for some evaluations: losses are those of its best round by that measure, and "
    "bytes, seconds and tokens those until then, so tokens differ. Where peers merge, the loss is that of the mean of "
    "their adapters of that round, which the final merge comes near to; its bytes are not counted."
)


def convergence_table(comparison: ComparisonResults) -> Table:
    """Return how near methods come to the best central training, and how soon; no rows unless they converge."""
    shown = _filled(comparison, CONVERGENCE) if comparison.converges else []
    rows = [["method", *(column.heading for column in shown)]]
    if shown:
        rows += [
            [method.name, *(_cell(column, comparison, method, "not reached") for column in shown)]
            for method in comparison.methods
        ]
    return Table(
        "At convergence",
        "Loss above that of the strongest central, seed by seed, both at their best. Rounds: the best one, and the one "
        "at which training ended. Tokens and bytes to 95 % of central's best gain over the base model are by the mean "
        "over peers of their own adapters after mixing, between measurements interpolated.",
        rows,
    )


def detail_table(comparison: ComparisonResults) -> Table:
    """Return what else was measured of every method."""
    shown = _filled(comparison, DETAILS)
    rows = [["method", *(column.heading for column in shown)]]
    rows += [
        [method.name, *(_cell(column, comparison, method) for column in shown)]
        for method in comparison.methods
    ]
    return Table(
        "Details",
        "The gap is that between local and the strongest central, seed by seed. Consensus distance: root mean square "
        "distance of the adapters to their mean, over that of the mean from the start.",
        rows,
    )


def _filled(comparison: ComparisonResults, columns: Sequence[Column]) -> list[Column]:
    return [
        column for column in columns if any(column.of(comparison, one).runs for one in comparison.methods)
    ]


def _cell(
    column: Column, comparison: ComparisonResults, method: MethodResults, missing: str = "diverged"
) -> str:
    value = column.of(comparison, method)
    if not value.runs or value.mean is None or column.digits is None:
        return _shown(value, missing) if value.runs else ""
    half = "" if value.half is None else f" ± {value.half:.{column.digits}f}"
    return f"{value.mean:.{column.digits}f}{half}"


def record(comparison: ComparisonResults) -> dict[str, Any]:
    """Return every number of the tables of results, details and convergence, in full, and what made them; for JSON.

    Rows are the base model and the methods; a value is mean, half of the 95 % interval (None: one seed), and seeds.
    """
    columns = _filled(comparison, (*MAIN, *DETAILS, *(CONVERGENCE if comparison.converges else ())))
    manifest, central = comparison.manifest, comparison.strongest_central()
    rows: list[dict[str, Any]] = [
        {"method": "base model", "values": {"loss": _numbers(base_loss(comparison))}}
    ]
    for method in comparison.methods:
        values = {column.name: _numbers(column.of(comparison, method)) for column in columns}
        named = {"method": method.name, "budget": method.what.budget, "rate": comparison.rates[method.name]}
        rows.append({**named, "values": values})
    return {
        "command": _portable(manifest["spec"]["command"]),
        "made": {name: manifest[name] for name in ("format", "commit", "python", "machine", "versions")},
        "strongest_central": central.name if central else None,
        "columns": [column.name for column in columns],
        "rows": rows,
    }


def _portable(command: str) -> str:
    """Return the command with a folder that is not this machine's alone."""
    words, flag, out = command.rpartition("--out ")
    return f"{words}{flag}{PurePath(out).name if PurePath(out).is_absolute() else out}"


def _numbers(value: Interval) -> dict[str, float | int | None]:
    return {"mean": value.mean, "half": value.half, "n": value.reached}


def paired_table(comparison: ComparisonResults) -> Table:
    """Return differences, seed by seed, to the main baselines and to the first method."""
    gossip = [method for method in comparison.methods if not method.what.is_baseline]
    chosen = [comparison.named("local"), comparison.strongest_central()]
    chosen += [comparison.named("central-large"), comparison.named("fedavg"), *gossip[:1]]
    against = [method for method in chosen if method is not None]
    rows = [["method", *(f"minus {method.name}" for method in against)]]
    for method in comparison.methods:
        differences = (
            "" if baseline is method else _signed(method.minus(baseline, "final_loss"))
            for baseline in against
        )
        rows.append([method.name, *differences])
    return Table(
        "Paired differences",
        "Final loss (nats) minus that of the column, seed by seed; below 0 is better. An interval that does not hold 0 "
        "is marked with *.",
        rows,
    )


def frontier_table(comparison: ComparisonResults) -> Table:
    """Return the best loss that each method comes to within byte budgets."""
    limits = budgets(comparison)
    rows = [["method", *(f"{limit * 1e-6:g} MB" for limit in limits)]]
    if limits:
        rows += [
            [method.name, *(_shown(loss_within(method, limit)) for limit in limits)]
            for method in comparison.methods
            if method.has_traffic
        ]
    return Table(
        "At equal bytes",
        "Best loss (nats) with at most so many megabytes read per peer, between measurements interpolated. Unlike in "
        "the first table, methods with small messages have then learned from more tokens.",
        rows,
    )


def tuning_table(comparison: ComparisonResults) -> Table:
    """Return the grid of learning rates."""
    rates = sorted({rate for losses in comparison.grid.values() for rate in losses})
    rows = [["method", *(f"{rate:g}" for rate in rates), "taken"]]
    for method, losses in comparison.grid.items():
        edge = " (edge: the widest grid)" if on_edge(comparison, method) else ""
        cells = [_tuned(losses[rate]) if rate in losses else "" for rate in rates]
        rows.append([method, *cells, f"{comparison.rates[method]:g}{edge}"])
    return Table(
        "Learning rates",
        "Mean validation loss (nats) on the tuning seeds, which are no others' seeds; none of its rows is a test row. "
        "A method's grid was widened as long as its best rate lay at an edge, up to a bound: where the edge was "
        "taken nevertheless, a better rate may lie outside.",
        rows,
    )


def _tuned(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def split_table(comparison: ComparisonResults) -> Table:
    """Return how uneven the peers' text is."""
    rows = [["seed", "total variation", "Jensen-Shannon distance", "rows of a peer, least", "most"]]
    runs = comparison.methods[0].runs
    for seed, run in runs.items():
        uneven = [f"{run[name]:.3f}" for name in ("total_variation", "jensen_shannon")]
        rows.append([str(seed), *uneven, str(run["rows_least"]), str(run["rows_most"])])
    return Table(
        "Split",
        "How far the peers' mixes of groups (languages, topics, labels) lie from the mix of all: 0 = alike, 1 = apart.",
        rows,
    )


def _shown(value: Interval, missing: str = "diverged") -> str:
    if value.mean is None:
        return f"{missing} on {value.runs - value.reached} of {value.runs}"
    return str(value)


def _signed(value: Interval) -> str:
    if value.mean is None:
        return "" if not value.runs else _shown(value)
    text = f"{value.mean:+.4f}"
    if value.half is None:
        return text
    return f"{text} ± {value.half:.4f}" + (" *" if abs(value.mean) > value.half else "")
