"""The tables of a comparison's report. What the numbers mean is said in ``statistics.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scripts.lab.comparison.method import BASELINES
from scripts.lab.comparison.statistics import ComparisonResults, budgets, gap_closed, loss_within, on_edge
from scripts.lab.statistics import Interval


class Table(NamedTuple):
    """A table with what it says; the first row is the heading."""

    title: str
    doc: str
    rows: list[list[str]]


SHOWN: tuple[tuple[str, str, float], ...] = (
    ("final_loss", "loss", 1.0),
    ("final_worst", "worst peer", 1.0),
    ("final_mean_adapter", "mean adapter", 1.0),
    ("unmerged_loss", "before the merge", 1.0),
    ("unmerged_own", "own text, before", 1.0),
    ("final_accuracy", "accuracy, %", 100.0),
    ("unmerged_accuracy", "accuracy before the merge, %", 100.0),
    ("bytes_per_peer", "MB a peer", 1e-6),
    ("seconds", "seconds", 1.0),
    ("tokens_per_peer", "tokens a peer, thousands", 1e-3),
    ("consensus_distance", "consensus distance", 1.0),
    ("cross_term", "cross term", 1.0),
)
"""(column of runs.parquet, heading, factor) of the first table."""


def tables(comparison: ComparisonResults) -> list[Table]:
    """Return all tables of the report that have rows."""
    makers = (result_table, paired_table, frontier_table, tuning_table, split_table)
    return [table for table in (make(comparison) for make in makers) if len(table.rows) > 1]


def result_table(comparison: ComparisonResults) -> Table:
    """Return what every method came to."""
    shown = [column for column in SHOWN if any(method.has(column[0]) for method in comparison.methods)]
    rows = [["method", "rate", "gap closed, %", *(heading for _, heading, _ in shown)]]
    for method in comparison.methods:
        closed = gap_closed(comparison, method)
        rows.append(
            [
                method.name,
                f"{comparison.rates[method.name]:g}",
                _percent(closed) if closed.runs else "",
                *(
                    _shown(method.outcome(name, factor)) if method.has(name) else ""
                    for name, _, factor in shown
                ),
            ]
        )
    return Table(
        "Results",
        "Held-out losses in nats, mean ± half of the 95 % interval over seeds. The gap is that between local and "
        "centralized, seed by seed. The worst peer is the one with the highest loss over all text. Consensus distance: "
        "root mean square distance of the adapters to their mean, over that of the mean from the start.",
        rows,
    )


def paired_table(comparison: ComparisonResults) -> Table:
    """Return differences, seed by seed, to baselines and to the first method."""
    gossip = [method for method in comparison.methods if method.name not in BASELINES]
    against = [*(method for method in comparison.methods if method.name in BASELINES), *gossip[:1]]
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
            if method.name not in ("local", "centralized")
        ]
    return Table(
        "At equal bytes",
        "Best loss (nats) with at most so many megabytes read per peer, between measurements interpolated. Unlike in "
        "the first table, methods with small messages have then taken more steps.",
        rows,
    )


def tuning_table(comparison: ComparisonResults) -> Table:
    """Return the grid of learning rates."""
    rates = sorted({rate for losses in comparison.grid.values() for rate in losses})
    rows = [["method", *(f"{rate:g}" for rate in rates), "taken"]]
    for method, losses in comparison.grid.items():
        edge = " (edge of the grid)" if on_edge(comparison, method) else ""
        cells = [
            f"{losses[rate]:.4f}" if np.isfinite(losses.get(rate, np.inf)) else "diverged" for rate in rates
        ]
        rows.append([method, *cells, f"{comparison.rates[method]:g}{edge}"])
    return Table(
        "Learning rates",
        "Mean final loss (nats) on the tuning seeds, which are no others' seeds. Where the edge of the grid was taken, "
        "a better rate may lie outside.",
        rows,
    )


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


def _shown(value: Interval) -> str:
    if value.mean is None:
        return f"diverged on {value.runs - value.reached} of {value.runs}"
    return str(value)


def _percent(closed: Interval) -> str:
    if closed.mean is None:
        return f"no gap on {closed.runs - closed.reached} of {closed.runs}"
    return f"{100 * closed.mean:.0f}" + ("" if closed.half is None else f" ± {100 * closed.half:.0f}")


def _signed(value: Interval) -> str:
    if value.mean is None:
        return "" if not value.runs else _shown(value)
    text = f"{value.mean:+.4f}"
    if value.half is None:
        return text
    return f"{text} ± {value.half:.4f}" + (" *" if abs(value.mean) > value.half else "")
