"""What a home's ledger says, put into numbers and plain words: spent, left, and what is promised to whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from peer.privacy.accounting import epsilon
from peer.privacy.charge import Charge
from peer.privacy.guesses import area_under_curve, profile, true_positives
from peer.privacy.ledger_file import FOLDER, ROW, Content, DataSet, load_units, read_ledger, worst

DELTA = 1e-5
"""At this delta epsilon is told where no promise names one. Source: the default of --dp-delta."""
FEW_UNITS = 300
"""With fewer units the noise that a promise needs leaves little of what training gains: with 30 rows a peer almost
nothing at epsilon 8, with 450 most of it. Source: our measurements (docs/differential-privacy.md)."""
FALSE_ALARMS = (0.01, 0.05)
"""Rates of false positives at which the bound is told, as studies of such attacks do."""

PROMISED = """\
What is promised, and to whom. For one {unit} of your data, whatever else somebody knows:
- neighbors, who read every adapter that this peer publishes: the bounds above, over all runs counted here;
- all other members, and whoever gets the finished adapter: the same, because all that reaches them from this peer has
  passed through what it published. What the rows of other peers are promised is for those peers to say.
What is not promised:
- what the base model knew before, and what can be guessed about you from what is true of everybody;
- this machine: the files, the home folder with its checkpoints, and the training process hold the rows themselves;
- runs without --dp-epsilon, runs with another home, and what a copy of an older home no longer knows;
- rows that are held out for measuring, which no step learns from, and canaries, which are planted to be found;
- {together}"""
TOGETHER = {
    True: "all rows of one person: with k rows, epsilon is up to k times as large (--dp-unit counts by a field).",
    False: "several units together: the epsilon of k of them is up to k times as large.",
}
"""Whether every unit is a row -> what is not promised to groups of units."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """What is known of one data set.

    Attributes:
        data, unit, units, rows: its name, what is protected, how many there are.
        runs, steps: that were charged for this data set.
        delta: at which epsilon is counted.
        spent: epsilon of the unit that has spent most, other data sets with the same units included.
        promised: epsilon that was promised last; None if none was.
        true_positives: of who guesses membership, at most, at each of ``FALSE_ALARMS``.
        area_under_curve: of the same, at most.
        charges: what the numbers are counted from.
    """

    data: str
    unit: str
    units: int
    rows: int
    runs: int
    steps: int
    delta: float
    spent: float
    promised: float | None
    true_positives: tuple[float, ...]
    area_under_curve: float
    charges: tuple[Charge, ...]

    @property
    def left(self) -> float | None:
        """What is left of the promise; None if there is none."""
        return None if self.promised is None else max(0.0, self.promised - self.spent)

    def fields(self) -> dict[str, object]:
        """Return it as the fields of a JSON object."""
        charges = [charge._asdict() for charge in self.charges]
        return dataclasses.asdict(self) | {"charges": charges, "left": self.left, "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """Return what makes the promise worth less than it seems, or hard to keep."""
        return [*warnings_of(self.unit, self.units, self.delta)]

    def lines(self) -> Iterator[str]:
        """Yield it as lines for people."""
        one = self.unit
        what = f"{self.units:,} rows" if one == ROW else f"{self.units:,} {one}s with {self.rows:,} rows"
        runs = "1 run" if self.runs == 1 else f"{self.runs:,} runs"
        total = sum(charge.steps for charge in self.charges)
        others = "" if total == self.steps else f"; with steps on the same {one}s in other files, {total:,}"
        yield f"{self.data}: {what}, each {one} protected"
        yield f"  spent: epsilon {self.spent:.2f} at delta {self.delta:g}, by {self.steps:,} steps in {runs}{others}"
        if self.promised is not None:
            yield f"  promised: epsilon {self.promised:g}; left: {self.left:.2f}"
        yield f"  Who must say of one {one} whether it is among these data, and knows all that was published:"
        for alarms, found in zip(FALSE_ALARMS, self.true_positives, strict=True):
            known = f"{_rounded_up(found):.0%}"
            yield f"  - with {alarms:.0%} false alarms, finds at most {known} of those that are ({alarms:.0%} is luck)"
        area = f"{_rounded_up(self.area_under_curve):.2f}"
        yield f"  - has an area under the curve of at most {area} (0.50 is luck, 1.00 certainty)"
        for warning in self.warnings():
            yield f"  warning: {warning}"


def warnings_of(unit: str, units: int, delta: float) -> Iterator[str]:
    """Yield what a promise for so many units lacks.

    Args:
        unit: what is protected.
        units: how many there are.
        delta: of the promise.
    """
    if units < FEW_UNITS:
        yield (
            f"{units} {unit}s are fewer than {FEW_UNITS}: noise that keeps a promise for so few leaves little of what "
            "training gains; bring more data, or train together with others who have more"
        )
    if delta * units >= 1:
        yield (
            f"delta {delta:g} is not below 1 in {units:,}: a method that gave one whole {unit} away would keep such a "
            f"promise; choose a --dp-delta well below {1 / units:.1g}"
        )


def statements(home: Path) -> list[Statement]:
    """Return a statement on each data set for which a home's ledger holds a charge or a promise.

    Raises:
        LedgerError: the ledger is not as it was written.
    """
    content = read_ledger(home)
    if content is None:
        return []
    known = [one for one in content.sets.values() if one.epsilon or _charged(content, one)]
    return [_statement(content, home / FOLDER, one) for one in known]


def promise_in_words(found: Sequence[Statement]) -> str:
    """Return what is promised to whom, and what is not."""
    units = sorted({statement.unit for statement in found})
    return PROMISED.format(unit=" or ".join(units), together=TOGETHER[units == [ROW]])


def _charged(content: Content, one: DataSet) -> list[tuple[str, int]]:
    """Return the run and the steps of every charge for a data set."""
    return [(run, steps) for (digest, run, *_), steps in content.entries.items() if digest == one.digest]


def _statement(content: Content, folder: Path, one: DataSet) -> Statement:
    charges = worst(content, folder, load_units(content, folder, one))
    pairs = profile(charges)
    charged = _charged(content, one)
    delta = one.delta or DELTA
    return Statement(
        data=one.name,
        unit=one.unit,
        units=one.units,
        rows=one.rows,
        runs=len({run for run, _ in charged}),
        steps=sum(steps for _, steps in charged),
        delta=delta,
        spent=epsilon(charges, delta),
        promised=one.epsilon or None,
        true_positives=tuple(true_positives(pairs, alarms) for alarms in FALSE_ALARMS),
        area_under_curve=area_under_curve(pairs),
        charges=tuple(charges),
    )


def _rounded_up(share: float) -> float:
    return min(1.0, -(-share * 100 // 1) / 100)
