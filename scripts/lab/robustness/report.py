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
from scripts.lab.records import Value, record_of_table, shown, table_of, write_record
from scripts.lab.results import ResultFolder, ResultLayout, runs_schema, table_schema
from scripts.lab.robustness.cell import ALONE, FORMAT, OUTCOMES, PEER_COLUMNS, Attacked
from scripts.lab.robustness.design import ATTACKS, CLASSIFYING, FEW, PARTITIONS, PLANTED, RULES, TOPOLOGIES
from scripts.lab.statistics import Values

LAYOUT = ResultLayout(
    {"peers": table_schema(PEER_COLUMNS, ("peer",))}, runs_schema(Attacked(), OUTCOMES), FORMAT
)
"""``peers``: a row is one peer of one cell. ``runs``: a row is one cell, its spec, then its outcomes."""

DIGITS = 1
"""Behind the point of percent."""
COMMAND = "python scripts/compare.py robustness --out runs/robustness"
"""That made the records."""
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
Rows = list[list[Value]]
"""Values of a table, row by row, the heading first; each row begins with its name."""
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

    @property
    def value(self) -> Value:
        """As a place of a record has it."""
        if not self.seeds:
            return None
        return {"mean": self.mean, "least": self.least, "most": self.most, "n": self.seeds}

    def __str__(self) -> str:
        return shown(self.value, DIGITS)


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
    """Write ``table.md``, ``records/`` and ``robustness.png`` of what is finished; return the first.

    Raises:
        LocalError: nothing is finished.
    """
    results = Results(folder, seeds)
    made = [(name, title, make(results)) for name, (title, make) in TABLES.items()]
    tables = [(name, title, rows) for name, title, rows in made if len(rows) > 1]
    if not tables:
        raise LocalError(f"{folder} holds no finished results")
    titles, parts = {attack: _says(attack) for attack in ATTACKS}, []
    for name, title, rows in tables:
        record = record_of_table(title, COMMAND, rows, DIGITS, titles)
        write_record(folder / "records" / f"{name}.json", record)
        parts.append("\n".join([f"**{title}**", "", *table_of(record, {})]))
    text = "\n\n".join(parts)
    write_file(folder / "robustness.png", _picture(results))
    write_file(folder / "table.md", f"{text}\n".encode())
    return folder / "table.md"


# -- tables


def _place(cell: Attacked) -> str:
    return f"`{cell.topology}`, {SAYS[cell.partition]}"


def _says(attack: str) -> str:
    return f"{attack}: {ON_VALUES[attack].doc}" if attack in ON_VALUES else TRAINING_ATTACKS[attack]


def _clean_table(results: Results) -> Rows:
    """What the default costs where nobody lies: against the same runs without a robust rule."""
    rows: Rows = [["where", "before the merge, %", "after, %", "checks a round"]]
    for partition in PARTITIONS:
        for topology in TOPOLOGIES:
            ours = Attacked(topology=topology, partition=partition)
            without = dataclasses.replace(ours, guard="none")
            costs = [results.above_clean(ours, column, without).value for column in ("loss", "merged_loss")]
            if all(costs):
                rows.append([_place(ours), *costs, results.outcome(ours, "checks")])
    return rows


def _attacked_table(results: Results, *, liars: int, column: str) -> Rows:
    places = [
        Attacked(topology=topology, partition=partition)
        for topology in TOPOLOGIES
        for partition in PARTITIONS
    ]
    heading = [_place(place) for place in places]
    control = Attacked(guard="unguarded")
    rows: Rows = [["attack", *heading, *(["unguarded, the first of these"] if liars == 2 else [])]]
    for attack in ATTACKS:
        cells = [_attacked(results, place, attack, liars, column).value for place in places]
        if liars == 2:
            cells.append(_attacked(results, control, attack, liars, column).value)
        if any(cells):
            rows.append([attack, *cells])
    return rows


def _attacked(results: Results, cell: Attacked, attack: str, liars: int, column: str) -> Spread:
    """Return the percent above the clean run with the default guard at the same place."""
    lying = dataclasses.replace(cell, attack=attack, liars=liars)
    return results.above_clean(lying, column, dataclasses.replace(cell, guard="default"))


def _elsewhere_table(results: Results) -> Rows:
    rows: Rows = [["where", "nobody lies, %", *(f"{attack}, %" for attack in FEW)]]
    for cell in (
        Attacked(topology="ring"),
        Attacked(topology="ring", guard="trim-clip"),
        Attacked(topology="epidemic:3"),
    ):
        clean = dataclasses.replace(cell, guard="default")
        cost = results.above_clean(cell, "loss", clean).value if cell != clean else 0
        lying = [_attacked(results, cell, attack, 2, "loss").value for attack in FEW]
        if any(lying):
            forced = "" if cell.guard == "default" else f", `--robust {cell.guard}`"
            rows.append([f"`{cell.topology}`{forced}", cost, *lying])
    return rows


def _rules_table(results: Results) -> Rows:
    rows: Rows = [["rule", "nobody lies, %", *(f"{attack}, %" for attack in FEW)]]
    clean = Attacked(guard="none")
    for guard in ("default", *RULES):
        cell = Attacked(guard=guard)
        attacked = [dataclasses.replace(cell, attack=attack, liars=2) for attack in FEW]
        costs = [results.above_clean(each, "loss", clean).value for each in (cell, *attacked)]
        if all(costs):
            rows.append([SAYS.get(guard, f"`{guard}`"), *costs])
    return rows


def _backdoor_table(results: Results) -> Rows:
    told = ("accuracy, %", "backdoor opens, %")
    rows: Rows = [["peers", *told, *(f"{name[:-3]} after the merge, %" for name in told)]]
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


def _add_shares(rows: Rows, results: Results, cell: Attacked, title: str, names: Sequence[str]) -> None:
    found = [results.outcome(cell, name) for name in names]
    if None not in found:
        shares = [100 * share for share in found if share is not None]
        rows.append([title, *shares, *[None] * (len(rows[0]) - 1 - len(shares))])


TABLES: dict[str, tuple[str, Callable[[Results], Rows]]] = {
    "clean": ("Nobody lies: honest loss above that without a robust rule", _clean_table),
    "two": ("Two of ten lie, before the merge", partial(_attacked_table, liars=2, column="loss")),
    "two-merged": (
        "Two of ten lie, after the merge",
        partial(_attacked_table, liars=2, column="merged_loss"),
    ),
    "three": ("Three of ten lie, before the merge", partial(_attacked_table, liars=3, column="loss")),
    "three-merged": (
        "Three of ten lie, after the merge",
        partial(_attacked_table, liars=3, column="merged_loss"),
    ),
    "elsewhere": ("Rows of fewer than four, two of ten lie", _elsewhere_table),
    "rules": ("Other rules, two of ten lie, against no rule and no liar", _rules_table),
    "backdoor": ("A backdoor", _backdoor_table),
}
"""Name of its record -> title and maker of a table, in order."""


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
