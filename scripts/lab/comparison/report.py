"""The report of a comparison: tables (also as Markdown), plots, and one HTML file with all of it.

What the numbers mean is said in ``statistics.py``.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scripts.lab.comparison.method import BASELINES
from scripts.lab.comparison.statistics import (
    Found,
    MethodResults,
    budgets,
    gap_closed,
    loss_within,
    mean_curve,
    on_edge,
    paired,
    read_found,
)
from scripts.lab.convergence.report import CURVES_MAX, STYLE, STYLES, text_table
from scripts.lab.figures import new_figure, png, write_file
from scripts.lab.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[list[str]]


class Table(NamedTuple):
    """A table with what it says; the first row is the heading."""

    title: str
    doc: str
    rows: Rows


MARKERS = ("o", "s", "^")
"""For points what ``STYLES`` are for lines, where the ten colors come again."""

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

CURVES: tuple[tuple[str, str, str], ...] = (
    ("loss", "loss", "held-out loss, mean over peers (nats)"),
    ("loss_mean_adapter", "loss-of-the-mean", "held-out loss of the mean adapter (nats)"),
    ("accuracy", "accuracy", "share of right labels, mean over peers"),
    ("consensus_distance", "consensus-distance", "consensus distance"),
    ("cross_term", "cross-term", "cross term"),
)
"""(column of rounds.parquet, file, label) of the plots."""
LOGARITHMIC = ("consensus_distance", "cross_term")
AXES = (
    ("round", "rounds, in optimizer steps of a peer", 1.0),
    ("bytes_per_peer", "MB read per peer", 1e-6),
    ("seconds", "virtual seconds", 1.0),
)
"""(column, label, factor) of the abscissae; rounds count as steps, since methods' rounds may differ in length."""


def write_comparison(folder: Path) -> tuple[Path, list[str]]:
    """Write ``report.html``, ``table.md`` and PNG files into the folder of a comparison.

    Returns:
        The HTML file, and the first table as lines of text.

    Raises:
        LocalError: no results there.
    """
    found = read_found(folder)
    made = tables(found)
    images = {}
    for name, figure in figures(found):
        images[name] = png(figure)
        write_file(folder / f"{name}.png", images[name])
    write_file(folder / "table.md", _markdown(found, made).encode())
    target = folder / "report.html"
    write_file(target, _page(found, made, images).encode())
    return target, text_table(made[0].rows)


# -- tables


def tables(found: Found) -> list[Table]:
    """Return all tables of the report that have rows."""
    every = [
        result_table(found),
        paired_table(found),
        frontier_table(found),
        tuning_table(found),
        split_table(found),
    ]
    return [table for table in every if len(table.rows) > 1]


def result_table(found: Found) -> Table:
    """Return what every method came to."""
    shown = [column for column in SHOWN if any(one.has(column[0]) for one in found.methods)]
    rows = [["method", "rate", "gap closed, %", *(heading for _, heading, _ in shown)]]
    for one in found.methods:
        share = gap_closed(found, one)
        row = [one.method, f"{found.rates[one.method]:g}", "" if not share.runs else _percent(share)]
        rows.append(
            row + [_shown(one.outcome(name, factor)) if one.has(name) else "" for name, _, factor in shown]
        )
    return Table(
        "Results",
        "Held-out losses in nats, mean ± half of the 95 % interval over seeds. The gap is that between local and "
        "centralized, seed by seed. The worst peer is the one with the highest loss over all text. Consensus distance: "
        "root mean square distance of the adapters to their mean, over that of the mean from the start.",
        rows,
    )


def paired_table(found: Found) -> Table:
    """Return differences, seed by seed, to baselines and to the first method."""
    others = [one for one in found.methods if one.method not in BASELINES]
    against = [*(one for one in found.methods if one.method in BASELINES), *others[:1]]
    rows = [["method", *(f"minus {one.method}" for one in against)]]
    for one in found.methods:
        row = [one.method]
        for baseline in against:
            difference = paired(one, baseline, lambda run: run["final_loss"])
            row.append("" if baseline is one else _signed(difference))
        rows.append(row)
    return Table(
        "Paired differences",
        "Final loss (nats) minus that of the column, seed by seed; below 0 is better. An interval that does not hold 0 "
        "is marked with *.",
        rows,
    )


def frontier_table(found: Found) -> Table:
    """Return the best loss that each method comes to within byte budgets."""
    limits = budgets(found)
    rows = [["method", *(f"{limit * 1e-6:g} MB" for limit in limits)]]
    if limits:
        rows += [
            [one.method, *(_shown(loss_within(one, limit)) for limit in limits)]
            for one in found.methods
            if one.method not in ("local", "centralized")
        ]
    return Table(
        "At equal bytes",
        "Best loss (nats) with at most so many megabytes read per peer, between measurements interpolated. Unlike in "
        "the first table, methods with small messages have then taken more steps.",
        rows,
    )


