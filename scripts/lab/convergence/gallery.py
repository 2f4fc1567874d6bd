"""The pictures and the table of docs/topology.md and the README, made again from real runs by one command.

Ten topologies at 64 peers: drawings, linear consensus against rounds and bytes, learning with real nodes. It decides
nothing that a reader would have to know besides what the page says.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from scripts.lab.checkout import checkout
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.pictures import draw_graph
from scripts.lab.convergence.statistics import Group, band, read_results
from scripts.lab.convergence.sweep import sweep_cells
from scripts.lab.figures import add_legend, new_figure, png
from scripts.lab.files import write_file
from scripts.lab.page import markdown_table
from scripts.lab.progress import progress
from scripts.lab.spec import expand
from scripts.lab.statistics import Interval, Values
from topology.analysis import consensus_cost, measure
from topology.links import parse_topology

PEERS = 64
"""Of every run. Source: ours; a power of two and a square, so that all ten exist."""
TOPOLOGIES = (
    "ring",
    "star",
    "torus",
    "random-regular:4",
    "hypercube",
    "exponential",
    "one-peer-exponential",
    "base:1",
    "random-matching",
    "epidemic:3",
)
"""In the order of the page."""

CONSENSUS = {
    "topology": list(TOPOLOGIES),
    "peers": PEERS,
    "rounds": 10_000,
    "dimension": 64,
    "payload_mb": 4.0,
}
"""Fields of the cells that average."""

LEARNED = 64
"""Values that each peer learns."""

LEARNING = {
    "kind": "quadratic",
    "topology": list(TOPOLOGIES),
    "peers": PEERS,
    "rounds": 60,
    "dimension": LEARNED,
    "local_steps": 5,
}
"""Fields of the cells that learn."""

LEARNING_SEEDS = 3
"""Fewer than for consensus: a cell takes a second or two."""
STYLES = {"one-peer-exponential": "--", "base:1": ":", "random-matching": "--", "epidemic:3": "--"}
"""Dashes for schedules; two of them have the same curve at 64 peers and must not hide each other."""
FLOOR = 1e-7
"""Of a relative distance: less is drawn as this."""
Abscissae = Sequence[tuple[str, str, float]]
"""(column, label, factor) of each panel."""
BEGIN, END = "<!-- table: made by scripts/convergence.py gallery -->", "<!-- end of table -->"
"""Lines of a page between which its table stands."""


def targets(out: Path | None, pages: Sequence[Path] | None) -> tuple[Path, Sequence[Path]]:
    """Return the folder of the pictures and the pages of the table; by default those of our checkout.

    Raises:
        LocalError: something was not given, and we are an installed copy.
    """
    root = checkout()
    if root is None and (out is None or pages is None):
        raise LocalError(
            "this installed copy has no docs folder: give --out FOLDER and --pages FILE, or call it in a checkout"
        )
    if root is not None:
        out = root / "docs" / "images" if out is None else out
        pages = (root / "docs" / "topology.md", root / "README.md") if pages is None else pages
    assert out is not None
    assert pages is not None
    return out, pages


def make_gallery(out: Path, pages: Sequence[Path], seeds: int) -> Iterator[Path]:
    """Write the pictures into ``out``, put the table into each of ``pages``, and yield each file written.

    Raises:
        LocalError: a page has no place for the table, or a file cannot be written.
    """
    around = {page: _around_table(page) for page in pages}
    drawings = _drawings()
    write_file(out / "topologies.png", drawings)
    yield out / "topologies.png"
    with tempfile.TemporaryDirectory() as scratch:
        consensus = _run({**CONSENSUS, "seeds": seeds}, Path(scratch) / "consensus")
        axes = (("round", "rounds", 1.0), ("bytes_per_peer", "MB read per peer (4 MB an adapter)", 1e-6))
        write_file(
            out / "consensus.png",
            _curves(consensus, "consensus_distance", "consensus distance / first", axes),
        )
        yield out / "consensus.png"
        for page, (before, after) in around.items():
            write_file(page, (before + "\n".join(["", *_table(consensus), ""]) + after).encode())
            yield page
        learning = _run({**LEARNING, "seeds": LEARNING_SEEDS}, Path(scratch) / "learning")
        axes = (("round", "rounds", 1.0), ("bytes_per_peer", "MB read per peer", 1e-6))
        # alone, each ends at its own optimum: standard normal, so on average this far from the mean of all
        alone = math.sqrt(LEARNED * (1 - 1 / PEERS))
        label = "distance to the common optimum / of learning alone"
        write_file(out / "learning.png", _curves(learning, "distance_to_optimum", label, axes, alone=alone))
        yield out / "learning.png"


def _around_table(page: Path) -> tuple[str, str]:
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise LocalError(f"cannot read the page {page}: {error.strerror}") from error
    if BEGIN not in text or END not in text:
        raise LocalError(f"{page} has no place for the table: write the lines {BEGIN!r} and {END!r}")
    return text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]


def _run(fields: Mapping[str, Any], folder: Path) -> tuple[Group, ...]:
    cells = expand(fields, Cell())
    with progress(len(cells)) as on_progress:
        sweep_cells(cells, folder, on_progress=on_progress)
    return read_results(folder).groups


def _drawings() -> bytes:
    figure, axes = new_figure(12.5, 5.2, rows=2, columns=5)
    for ax, name in zip(axes, TOPOLOGIES, strict=True):
        draw_graph(ax, parse_topology(name, seed=0), PEERS, size=14.0, random_rounds=3)
        ax.set_title(name, fontsize=10)
    return png(figure, dpi=80, colors=48)


def _curves(
    groups: Sequence[Group], metric: str, label: str, abscissae: Abscissae, *, alone: float | None = None
) -> bytes:
    """Draw a metric with 95 % bands over seeds, against logarithmic abscissae.

    Args:
        alone: what 1 means, on a linear axis; None = the first value, on a logarithmic axis that ends at ``FLOOR``.
    """
    figure, panels = new_figure(11.5, 4.6, columns=len(abscissae))
    for ax, (column, x_label, factor) in zip(panels, abscissae, strict=True):
        for number, group in enumerate(groups):
            y, low, high = _relative(band(group.curves[metric]), alone)
            x = factor * group.curves[column].mean(axis=0)
            below = [] if alone else (y < FLOOR).nonzero()[0].tolist()
            drawn = slice(1, below[0] + 1 if below else None)  # row 0 has no place on a logarithmic axis
            name, color = group.fields["topology"], f"C{number}"
            ax.plot(x[drawn], y[drawn].clip(FLOOR), color=color, label=name, linestyle=STYLES.get(name, "-"))
            ax.fill_between(x[drawn], low[drawn].clip(FLOOR), high[drawn].clip(FLOOR), color=color, alpha=0.2)
        ax.set_xscale("log")
        ax.set_xlabel(x_label)
        if alone:
            ax.set_ylim(0.0, 1.0)
        else:
            ax.set_yscale("log")
    panels[0].set_ylabel(label)
    add_legend(figure, panels[0], fontsize=9)
    return png(figure, dpi=100, colors=128)


def _relative(drawn: tuple[Values, Values, Values], alone: float | None) -> tuple[Values, ...]:
    whole = alone or float(drawn[0][0])
    return tuple(values / whole for values in drawn)


def _table(groups: Sequence[Group]) -> list[str]:
    head = (
        "topology", "reads a round", "gap", "n_W(0.9)", "rounds to 1e-6, predicted", "measured", "MB per peer",
        "MB of the busiest", "error of the mean",
    )  # fmt: skip
    return markdown_table([head, *(_row(group) for group in groups)])


def _row(group: Group) -> tuple[str, ...]:
    topology = parse_topology(group.fields["topology"], seed=0)
    measures = measure(topology, PEERS)
    rounds = group.outcome("rounds_to_tolerance")
    busiest = consensus_cost(topology, PEERS, rounds.mean or 0.0, 4e6)[1]
    neighbors = measures.effective_neighbors
    error = group.outcome("final_mean_error")
    return (
        f"`{group.fields['topology']}`",
        f"{measures.reads_per_round / PEERS:.3g}",
        "" if measures.spectral_gap is None else f"{measures.spectral_gap:.4f}",
        "" if neighbors is None else f"{neighbors['0.9']:.1f}",
        f"{measures.rounds_to_tolerance:.0f}",
        _rounded(rounds),
        _rounded(group.outcome("bytes_per_peer_to_tolerance", 1e-6)),
        f"{busiest / 1e6:.0f}",
        "0" if (error.mean or 0.0) < 1e-9 else f"{error.mean:.2f}",
    )


def _rounded(value: Interval) -> str:
    if value.mean is None:
        return str(value)
    return f"{value.mean:.0f}" if not value.half else f"{value.mean:.0f} ± {value.half:.0f}"
