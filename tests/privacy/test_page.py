"""The numbers of docs/differential-privacy.md that follow from the accountants are what these say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peer.privacy.accounting import epsilon, noise_multiplier_for
from peer.privacy.charge import Charge
from peer.privacy.guesses import area_under_curve, profile, true_positives

PAGE = (Path(__file__).parents[2] / "docs" / "differential-privacy.md").read_text()
RATE, STEPS = 64 / 450, 60


def rows_of(header: str) -> list[list[str]]:
    """Return the cells of the table whose header begins so."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.mark.parametrize("cells", rows_of("| epsilon | noise over clip"), ids=lambda cells: cells[0])
def test_bounds_of_guesses(cells: list[str]) -> None:
    promised, noise, at_one, at_five, area = (float(cell.rstrip(" %")) for cell in cells)
    assert noise == pytest.approx(noise_multiplier_for(promised, 1e-5, RATE, STEPS), abs=0.006)
    pairs = profile([Charge(noise_multiplier_for(promised, 1e-5, RATE, STEPS), RATE, STEPS)])
    for percent, alarms in ((at_one, 0.01), (at_five, 0.05)):
        assert percent - 0.15 <= 100 * true_positives(pairs, alarms) <= percent
    assert area - 0.015 <= area_under_curve(pairs) <= area


def test_epsilons_beside_those_of_dp_accounting() -> None:
    for cells in rows_of("| delta | sigma"):
        delta, noise, steps = float(cells[0]), float(cells[1]), int(cells[3].replace(",", ""))
        over, _, under = cells[2].replace(",", "").partition("/")
        charge = Charge(noise, float(over) / float(under or 1), steps)
        for cell, accountant in ((cells[4], "pld"), (cells[5], "rdp")):
            ours, theirs = map(float, re.split(r" / ", cell))
            assert epsilon([charge], delta, accountant) == pytest.approx(ours, rel=2e-5)  # type: ignore[arg-type]
            assert ours == pytest.approx(theirs, rel=2e-3)
