"""Runs a comparison: tunes every method's learning rate, then compares on other seeds.

All methods begin with the same grid of rates; as long as a method's best rate is at an edge of its grid, the next rate
beyond it is tried, too. Trials run in the process pool of ``sweep.py`` and are kept as cells are: broken off, even by
kill -9, the same command goes on where it stopped. Which rates to try is decided from what is on disk, so it comes out
the same again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
        Trial(workload=""),
        OUTCOMES,
        ("diverged", "rows_least", "rows_most", "best_round", "last_round", "events"),
        ("log_hash",),
    ),
    FORMAT,
)
"""How results of trials lie on disk."""


class Tuned(NamedTuple):
    """What the tuning of a comparison came to.

    Attributes:
        rates: method -> the learning rate taken.
        grid: method -> learning rate -> mean validation loss; empty if nothing was tuned.
    """

    rates: dict[str, float]
    grid: Mapping[str, Mapping[float, float]]

    def says(self, method: str) -> str:
        """Return the line that tells of a method's rate, and where the search stopped at a bound."""
        line = f"learning rate {self.rates[method]:g}: {method}"
        if not at_edge(self.grid.get(method, {}), self.rates[method]):
            return line
        return f"{line} (the edge of the widest grid: a better one may lie beyond)"


def at_edge(losses: Mapping[float, float], rate: float) -> bool:
    """Tell whether a rate is the least or the greatest of those tried."""
    return len(losses) > 1 and rate in (min(losses), max(losses))


def work(trial: Trial) -> TrialResult:
    """Run one trial, importing only then what that takes."""
    from scripts.lab.comparison.run import run_trial

    return run_trial(trial)


def run_comparison(
    comparison: Comparison, out: Path, *, workers: int = 0, engine: str = "pool", on_phase: OnPhase
) -> Tuned:
    """Run all trials that are not finished yet, then join all results.

    Args:
        workers, engine: as ``run_sweep`` takes them.
        on_phase: told of each sweep before it begins.

    Raises:
        LocalError: a trial cannot run (all are checked first), the folder is in use, or a method diverges at every
            learning rate.
    """
    rates = dict.fromkeys(comparison.all_methods(), comparison.learning_rates[0])
    for trial in comparison.evaluation(rates):
        trial.check()
    request = {"comparison": dataclasses.asdict(comparison), "command": comparison.command(out)}

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

    tuning: list[Trial] = []
    losses: Mapping[str, Mapping[float, float]] = {}
    if comparison.searches:
        base = sorted(set(comparison.learning_rates))
        grids = dict.fromkeys(comparison.all_methods(), base)
        while (trials := comparison.tuning(grids)) != tuning:
            run(trials, "tuning learning rates" + (", beyond the grid" if tuning else ""), request)
            folder, tuning = ResultFolder(out, TRIAL_LAYOUT), trials
            losses = grid_of([(trial, folder.outcome(trial)["validation_loss"]) for trial in tuning])
            grids = wider_grids(losses, base, comparison.widenings)
        rates = choose_rates(losses)
    run([*tuning, *comparison.evaluation(rates)], "comparing", {**request, "learning_rates": rates})
    return Tuned(rates, losses)


def wider_grids(
    losses: Mapping[str, Mapping[float, float]], base: Sequence[float], widenings: int
) -> dict[str, list[float]]:
    """Return each method's grid, with the next rate beyond an edge where the best rate of those tried lies.

    Args:
        losses: as ``grid_of`` gives them; infinite = diverged.
        base: the grid that all began with, ascending, at least two rates; its outer steps are those of the widening.
        widenings: so many rates beyond an edge at most.
    """
    return {method: _wider(tried, base, widenings) for method, tried in losses.items()}


def _wider(tried: Mapping[float, float], base: Sequence[float], widenings: int) -> list[float]:
    grid, best = sorted(tried), best_rate(tried)
    below = [_rounded(base[0] * (base[0] / base[1]) ** step) for step in range(1, widenings + 1)]
    above = [_rounded(base[-1] * (base[-1] / base[-2]) ** step) for step in range(1, widenings + 1)]
    beyond: list[float] = []
    if best == grid[0]:
        beyond = [rate for rate in below if rate < grid[0]][:1]
    if best == grid[-1]:
        beyond += [rate for rate in above if rate > grid[-1]][:1]
    return sorted([*grid, *beyond])


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")  # 0.064, not 0.064000000001: rates are part of what results are kept under


def best_rate(losses: Mapping[float, float]) -> float:
    """Return the rate with the least loss, of equal ones the smaller."""
    return min(losses, key=lambda rate: (losses[rate], rate))


def choose_rates(grid: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """Return each method's learning rate with the least loss.

    Args:
        grid: as ``grid_of`` gives it.

    Raises:
        LocalError: a method diverged at every rate.
    """
    rates = {}
    for method, losses in grid.items():
        rates[method] = best_rate(losses)
        if not math.isfinite(losses[rates[method]]):
            tried = ", ".join(f"{rate:g}" for rate in losses)
            raise LocalError(
                f"method {method!r} diverges at every learning rate of {tried}: give smaller ones as well"
            )
    return rates


def grid_of(finals: Sequence[tuple[Trial, float | None]]) -> Mapping[str, dict[float, float]]:
    """Return method -> learning rate -> mean validation loss over seeds, rates ascending; infinite where one diverged.

    Args:
        finals: trials with their validation losses; None = diverged, which rules the rate out.
    """
    losses: dict[str, dict[float, list[float]]] = {}
    for trial, loss in finals:
        rates = losses.setdefault(trial.method, {})
        rates.setdefault(trial.learning_rate, []).append(math.inf if loss is None else loss)
    return {
        method: {rate: math.fsum(rates[rate]) / len(rates[rate]) for rate in sorted(rates)}
        for method, rates in losses.items()
    }
