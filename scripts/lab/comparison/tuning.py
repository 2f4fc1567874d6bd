"""Runs a comparison: tunes every method's learning rate on the same grid, then compares on other seeds.

Trials run in the process pool of ``sweep.py`` and are kept as cells are: broken off, even by kill -9, the
same command goes on where it stopped. Learning rates are chosen from what is on disk, so they come out the same again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossip.errors import LocalError
from scripts.lab.comparison.design import Comparison
from scripts.lab.comparison.trial import COLUMNS, FORMAT, OUTCOMES, PEER_COLUMNS, Trial
from scripts.lab.results import ResultFolder, ResultLayout, runs_schema, table_schema
from scripts.lab.sweep import OnProgress, run_sweep

if TYPE_CHECKING:
    from scripts.lab.comparison.record import TrialResult

OnPhase = Callable[[str, int], AbstractContextManager[OnProgress]]
"""``(what begins, number of trials) -> context manager that yields what run_sweep calls``."""

TRIAL_LAYOUT = ResultLayout(
    {
        "rounds": table_schema(COLUMNS, ("round", "merging", "steps")),
        "peers": table_schema(PEER_COLUMNS, ("round", "peer")),
    },
    runs_schema(
        Trial(workload=""), OUTCOMES, ("diverged", "rows_least", "rows_most", "events"), ("log_hash",)
    ),
    FORMAT,
)
"""How results of trials lie on disk."""


def work(trial: Trial) -> TrialResult:
    """Run one trial, importing only then what that takes."""
    from scripts.lab.comparison.run import run_trial

    return run_trial(trial)


def run_comparison(
    comparison: Comparison, out: Path, *, workers: int = 0, engine: str = "pool", on_phase: OnPhase
) -> dict[str, float]:
    """Run all trials that are not finished yet, then join all results.

    Args:
        workers, engine: as ``run_sweep`` takes them.
        on_phase: told of each sweep before it begins.

    Returns:
        The learning rate chosen for each method.

    Raises:
        LocalError: a trial cannot run (all are checked first), the folder is in use, or a method diverges at every
            learning rate.
    """
    rates = dict.fromkeys(comparison.all_methods(), comparison.learning_rates[0])
    for trial in comparison.evaluation(rates):
        trial.check()

    def run(trials: Sequence[Trial], phase: str, request: dict[str, Any]) -> None:
        with on_phase(phase, len(trials)) as on_progress:
            run_sweep(
                trials,
                out,
                run=work,
                layout=TRIAL_LAYOUT,
                engine=engine,
                workers=workers,
                request=request,
                on_progress=on_progress,
            )

    request = {"comparison": dataclasses.asdict(comparison), "command": comparison.command(out)}
    tuning = comparison.tuning()
    if tuning:
        run(tuning, "tuning learning rates", request)
        folder = ResultFolder(out, TRIAL_LAYOUT)
        rates = choose_rates([(trial, folder.outcome(trial)["final_loss"]) for trial in tuning])
    run([*tuning, *comparison.evaluation(rates)], "comparing", {**request, "learning_rates": rates})
    return rates


def choose_rates(finals: Sequence[tuple[Trial, float | None]]) -> dict[str, float]:
    """Return each method's learning rate with the least final loss, mean over seeds; of equal ones the smaller.

    Args:
        finals: trials with their final losses; None = diverged, which rules the rate out.

    Raises:
        LocalError: a method diverged at every rate.
    """
    rates = {}
    for method, losses in grid_of(finals).items():
        best = min(losses, key=lambda rate: (losses[rate], rate))
        if not math.isfinite(losses[best]):
            tried = ", ".join(f"{rate:g}" for rate in losses)
            raise LocalError(
                f"method {method!r} diverges at every learning rate of {tried}: give smaller ones as well"
            )
        rates[method] = best
    return rates


def grid_of(finals: Sequence[tuple[Trial, float | None]]) -> Mapping[str, dict[float, float]]:
    """Return method -> learning rate -> mean final loss over seeds, rates ascending; infinite where one diverged."""
    losses: dict[str, dict[float, list[float]]] = {}
    for trial, loss in finals:
        rates = losses.setdefault(trial.method, {})
        rates.setdefault(trial.learning_rate, []).append(math.inf if loss is None else loss)
    return {
        method: {rate: math.fsum(rates[rate]) / len(rates[rate]) for rate in sorted(rates)}
        for method, rates in losses.items()
    }
