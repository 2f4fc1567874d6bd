"""Progress of a sweep on stderr: a bar with an estimate on a terminal, a line per spec elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.lab.spec import Spec
from scripts.lab.sweep import OnProgress

BAR_WIDTH = 30
"""Characters. Source: ours; leaves room for a title on 80 columns."""


@contextmanager
def progress(total: int) -> Iterator[OnProgress]:
    """Yield what ``run_sweep`` calls after each spec; the estimate counts only those that were run here."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (BarColumn(BAR_WIDTH), MofNCompleteColumn(), Elapsed(), TextColumn("left"), Remaining())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=total)

        def on_progress(finished: int, total: int, spec: Spec | None) -> None:
            bar.update(task, completed=finished, description=spec.title() if spec else "")
            if spec is None:
                bar.reset(task, completed=finished, total=total)

        yield on_progress


class _Lines:
    """One line per spec: how many of all, what it was, and how long the rest may take."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), 0

    def __call__(self, finished: int, total: int, spec: Spec | None) -> None:
        if spec is None:
            self._began, self._before = time.monotonic(), finished
            text = f"{finished} of {total} cells were finished before"
        else:
            spec_s = (time.monotonic() - self._began) / (finished - self._before)
            text = f"{finished}/{total} {spec.title()}, about {spec_s * (total - finished):.0f} s left"
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
