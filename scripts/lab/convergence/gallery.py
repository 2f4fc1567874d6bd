"""The pictures and the table of docs/topology.md, made again from real runs by one command.

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
from scripts.lab.progress import progress
from scripts.lab.records import Record, Value, value_of, write_record
from scripts.lab.spec import expand
from scripts.lab.statistics import Values
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
DIGITS = {
    "reads a round": None,
    "gap": 4,
    "n_W(0.9)": 1,
    "rounds to 1e-6, predicted": 0,
    "measured": 0,
    "MB per peer": 0,
    "MB of the busiest": 0,
    "error of the mean": 2,
}
"""Columns of the page's table -> digits behind the point; None = four significant ones."""


def targets(out: Path | None, record: Path | None) -> tuple[Path, Path]:
    """Return the folder of the pictures and the file of the table's record; by default those of our checkout.

    Raises:
        LocalError: something was not given, and we are an installed copy.
    """
    root = checkout()
    if root is None and (out is None or record is None):
        raise LocalError(
            "this installed copy has no docs folder: give --out FOLDER and --record FILE, or call it in a checkout"
        )
    if root is not None:
        out = root / "docs" / "images" if out is None else out
        record = root / "docs" / "records" / "topologies.json" if record is None else record
    assert out is not None
    assert record is not None
    return out, record


def make_gallery(out: Path, record: Path, seeds: int) -> Iterator[Path]:
    """Write the pictures into ``out``, the table as a record, and yield each file written.

    Raises:
        LocalError: a file cannot be written.
    """
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
        write_record(record, record_of_consensus(consensus))
        yield record
        learning = _run({**LEARNING, "seeds": LEARNING_SEEDS}, Path(scratch) / "learning")
        axes = (("round", "rounds", 1.0), ("bytes_per_peer", "MB read per peer", 1e-6))
        # alone, each ends at its own optimum: standard normal, so on average this far from the mean of all
        alone = math.sqrt(LEARNED * (1 - 1 / PEERS))
        label = "distance to the common optimum / of learning alone"
        write_file(out / "learning.png", _curves(learning, "distance_to_optimum", label, axes, alone=alone))
        yield out / "learning.png"


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


def record_of_consensus(groups: Sequence[Group]) -> Record:
    """Return the table of the page as a record."""
    rows = {group.fields["topology"]: dict(zip(DIGITS, _row(group), strict=True)) for group in groups}
    return Record(
        title=f"Ten topologies at {PEERS} peers: averaging",
        command="python scripts/convergence.py gallery",
        columns=tuple(DIGITS),
        rows=rows,
        heading="topology",
        titles={name: f"`{name}`" for name in rows},
        digits={column: digits for column, digits in DIGITS.items() if digits is not None},
    )


def _row(group: Group) -> tuple[Value, ...]:
    topology = parse_topology(group.fields["topology"], seed=0)
    measures = measure(topology, PEERS)
    rounds = group.outcome("rounds_to_tolerance")
    busiest = consensus_cost(topology, PEERS, rounds.mean or 0.0, 4e6)[1]
    neighbors = measures.effective_neighbors
    error = group.outcome("final_mean_error").mean or 0.0
    return (
        measures.reads_per_round / PEERS,
        measures.spectral_gap,
        None if neighbors is None else neighbors["0.9"],
        measures.rounds_to_tolerance,
        value_of(rounds),
        value_of(group.outcome("bytes_per_peer_to_tolerance", 1e-6)),
        busiest / 1e6,
        0 if error < 1e-9 else error,
    )
