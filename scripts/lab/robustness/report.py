"""Tables and picture of the experiment on robustness: honest loss against that of the same peers where nobody lies.

Differences are taken seed by seed and peer by peer: a liar's text is missing in both. It runs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from gossip.attacks import ATTACKS as ON_VALUES
from gossip.errors import LocalError
from scripts.lab.figures import new_figure, png
from scripts.lab.files import write_file
from scripts.lab.page import Rows, markdown_table
from scripts.lab.results import ResultFolder, ResultLayout, runs_schema, table_schema
from scripts.lab.robustness.cell import ALONE, FORMAT, OUTCOMES, PEER_COLUMNS, Attacked
from scripts.lab.robustness.design import ATTACKS, CLASSIFYING, FEW, PARTITIONS, PLANTED, RULES, TOPOLOGIES
from scripts.lab.statistics import Values

LAYOUT = ResultLayout(
    {"peers": table_schema(PEER_COLUMNS, ("peer",))}, runs_schema(Attacked(), OUTCOMES), FORMAT
)
"""``peers``: a row is one peer of one cell. ``runs``: a row is one cell, its spec, then its outcomes."""

SAYS = {"natural": "a language each", "iid": "all alike", "default": "the default"}
"""How tables call what cells name."""
TRAINING_ATTACKS = {"ascent": "gradient ascent", "label-flip": "label flip: learns C - 1 - y for y"}
"""Attack on training -> one line for tables."""
PICTURED = (
    (2, "default", "the default, 2 of 10 lie"),
    (3, "default", "the default, 3 of 10 lie"),
    (2, "unguarded", "unguarded, 2 of 10 lie"),
)
"""(liars, guard, label) of the picture's points."""
TICKS = (-1, 0, 1, 3, 10, 30, 100)
"""Percent that the picture's axis names."""


class Spread(NamedTuple):
    """Percent above the clean run, over the seeds.

    Args:
        mean, least, most: of the seeds; NaN without any.
        seeds: how many.
    """

    mean: float
    least: float
    most: float
    seeds: int

    def __str__(self) -> str:
        if not self.seeds:
            return ""
        if self.seeds == 1:
            return f"{self.mean:.1f} (one seed)"
        return f"{self.mean:.1f} ({self.least:.1f} to {self.most:.1f})"


class Results:
    """What is finished of the experiment.

    Args:
        folder: of the results.
        seeds: how many to look for.
    """

    def __init__(self, folder: Path, seeds: int) -> None:
        self._folder, self._seeds = ResultFolder(folder, LAYOUT), seeds

    def seeds(self, cell: Attacked) -> list[Attacked]:
        """Return a cell with each seed for which it is finished."""
        every = (dataclasses.replace(cell, seed=seed) for seed in range(self._seeds))
        return [cell for cell in every if self._folder.is_finished(cell)]

    def outcome(self, cell: Attacked, name: str) -> float | None:
        """Return the mean of an outcome over the seeds; None = nothing is finished, or it has no meaning."""
        found = [self._folder.outcome(each)[name] for each in self.seeds(cell)]
        return fmean(found) if found and None not in found else None

    def above_clean(self, cell: Attacked, column: str, clean: Attacked) -> Spread:
        """Return by how many percent the honest peers' mean loss is above that of the same peers in a clean run.

        Args:
            column: ``loss`` or ``merged_loss``.
            clean: the cell to compare with, of any seed.
        """
        percent = []
        for each in self.seeds(cell):
            usual = dataclasses.replace(clean, seed=each.seed)
            if self._folder.is_finished(usual):
                ours, theirs = self._losses(each, column), self._losses(usual, column)
                honest = np.isfinite(ours)
                percent.append(100 * (float(ours[honest].mean()) / float(theirs[honest].mean()) - 1))
        if not percent:
            return Spread(math.nan, math.nan, math.nan, 0)
        return Spread(fmean(percent), min(percent), max(percent), len(percent))

    def _losses(self, cell: Attacked, column: str) -> Values:
        table = pq.read_table(self._folder.path / "cells" / cell.name() / "peers.parquet")
        return np.asarray(table.column(column).to_numpy(zero_copy_only=False), dtype=np.float64)


def write_report(folder: Path, seeds: int) -> Path:
    """Write ``table.md`` and ``robustness.png`` of what is finished; return the former.

    Raises:
        LocalError: nothing is finished.
    """
    results = Results(folder, seeds)
    made = [(title, make(results)) for title, make in TABLES.items()]
    shown = [(title, rows) for title, rows in made if len(rows) > 1]
    if not shown:
        raise LocalError(f"{folder} holds no finished results")
    text = "\n\n".join("\n".join([f"**{title}**", "", *markdown_table(rows)]) for title, rows in shown)
    write_file(folder / "robustness.png", _picture(results))
    write_file(folder / "table.md", f"{text}\n".encode())
    return folder / "table.md"


# -- tables


def _says(attack: str) -> str:
    return f"{attack}: {ON_VALUES[attack].doc}" if attack in ON_VALUES else TRAINING_ATTACKS[attack]


def _clean_table(results: Results) -> Rows:
    """What the default costs where nobody lies: against the same runs without a robust rule."""
    rows = [["topology", "text", "before the merge, %", "after, %", "checks a round"]]
    for partition in PARTITIONS:
        for topology in TOPOLOGIES:
            ours = Attacked(topology=topology, partition=partition)
            without = dataclasses.replace(ours, guard="none")
            costs = [str(results.above_clean(ours, column, without)) for column in ("loss", "merged_loss")]
            if all(costs):
                rows.append(
                    [f"`{topology}`", SAYS[partition], *costs, f"{results.outcome(ours, 'checks'):.2f}"]
                )
    return rows


