"""The command ``robustness`` of scripts/compare.py: what liars cost, in cells that are run once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from scripts.lab.command import note


def robustness(
    *,
    out: Annotated[Path, Parameter(help="Folder of the results.")],
    part: Annotated[
        list[str] | None,
        Parameter(help="clean, two, control, three, elsewhere, rules, backdoor; default: all."),
    ] = None,
    seeds: Annotated[int, Parameter(help="Paired repetitions.")] = 3,
    jobs: Annotated[int, Parameter(help="Processes; 0 = one per core.")] = 0,
) -> None:
    """Let members of a group lie by every attack of the catalogue; write table.md and a picture.

    Broken off, even by kill -9, the same command goes on where it stopped.
    """
    from scripts.lab.progress import progress
    from scripts.lab.robustness.design import cells
    from scripts.lab.robustness.report import LAYOUT, write_report
    from scripts.lab.robustness.run import run_attacked
    from scripts.lab.sweep import run_sweep

    chosen = cells(seeds, part or ())
    with progress(len(chosen)) as on_progress:
        run_sweep(
            chosen,
            out,
            run=run_attacked,
            layout=LAYOUT,
            engine="here" if jobs == 1 else "pool",
            workers=jobs,
            request={"parts": part, "seeds": seeds},
            on_progress=on_progress,
        )
    note(f"written to {write_report(out, seeds)}")
