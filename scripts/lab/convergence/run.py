"""Runs one cell: from a spec to a table of rounds and one record of outcomes. Pure: equal specs, equal results.

What a kind needs is imported when a cell of it is run. It writes no file, reads no clock and prints nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.lab.convergence.cell import Cell, topology_errors

if TYPE_CHECKING:
    from scripts.lab.convergence.result import CellResult


def run_cell(cell: Cell) -> CellResult:
    """Run one cell, whatever its kind.

    Raises:
        LocalError: the spec cannot run; ``Cell.check`` tells before.
    """
    with topology_errors():
        match cell.kind:
            case "consensus":
                from scripts.lab.convergence.consensus import run_consensus_cell

                return run_consensus_cell(cell)
            case "quadratic":
                from scripts.lab.convergence.learning import run_quadratic_cell

                return run_quadratic_cell(cell)
            case "tiny":
                from scripts.lab.convergence.tiny import run_tiny_cell

                return run_tiny_cell(cell)
        raise AssertionError(f"a cell of the kind {cell.kind!r} cannot be")