def _attacked_table(results: Results, *, liars: int, column: str) -> Rows:
    places = [
        Attacked(topology=topology, partition=partition)
        for topology in TOPOLOGIES
        for partition in PARTITIONS
    ]
    heading = [f"`{place.topology}`, {SAYS[place.partition]}" for place in places]
    control = Attacked(guard="unguarded")
    rows = [["attack", *heading, *(["unguarded, the first of these"] if liars == 2 else [])]]
    for attack in ATTACKS:
        cells = [str(_attacked(results, place, attack, liars, column)) for place in places]
        if liars == 2:
            cells.append(str(_attacked(results, control, attack, liars, column)))
        if any(cells):
            rows.append([_says(attack), *cells])
    return rows


def _attacked(results: Results, cell: Attacked, attack: str, liars: int, column: str) -> Spread:
    """Return the percent above the clean run with the default guard at the same place."""
    lying = dataclasses.replace(cell, attack=attack, liars=liars)
    return results.above_clean(lying, column, dataclasses.replace(cell, guard="default"))


def _elsewhere_table(results: Results) -> Rows:
    rows = [["where", "nobody lies, %", *(f"{attack}, %" for attack in FEW)]]
    for cell in (
        Attacked(topology="ring"),
        Attacked(topology="ring", guard="trim-clip"),
        Attacked(topology="epidemic:3"),
    ):
        clean = dataclasses.replace(cell, guard="default")
        cost = str(results.above_clean(cell, "loss", clean)) if cell != clean else "0"
        lying = [str(_attacked(results, cell, attack, 2, "loss")) for attack in FEW]
        if any(lying):
            forced = "" if cell.guard == "default" else f", `--robust {cell.guard}`"
            rows.append([f"`{cell.topology}`{forced}", cost, *lying])
    return rows


def _rules_table(results: Results) -> Rows:
    rows = [["rule", "nobody lies, %", *(f"{attack}, %" for attack in FEW)]]
    clean = Attacked(guard="none")
    for guard in ("default", *RULES):
        cell = Attacked(guard=guard)
        attacked = [dataclasses.replace(cell, attack=attack, liars=2) for attack in FEW]
        shown = [str(results.above_clean(each, "loss", clean)) for each in (cell, *attacked)]
        if all(shown):
            rows.append([SAYS.get(guard, f"`{guard}`"), *shown])
    return rows


def _backdoor_table(results: Results) -> Rows:
    rows = [["peers", "accuracy, %", "backdoor opens, %", "accuracy after the merge, %", "backdoor opens, %"]]
    alone = dataclasses.replace(CLASSIFYING, topology=ALONE, attack="backdoor", liars=2)
    names = ("accuracy", "success", "merged_accuracy", "merged_success")
    _add_shares(rows, results, alone, "a liar alone", ("liar_accuracy", "liar_success"))
    _add_shares(rows, results, alone, "an honest peer alone", names[:2])
    for guard in ("default", "unguarded"):
        clean = dataclasses.replace(CLASSIFYING, guard=guard)
        _add_shares(rows, results, clean, f"{SAYS.get(guard, guard)}, nobody lies", names)
        for attack in PLANTED:
            lying = dataclasses.replace(clean, attack=attack, liars=2)
            _add_shares(rows, results, lying, f"{SAYS.get(guard, guard)}, 2 of 8 plant: {attack}", names)
    return rows


def _add_shares(
    rows: list[list[str]], results: Results, cell: Attacked, title: str, names: Sequence[str]
) -> None:
    found = [results.outcome(cell, name) for name in names]
    if None not in found:
        shown = [f"{100 * share:.1f}" for share in found if share is not None]
        rows.append([title, *shown, *[""] * (len(rows[0]) - 1 - len(shown))])


TABLES: dict[str, Callable[[Results], Rows]] = {
    "Nobody lies: honest loss above that without a robust rule": _clean_table,
    "Two of ten lie, before the merge": partial(_attacked_table, liars=2, column="loss"),
    "Two of ten lie, after the merge": partial(_attacked_table, liars=2, column="merged_loss"),
    "Three of ten lie, before the merge": partial(_attacked_table, liars=3, column="loss"),
    "Three of ten lie, after the merge": partial(_attacked_table, liars=3, column="merged_loss"),
    "Rows of fewer than four, two of ten lie": _elsewhere_table,
    "Other rules, two of ten lie, against no rule and no liar": _rules_table,
    "A backdoor": _backdoor_table,
}
"""Tables by title, in order."""


# -- the picture


def _picture(results: Results) -> bytes:
    """Draw the loss above the clean run under each attack: means over the seeds, and their range."""
    figure, (axes,) = new_figure(9.0, 4.6)
    for place, (liars, guard, label) in enumerate(PICTURED):
        spreads = [_attacked(results, Attacked(guard=guard), attack, liars, "loss") for attack in ATTACKS]
        y = np.arange(len(ATTACKS)) + 0.22 * (1 - place)
        x = np.array([spread.mean for spread in spreads])
        reach = np.abs(np.array([[s.mean - s.least, s.most - s.mean] for s in spreads]).T)
        axes.errorbar(x, y, xerr=reach, fmt="osD"[place], color=f"C{place}", label=label, markersize=4)
    axes.axvspan(-1.0, 1.0, color="0.9", zorder=0)
    axes.set_xscale("symlog", linthresh=2.0)
    axes.set_xticks(TICKS, map(str, TICKS))
    axes.set_yticks(range(len(ATTACKS)), ATTACKS)
    axes.invert_yaxis()
    axes.set_xlabel("honest held-out loss above the clean run, % (random-regular:4, a language each)")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return png(figure, colors=64)
