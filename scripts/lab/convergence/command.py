"""How fast topologies converge: figures of one, consensus and learning, whole sweeps with reports.

    python scripts/convergence.py show hypercube --peers 16 --out pictures
    python scripts/convergence.py consensus ring base:1 epidemic:3 --peers 64 --seeds 5 --out runs/first
    python scripts/convergence.py learn ring torus --peers 16 --local-steps 10 --loss 0.05
    python scripts/convergence.py sweep spec.toml --out runs/sweep
    python scripts/convergence.py report runs/sweep

A sweep's TOML file holds the fields of a cell (scripts/lab/convergence/cell.py); every one may be a list.
"""

from __future__ import annotations

import json as json_text
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from scripts.lab.command import note
from scripts.lab.convergence.cell import Cell
from scripts.lab.program import program, run_program
from scripts.lab.spec import expand, read_grid

app = App(
    name="python scripts/convergence.py",
    help=__doc__,
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True, show_env_var=False),
)

Engine = Literal["pool", "here", "ray"]
Topologies = Annotated[
    list[str], Parameter(help="Names with parameters: ring, torus:4x8, base:1, graph:FILE ...")
]
OutOption = Annotated[Path | None, Parameter(help="Folder for Parquet files, to be read by report.")]
SeedsOption = Annotated[int, Parameter(help="Paired repetitions: seeds 0, 1, 2 ...")]
WorkersOption = Annotated[int, Parameter(help="Processes; 0 = one per core.")]


@app.command
def show(
    name: str,
    *,
    peers: int,
    weights: str = "metropolis-hastings",
    seed: int = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object and nothing else.")] = False,
    out: Annotated[Path | None, Parameter(help="Folder for a PNG: W, the graph, the spectrum.")] = None,
    graphml: Annotated[Path | None, Parameter(help="Write the graph to this file.")] = None,
    gexf: Annotated[
        Path | None, Parameter(help="Write the graph to this file, schedules with time spells.")
    ] = None,
) -> None:
    """Show one topology: spectral gap, effective neighbors, predicted rounds, guarantees."""
    from scripts.lab.convergence.record import checked_topology, lines, measured, record

    topology = checked_topology(name, peers, weights, seed)
    measures = measured(topology, peers)
    print(json_text.dumps(record(measures)) if json else "\n".join(lines(topology, measures)))
    for target, kind in ((graphml, "graphml"), (gexf, "gexf")):
        if target is not None:
            from scripts.lab.convergence.pictures import write_graph

            write_graph(topology, peers, target, kind)
            note(f"written to {target}")
    if out is not None:
        from scripts.lab.convergence.pictures import draw_topology

        plain = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in Path(name).name)
        draw_topology(topology, peers, out / f"{plain}-{peers}.png")
        note(f"written to {out / f'{plain}-{peers}.png'}")


@app.command
def consensus(
    topologies: Topologies,
    *,
    peers: int,
    weights: str = Cell().weights,
    rounds: int = Cell().rounds,
    tolerance: float = Cell().tolerance,
    loss: float = Cell().loss,
    churn: float = Cell().churn,
    dimension: int = Cell().dimension,
    payload_mb: float = Cell().payload_mb,
    latency_s: float = Cell().latency_s,
    bandwidth_mbit: float = Cell().bandwidth_mbit,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    out: OutOption = None,
) -> None:
    """Average random values until all agree: linear consensus, the pure question."""
    fields = {**locals(), "kind": "consensus"}
    _run(fields, out, workers)


@app.command
def learn(
    topologies: Topologies,
    *,
    peers: int,
    model: Literal["quadratic", "tiny"] = "quadratic",
    weights: str = Cell().weights,
    rounds: int = Cell().rounds,
    local_steps: int = Cell().local_steps,
    step_size: float = Cell().step_size,
    heterogeneity: float = Cell().heterogeneity,
    dimension: int = Cell().dimension,
    codec: str = Cell().codec,
    mixing: str = Cell().mixing,
    collect_s: float = Cell().collect_s,
    tolerance: float = Cell().tolerance,
    loss: float = Cell().loss,
    churn: float = Cell().churn,
    latency_s: float = Cell().latency_s,
    bandwidth_mbit: float = Cell().bandwidth_mbit,
    seeds: SeedsOption = 1,
    workers: WorkersOption = 0,
    out: OutOption = None,
) -> None:
    """Learn with the real node, wire and codec: quadratics whose optimum is known, or a tiny language model."""
    fields = {**locals(), "kind": model}
    del fields["model"]
    _run(fields, out, workers)


@app.command
def sweep(
    spec: Annotated[Path, Parameter(help="TOML file: fields of a cell, each a value or a list.")],
    *,
    out: Annotated[
        Path | None, Parameter(help="Folder of the results; default: runs/NAME of the file.")
    ] = None,
    engine: Engine = "pool",
    workers: WorkersOption = 0,
) -> None:
    """Run a grid of cells. Broken off, even by kill -9, the same command goes on where it stopped."""
    cells, target = read_grid(spec, Cell()), out or Path("runs") / spec.stem
    _sweep(cells, target, engine, workers, {"file": spec.name, "text": spec.read_text(encoding="utf-8")})
    note(f"results in {target}; now: {program()} report {target}")


@app.command
def report(folder: Path) -> None:
    """Print the table of a sweep and write its plots: PNG files and one self-contained report.html."""
    from scripts.lab.convergence.report import write_report

    target, table = write_report(folder)
    print("\n".join(table))
    note(f"written to {target}")


@app.command
def gallery(
    *,
    out: Annotated[
        Path | None, Parameter(help="Folder of the pictures; default: docs/images of the checkout.")
    ] = None,
    record: Annotated[
        Path | None, Parameter(help="File of the table's figures; default: docs/records/topologies.json.")
    ] = None,
    seeds: SeedsOption = 10,
) -> None:
    """Make the pictures of docs/topology.md again, and the figures of its table.

    Then `python -m scripts.lab.evidence` puts the figures on the pages.
    """
    from scripts.lab.convergence.gallery import make_gallery, targets

    for written in make_gallery(*targets(out, record), seeds):
        note(f"written to {written}")


def _run(fields: dict[str, Any], out: Path | None, workers: int) -> None:
    """Run the cells of a command and print its table; without --out nothing stays on disk."""
    from scripts.lab.convergence.report import outcome_table
    from scripts.lab.convergence.statistics import read_results
    from scripts.lab.page import text_table

    fields["topology"] = fields.pop("topologies")
    request = {name: value for name, value in fields.items() if name not in ("out", "workers")}
    cells = expand(request, Cell())
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        engine = "here" if workers == 1 or len(cells) <= 2 else "pool"
        _sweep(cells, folder, engine, workers, request)
        print("\n".join(text_table(outcome_table(read_results(folder)))))
    if out is not None:
        note(f"results in {out}; plots: {program()} report {out}")


def _sweep(cells: Sequence[Cell], out: Path, engine: str, workers: int, request: dict[str, Any]) -> None:
    from scripts.lab.convergence.sweep import sweep_cells
    from scripts.lab.progress import progress

    with progress(len(cells)) as on_progress:
        sweep_cells(cells, out, engine=engine, workers=workers, request=request, on_progress=on_progress)


def main(words: Sequence[str] | None = None, called: str | None = None) -> int:
    """Run one command and return its exit code; ``called``: how, if not as the script."""
    return run_program(app, words, called=called, extra="research")
