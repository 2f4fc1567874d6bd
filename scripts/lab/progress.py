"""Progress of a sweep on stderr: a bar with an estimate on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scripts.lab.convergence.cell import Cell
from scripts.lab.sweep import OnCell

BAR_WIDTH = 30


def title_of(cell: Cell) -> str:
    """Return a cell in a few words."""
    return f"{cell.kind} {cell.topology} n={cell.peers} seed={cell.seed}"


@contextmanager
def progress(total: int, title: Callable[[Any], str] = title_of) -> Iterator[OnCell]:
    """Yield what ``run_sweep`` calls after each cell; the estimate counts only cells that were run here.

    Args:
        title: names a cell.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title)
        return
    columns = (BarColumn(BAR_WIDTH), MofNCompleteColumn(), Elapsed(), TextColumn("left"), Remaining())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=total)

        def on_cell(done: int, total: int, cell: Any) -> None:
            bar.update(task, completed=done, description=title(cell) if cell else "")
            if cell is None:
                bar.reset(task, completed=done, total=total)

        yield on_cell


class _Lines:
    """One line per cell: how many of all, what it was, and how long the rest may take."""

    def __init__(self, title: Callable[[Any], str]) -> None:
        self._title = title
        self._began, self._before = time.monotonic(), 0

    def __call__(self, done: int, total: int, cell: Any) -> None:
        if cell is None:
            self._began, self._before = time.monotonic(), done
            text = f"{done} of {total} cells were finished before"
        else:
            left_s = (time.monotonic() - self._began) / (done - self._before) * (total - done)
            text = f"{done}/{total} {self._title(cell)}, about {left_s:.0f} s left"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
