"""The plots of a comparison's report. What the numbers mean is said in ``statistics.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scripts.lab.comparison.statistics import ComparisonResults, MethodResults, mean_curve
from scripts.lab.figures import CURVES_MAX, LINE_STYLES, add_legend, new_figure
from scripts.lab.results import Columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^")
"""For points what ``LINE_STYLES`` are for lines, where the ten colors come again."""

GOSSIP_MIN = 4
"""Methods of peers in a figure at least, however many baselines there are. Source: ours."""

CURVES: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", "held-out loss, mean over peers (nats)"),
    ("loss_mean_adapter", "loss-of-the-mean", "held-out loss of the mean adapter (nats)"),
    ("accuracy", "accuracy", "share of right labels, mean over peers"),
    ("consensus_distance", "consensus-distance", "consensus distance"),
    ("cross_term", "cross-term", "cross term"),
)
"""(column of rounds.parquet, file, label) of the plots."""
LOGARITHMIC = ("consensus_distance", "cross_term")
"""Columns drawn on a logarithmic axis; of baselines only local has them."""
AXES = (
    ("tokens_per_peer", "tokens of all peers, over their number, thousands", 1e-3),
    ("bytes_per_peer", "MB read per peer", 1e-6),
    ("seconds", "virtual seconds", 1.0),
)
"""(column, label, factor) of the abscissae; methods' rounds may differ in length."""


def figures(comparison: ComparisonResults) -> list[tuple[str, Figure]]:
    """Return (name, figure) of all plots that have something to show."""
    drawings: list[tuple[str, Figure]] = []
    baselines = [method for method in comparison.methods if method.what.is_baseline]
    gossip = [method for method in comparison.methods if not method.what.is_baseline]
    size = max(GOSSIP_MIN, CURVES_MAX - len(baselines))
    batches = [gossip[start : start + size] for start in range(0, max(1, len(gossip)), size)]
    for column, name, label in CURVES:
        for number, batch in enumerate(batches, start=1):
            drawn = [method for method in (*baselines, *batch) if _drawable(method, column)]
            if drawn:
                numbered = f"{name}-{number}" if len(batches) > 1 else name
                drawings.append((numbered, _curves(comparison, drawn, column, label)))
    frontier = _frontier(comparison)
    if frontier is not None:
        drawings.append(("frontier", frontier))
    return [*drawings, ("spread", _spread(comparison))]


def _drawable(method: MethodResults, column: str) -> bool:
    if method.what.is_baseline and column in LOGARITHMIC and method.what.regime != "local":
        return False
    return len(mean_curve(list(method.rounds.values()), column).rows) > 1


class _Style(NamedTuple):
    """How one method is drawn, in all figures alike."""

    color: str
    line: str
    marker: str


def _style(comparison: ComparisonResults, method: MethodResults) -> _Style:
    place = comparison.methods.index(method)
    turn = place // 10 % len(LINE_STYLES)  # the ten colors come again
    return _Style(f"C{place % 10}", LINE_STYLES[turn], MARKERS[turn])


def _curves(comparison: ComparisonResults, drawn: Sequence[MethodResults], column: str, label: str) -> Figure:
    figure, axes = new_figure(13.5, 4.2, columns=3)
    for ax, (abscissa, x_label, factor) in zip(axes, AXES, strict=True):
        for method in drawn:
            _draw_curve(ax, method, column, abscissa, factor, _style(comparison, method))
        ax.set_xlabel(x_label)
        if column in LOGARITHMIC:
            ax.set_yscale("log")
        if abscissa == "bytes_per_peer":
            ax.set_xscale("log")
    axes[0].set_ylabel(label)
    add_legend(figure, axes[0])
    return figure


def _draw_curve(
    ax: Axes, method: MethodResults, column: str, abscissa: str, factor: float, style: _Style
) -> None:
    curves = list(method.rounds.values())
    rows, mean, low, high = mean_curve(curves, column)
    x = factor * np.stack([curve[abscissa][rows] for curve in curves]).mean(axis=0)
    keep = slice(None)
    if abscissa == "bytes_per_peer":
        if not x.any():  # nothing is read: as good at any number of bytes
            ax.axhline(mean[-1], color=style.color, linestyle=style.line, linewidth=1.0, alpha=0.6)
            return
        keep = slice(int((x == 0).sum()), None)  # 0 has no place on a logarithmic axis
    ax.plot(x[keep], mean[keep], color=style.color, linestyle=style.line, label=method.name, linewidth=1.4)
    ax.fill_between(x[keep], low[keep], high[keep], color=style.color, alpha=0.2, linewidth=0)


def _frontier(comparison: ComparisonResults) -> Figure | None:
    """Draw where methods end: final loss minus local, paired, against all bytes; low and to the left is good."""
    local = comparison.named("local")
    if local is None:
        return None
    figure, (ax,) = new_figure(8.5, 4.6)
    for method in comparison.methods:
        gained = method.minus(local, "final_loss")
        spent = method.outcome("bytes_per_peer", 1e-6)
        if gained.mean is None or spent.mean is None:
            continue
        color, line, marker = _style(comparison, method)
        if spent.mean == 0.0:
            ax.axhline(gained.mean, color=color, linestyle=line, label=method.name, linewidth=1.0)
        else:
            half = gained.half or 0.0
            ax.errorbar(spent.mean, gained.mean, half, fmt=marker, color=color, label=method.name)
    ax.set_xscale("log")
    ax.set_xlabel("MB read per peer, merge included")
    ax.set_ylabel("final held-out loss minus local (nats)")
    add_legend(figure, ax)
    return figure


def _spread(comparison: ComparisonResults) -> Figure:
    """Draw every peer of every seed: its loss over all text and on its own, before and after the merge."""
    figure, axes = new_figure(13.5, 1.4 + 0.34 * len(comparison.methods), columns=2)
    shown = [method for method in comparison.methods if not method.what.is_central][::-1]
    columns = (("loss", "loss over all text (nats)"), ("loss_own", "loss on own text (nats)"))
    for ax, (column, label) in zip(axes, columns, strict=True):
        for height, method in enumerate(shown):
            for table in method.peers.values():
                _draw_peers(ax, table, column, height, _style(comparison, method).color)
        ax.set_yticks(range(len(shown)), [method.name for method in shown], fontsize=8)
        ax.set_xlabel(label)
    axes[0].set_title("each peer; gray: before the merge", fontsize=9)
    return figure


def _draw_peers(ax: Axes, table: Columns, column: str, height: int, color: str) -> None:
    """Draw the peers of one seed as dots beside one height, gray above and in color below; a table may be empty."""
    if not table:
        return
    is_final = table["round"] == table["round"].max()
    for chosen, dots, shift in ((~is_final, "0.6", 0.15), (is_final, color, -0.15)):
        y = np.full(int(chosen.sum()), height + shift)
        ax.plot(table[column][chosen], y, "o", color=dots, markersize=3, alpha=0.6)