def tuning_table(found: Found) -> Table:
    """Return the grid of learning rates."""
    rates = sorted({rate for losses in found.grid.values() for rate in losses})
    rows = [["method", *(f"{rate:g}" for rate in rates), "taken"]]
    for method, losses in found.grid.items():
        edge = " (edge of the grid)" if on_edge(found, method) else ""
        cells = [
            f"{losses[rate]:.4f}" if np.isfinite(losses.get(rate, np.inf)) else "diverged" for rate in rates
        ]
        rows.append([method, *cells, f"{found.rates[method]:g}{edge}"])
    return Table(
        "Learning rates",
        "Mean final loss (nats) on the tuning seeds, which are no others' seeds. Where the edge of the grid was taken, "
        "a better rate may lie outside.",
        rows,
    )


def split_table(found: Found) -> Table:
    """Return how uneven the peers' text is."""
    rows = [["seed", "total variation", "Jensen-Shannon distance", "rows of a peer, least", "most"]]
    runs = found.methods[0].runs
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


def _percent(share: Interval) -> str:
    if share.mean is None:
        return f"no gap on {share.runs - share.reached} of {share.runs}"
    return f"{100 * share.mean:.0f}" + ("" if share.half is None else f" ± {100 * share.half:.0f}")


def _signed(value: Interval) -> str:
    if value.mean is None:
        return "" if not value.runs else _shown(value)
    text = f"{value.mean:+.4f}"
    if value.half is None:
        return text
    return f"{text} ± {value.half:.4f}" + (" *" if abs(value.mean) > value.half else "")


# -- figures


def figures(found: Found) -> list[tuple[str, Figure]]:
    """Return (name, figure) of all plots that have something to show."""
    made = []
    baselines = [one for one in found.methods if one.method in BASELINES]
    others = [one for one in found.methods if one.method not in BASELINES]
    size = CURVES_MAX - len(BASELINES)
    parts = [others[start : start + size] for start in range(0, max(1, len(others)), size)]
    for column, name, label in CURVES:
        for number, part in enumerate(parts, start=1):
            drawn = [one for one in (*baselines, *part) if _drawable(one, column)]
            if drawn:
                numbered = f"{name}-{number}" if len(parts) > 1 else name
                made.append((numbered, _curves(found, drawn, column, label)))
    frontier = _frontier(found)
    if frontier is not None:
        made.append(("frontier", frontier))
    return [*made, ("spread", _spread(found))]


def _drawable(one: MethodResults, column: str) -> bool:
    if one.method in BASELINES and column in LOGARITHMIC and one.method != "local":
        return False
    return len(mean_curve(list(one.rounds.values()), column)[0]) > 1


