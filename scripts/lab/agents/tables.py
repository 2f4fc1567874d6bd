"""Trials side by side: means over seeds, and paired differences to training alone, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.lab.agents.trial import METHODS, Method, Outcome, Setting

Outcomes = Mapping[tuple[Setting, Method, int], Outcome]
"""By setting, method and seed."""


class Row(NamedTuple):
    """One method in one setting.

    Attributes:
        start, all, own: means over seeds; see ``Outcome``.
        gain: of ``all`` over training alone, the mean over seeds that have both; None without any.
        error: its standard error; None of fewer than two seeds.
        read_bytes: mean.
        seconds: of processor time, mean.
        seeds: how many.
    """

    setting: str
    method: str
    start: float
    all: float
    own: float
    gain: float | None
    error: float | None
    read_bytes: float
    seconds: float
    seeds: int


def rows_of(outcomes: Outcomes) -> list[Row]:
    """Return a row of each setting and method, in the order of the methods."""
    rows = []
    for setting in sorted({setting for setting, _, _ in outcomes}):
        for method in METHODS:
            found = {
                seed: one for (where, how, seed), one in outcomes.items() if (where, how) == (setting, method)
            }
            if not found:
                continue
            alone = {seed: outcomes.get((setting, "isolated", seed)) for seed in found}
            gains = [one.all - base.all for seed, one in found.items() if (base := alone[seed]) is not None]
            ends = list(found.values())
            rows.append(
                Row(
                    setting,
                    method,
                    mean([one.start for one in ends]),
                    mean([one.all for one in ends]),
                    mean([one.own for one in ends]),
                    mean(gains) if gains else None,
                    standard_error(gains) if len(gains) > 1 else None,
                    mean([one.read_bytes for one in ends]),
                    mean([one.seconds for one in ends]),
                    len(ends),
                )
            )
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    titles = (
        "setting",
        "method",
        "seeds",
        "start",
        "all families",
        "own family",
        "over isolated",
        "kB read",
        "CPU s",
    )
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for row in rows:
        gain = "" if row.gain is None or row.method == "isolated" else f"{row.gain:+.3f}"
        error = "" if row.error is None or not gain else f" +- {row.error:.3f}"
        cells = [row.setting, row.method, str(row.seeds)]
        cells += [f"{share:.3f}" for share in (row.start, row.all, row.own)]
        cells += [gain + error, f"{row.read_bytes / 1000:,.0f}", f"{row.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean, of at least two values."""
    center = mean(values)
    return math.sqrt(sum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))
