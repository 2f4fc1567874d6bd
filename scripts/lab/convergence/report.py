"""The report of a sweep: tables, plots against rounds, bytes and simulated seconds, one HTML file with all of it.

What the numbers mean is said in ``statistics.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scripts.lab.convergence.statistics import METRICS, OUTCOMES_SHOWN, Group, Results, band, read_results
from scripts.lab.figures import CURVES_MAX, LINE_STYLES, add_legend, new_figure, png
from scripts.lab.files import write_file
from scripts.lab.page import html_manifest, html_page, html_pictures, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = (
    ("round", "rounds", 1.0),
    ("bytes_per_peer", "MB read per peer", 1e-6),
    ("seconds", "simulated seconds", 1.0),
)
"""(column, label, factor) of the three abscissae every metric is drawn against."""
FIGURES_MAX = 24
"""Figures of one report. Source: guess; the table holds everything."""
PAIRED = "rounds_to_tolerance"
"""What is compared seed by seed."""
FLOOR = 1e-12
"""Distances below this share of the first are rounding, and are not drawn."""

EXPLANATION = """\
Numbers are the mean over seeds ± half of the 95 % interval (Student's
t); shaded bands are the same for the logarithm. Equal seeds give equal starts, so differences are taken seed by seed.
"Reached by k of m" means that the other runs ended before they came to the tolerance."""
"""How to read the report, as HTML."""


def write_report(folder: Path) -> tuple[Path, list[str]]:
    """Write ``report.html`` and its PNG files into the folder of a sweep.

    Returns:
        The HTML file, and the table as lines of text.

    Raises:
        LocalError: no results there.
    """
    results = read_results(folder)
    table = outcome_table(results)
    pictures = {name: png(figure) for name, figure in figures(results)}
    for name, content in pictures.items():
        write_file(folder / f"{name}.png", content)
    target = folder / "report.html"
    write_file(target, _page(results, table, pictures).encode())
    return target, text_table(table)


def outcome_table(results: Results) -> list[list[str]]:
    """Return heading and rows: each group with mean ± half of the 95 % interval.

    The last column compares rounds, seed by seed, with the first topology of the same setting; where nothing but the
    setting varies, with the first setting.
    """
    shown = [
        column
        for column in OUTCOMES_SHOWN
        if any(run[column[0]] is not None for group in results.groups for run in group.runs)
    ]
    rows = [["setting", "seeds", *(heading for _, heading, _ in shown)]]
    paired = any(column == PAIRED for column, _, _ in shown) and len(results.groups) > 1
    facets, together = facets_of(results)
    baselines = {id(group): groups[0] for groups in facets.values() for group in groups}
    if paired:
        rows[0].append(f"rounds against {results.groups[0].label(together)}, paired")
    for group in results.groups:
        row = [group.label(results.varied), str(len(group.runs))]
        row += [str(group.outcome(name, factor)) if group.has(name) else "" for name, _, factor in shown]
        if paired:
            difference = group.minus(baselines[id(group)], PAIRED)
            compared = baselines[id(group)] is not group and difference.mean is not None
            row.append(str(difference) if compared else "")
        rows.append(row)
    return rows


def facets_of(results: Results) -> tuple[dict[str, list[Group]], tuple[str, ...]]:
    """Cut groups into facets that are compared within, and return what varies inside of them.

    A facet is one combination of all that varies but topology and weights; one for all where that leaves nothing to
    compare.
    """
    apart = tuple(name for name in results.varied if name not in ("topology", "weights"))
    facets: dict[str, list[Group]] = {}
    for group in results.groups:
        facets.setdefault(group.label(apart) if apart else "", []).append(group)
    if all(len(groups) == 1 for groups in facets.values()):
        return {"": list(results.groups)}, results.varied
    return facets, tuple(name for name in results.varied if name not in apart)


def figures(results: Results) -> list[tuple[str, Figure]]:
    """Return (name, figure) for every metric that was measured and every combination of the other fields varied."""
    facets, together = facets_of(results)
    drawings: list[tuple[str, Figure]] = []
    for metric, label in METRICS:
        for number, (title, groups) in enumerate(facets.items()):
            drawn = [group for group in groups if np.isfinite(group.curves[metric]).any()]
            if drawn and len(drawings) < FIGURES_MAX:
                name = metric.replace("_", "-") + (f"-{number + 1}" if len(facets) > 1 else "")
                figure = curves_figure(drawn[:CURVES_MAX], together, metric, label, title)
                drawings.append((name, figure))
    return drawings


def curves_figure(
    groups: Sequence[Group], varied: Sequence[str], metric: str, label: str, title: str = ""
) -> Figure:
    """Draw one metric of some groups against rounds, bytes and seconds, with 95 % bands over seeds."""
    figure, axes = new_figure(13.5, 4.2, columns=3)
    for ax, (column, x_label, factor) in zip(axes, AXES, strict=True):
        for number, group in enumerate(groups):
            y, low, high = band(group.curves[metric])
            x = factor * group.curves[column].mean(axis=0)
            keep = np.isfinite(y) & (y > FLOOR * np.nanmax(y))
            style, name = LINE_STYLES[number // 10 % len(LINE_STYLES)], group.label(varied)
            ax.plot(x[keep], y[keep], style, color=f"C{number % 10}", label=name, linewidth=1.4)
            ax.fill_between(x[keep], low[keep], high[keep], color=f"C{number % 10}", alpha=0.2, linewidth=0)
        ax.set_xlabel(x_label)
        if metric != "loss":
            ax.set_yscale("log")
    axes[0].set_ylabel(label)
    add_legend(figure, axes[0])
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _page(results: Results, table: list[list[str]], pictures: dict[str, bytes]) -> str:
    finished, cells = results.manifest.get("finished"), results.manifest.get("cells")
    explanation = f"<p>{finished} of {cells} cells are finished. {EXPLANATION}</p>\n"
    parts = (explanation, html_table(table), html_pictures(pictures), html_manifest(results.manifest))
    return html_page("Convergence report", "".join(parts))