def _style(found: Found, one: MethodResults) -> dict[str, Any]:
    place = [each.method for each in found.methods].index(one.method)
    return {"color": f"C{place % 10}", "linestyle": STYLES[place // 10 % len(STYLES)]}


def _curves(found: Found, drawn: Sequence[MethodResults], column: str, label: str) -> Figure:
    figure, axes = new_figure(13.5, 4.2, columns=3)
    for ax, (abscissa, x_label, factor) in zip(axes, AXES, strict=True):
        for one in drawn:
            curves = list(one.rounds.values())
            rows, mean, low, high = mean_curve(curves, column)
            x = _abscissa(curves, abscissa, rows) * factor
            if (
                abscissa == "bytes_per_peer" and not x.any()
            ):  # nothing is read: as good at any number of bytes
                ax.axhline(mean[-1], **_style(found, one), linewidth=1.0, alpha=0.6)
                continue
            keep = slice(int((x == 0).sum()), None) if abscissa == "bytes_per_peer" else slice(None)
            ax.plot(x[keep], mean[keep], **_style(found, one), label=one.method, linewidth=1.4)
            ax.fill_between(
                x[keep], low[keep], high[keep], color=_style(found, one)["color"], alpha=0.2, linewidth=0
            )
        ax.set_xlabel(x_label)
        if column in LOGARITHMIC:
            ax.set_yscale("log")
        if abscissa == "bytes_per_peer":
            ax.set_xscale("log")
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _abscissa(curves: Sequence[dict[str, Any]], column: str, rows: Any) -> Any:
    values = np.stack([curve["steps" if column == "round" else column][rows] for curve in curves])
    return values.mean(axis=0)


def _frontier(found: Found) -> Figure | None:
    """Draw where methods end: final loss minus local, paired, against all bytes; low and to the left is good."""
    local = found.named("local")
    if local is None:
        return None
    figure, (ax,) = new_figure(8.5, 4.6)
    for one in found.methods:
        gained = paired(one, local, lambda run: run["final_loss"])
        spent = one.outcome("bytes_per_peer", 1e-6)
        if gained.mean is None or spent.mean is None:
            continue
        style = _style(found, one)
        if spent.mean == 0.0:
            ax.axhline(gained.mean, **style, label=one.method, linewidth=1.0)
        else:
            ax.errorbar(
                spent.mean,
                gained.mean,
                gained.half or 0.0,
                fmt=MARKERS[STYLES.index(style["linestyle"])],
                color=style["color"],
                label=one.method,
            )
    ax.set_xscale("log")
    ax.set_xlabel("MB read per peer, merge included")
    ax.set_ylabel("final held-out loss minus local (nats)")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _spread(found: Found) -> Figure:
    """Draw every peer of every seed: its loss over all text and on its own, before and after the merge."""
    figure, axes = new_figure(13.5, 1.4 + 0.34 * len(found.methods), columns=2)
    shown = [one for one in found.methods if one.method != "centralized"][::-1]
    for ax, column, label in zip(
        axes, ("loss", "loss_own"), ("loss over all text (nats)", "loss on own text (nats)"), strict=True
    ):
        for place, one in enumerate(shown):
            for table in one.peers.values():
                if not table:
                    continue
                final = table["round"] == table["round"].max()
                for chosen, color, shift in (
                    (~final, "0.6", 0.15),
                    (final, _style(found, one)["color"], -0.15),
                ):
                    y = np.full(int(chosen.sum()), place + shift)
                    ax.plot(table[column][chosen], y, "o", color=color, markersize=3, alpha=0.6)
        ax.set_yticks(range(len(shown)), [one.method for one in shown], fontsize=8)
        ax.set_xlabel(label)
    axes[0].set_title("each peer; gray: before the merge", fontsize=9)
    return figure


# -- pages


def _lines(found: Found) -> list[str]:
    asked = found.manifest["spec"]["comparison"]
    seeds = sorted({seed for one in found.methods for seed in one.runs})
    steps = {int(run["rounds"] * run["local_steps"]) for one in found.methods for run in one.runs.values()}
    split = f", split {asked['partition']}" if asked["partition"] else ""
    return [
        f"Workload {asked['workload']}{split}: {asked['peers']} peers, {_either(steps)} optimizer steps each, "
        f"{len(seeds)} seeds. All methods have the same text, splits, initial adapters and batch sizes, and learning "
        "rates tuned on the same grid.",
        f"Time is virtual: {asked['step_s']:g} s a step, links of {asked['bandwidth_mbit']:g} Mbit/s and "
        f"{asked['latency_s'] * 1000:g} ms. Bytes are those that a peer reads, the final merge included; with fedavg, "
        "one adapter down and one up a round. Centralized and local read none; centralized takes n times as long a "
        "step, on one machine.",
    ]


def _either(values: set[int]) -> str:
    return " or ".join(str(value) for value in sorted(values))


def _command(found: Found) -> str:
    command: str = found.manifest["spec"]["command"]
    out = command.rpartition("--out ")[2]
    return f"{command}\npython scripts/compare.py report --out {out}"


def _markdown(found: Found, made: Sequence[Table]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    parts = [" ".join(_lines(found)) + "\n"]
    for table in made:
        head, *body = table.rows
        rule = "| --- |" + " ---: |" * (len(head) - 1)
        named = [[f"`{cells[0]}`", *cells[1:]] for cells in body]
        parts.append(
            "\n".join([f"**{table.title}.** {table.doc}\n", line(head), rule, *map(line, named)]) + "\n"
        )
    parts.append(f"Made again by:\n\n```bash\n{_command(found)}\n```\n")
    return "\n".join(parts)


def _page(found: Found, made: Sequence[Table], images: dict[str, bytes]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>\n"

    said = "".join(f"<p>{html.escape(text)}</p>\n" for text in _lines(found))
    shown = "".join(
        f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.doc)}</p>\n<table>"
        f"{row(table.rows[0], 'th')}{''.join(row(cells, 'td') for cells in table.rows[1:])}</table>\n"
        for table in made
    )
    pictures = "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">\n'
        for name, data in images.items()
    )
    finished, every = found.manifest["finished"], found.manifest["cells"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style></head><body>
<h1>Comparison</h1>
{said}<p>{finished} of {every} runs are finished.</p>
{shown}{pictures}<h2>Manifest</h2><pre>{html.escape(json.dumps(found.manifest, indent=1))}</pre>
<h2>Made again by</h2><pre>{html.escape(_command(found))}</pre></body></html>
"""
