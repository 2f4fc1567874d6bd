"""Sweeps of cells: how their results lie on disk, and who runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.lab.convergence.cell import FORMAT, Cell
from scripts.lab.convergence.result import COLUMNS, OUTCOMES
from scripts.lab.convergence.run import run_cell
from scripts.lab.results import ResultLayout, runs_schema, table_schema
from scripts.lab.sweep import OnProgress, run_sweep

WHOLE = ("round", "peers", "rounds_done", "rounds_to_tolerance", "events")
"""Columns that are whole numbers."""

CELL_LAYOUT = ResultLayout(
    {"rounds": table_schema(COLUMNS, WHOLE)}, runs_schema(Cell(), OUTCOMES, WHOLE, ("log_hash",)), FORMAT
)
"""``rounds``: a row is one round of one cell. ``runs``: a row is one cell, its spec, then its outcomes."""


def sweep_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    engine: str = "pool",
    workers: int = 0,
    request: dict[str, Any] | None = None,
    on_progress: OnProgress = lambda finished, total, cell: None,
) -> int:
    """Run the cells that are not finished yet, then join all results; see ``run_sweep`` of ``scripts/lab/sweep.py``.

    Returns:
        How many were finished before.
    """
    return run_sweep(
        cells,
        out,
        run=run_cell,
        layout=CELL_LAYOUT,
        engine=engine,
        workers=workers,
        request=request,
        on_progress=on_progress,
    )
