"""Reports: the right mean and interval, pairs by seed, censored runs counted, one file that holds everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.report import outcome_table, write_report
from scripts.lab.convergence.statistics import band, read_results
from scripts.lab.convergence.sweep import sweep_cells
from scripts.lab.spec import expand
from scripts.lab.statistics import interval

Run = Callable[..., Any]


def cells_of(fields: dict[str, Any]) -> list[Cell]:
    return expand(fields, Cell())


def test_intervals_are_student_s() -> None:
    values = [3.0, 5.0, 4.0, 8.0]
    student = interval(list(values))
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert student.mean is not None
    assert student.half is not None
    assert (student.mean - student.half, student.mean + student.half) == pytest.approx((low, high))
    assert str(interval([7.0])) == "7"
    censored = interval([3.0, None])
    assert censored.mean is None
    assert str(censored) == "reached by 1 of 2"
    assert str(interval([None, None])) == "reached by 0 of 2"
    assert str(interval([1e6, 1e6 + 1e-9])) == "1e+06 ± 0"


def test_bands_are_of_the_logarithm() -> None:
    mean, low, high = band(np.asarray([[1.0, 1e-2], [1.0, 1e-4]]))
    assert mean == pytest.approx([1.0, 1e-3])
    assert low[0] == high[0] == 1.0
    assert math.log(high[1] / mean[1]) == pytest.approx(math.log(mean[1] / low[1]))


def test_a_report_holds_tables_intervals_and_pictures(convergence: Run, tmp_path: Path) -> None:
    sweep_cells(cells_of({"topology": ["ring", "torus"], "peers": 16, "seeds": 3}), tmp_path, engine="here")
    said = convergence("report", tmp_path)
    assert said.code == 0
    results = read_results(tmp_path)
    assert results.varied == ("topology",)
    ring, torus = results.groups
    rounds = [run["rounds_to_tolerance"] for run in ring.runs]
    assert str(interval(rounds)) in said.out
    assert "±" in said.out
    difference = torus.minus(ring, "rounds_to_tolerance")
    by_hand = np.asarray([run["rounds_to_tolerance"] for run in torus.runs]) - np.asarray(rounds)
    assert difference.mean == pytest.approx(by_hand.mean())
    assert difference.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(by_hand))
    assert str(difference) in said.out
    page = (tmp_path / "report.html").read_text()
    assert str(interval(rounds)) in page
    assert page.count("data:image/png;base64,") == len(list(tmp_path.glob("*.png"))) == 1
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from anywhere


def test_runs_that_never_arrive_are_counted_not_dropped(tmp_path: Path) -> None:
    sweep_cells(cells_of({"topology": ["path", "star"], "peers": 12, "rounds": 60, "seeds": 2, "tolerance": 1e-2}),
              tmp_path, engine="here")  # fmt: skip
    path, star = read_results(tmp_path).groups
    assert path.outcome("rounds_to_tolerance").reached == 0
    assert star.outcome("rounds_to_tolerance").reached == 2
    _, table = write_report(tmp_path)
    assert "reached by 0 of 2" in table[1]


def test_facets_for_what_else_was_varied(tmp_path: Path) -> None:
    grid = {"topology": ["ring", "star"], "peers": [6, 8], "loss": [0.0, 0.1], "rounds": 20, "seeds": 2}
    sweep_cells(cells_of(grid), tmp_path, engine="here")
    write_report(tmp_path)
    assert len(list(tmp_path.glob("consensus-distance-*.png"))) == 4


def test_comparison_is_with_the_first_topology_of_the_same_setting(tmp_path: Path) -> None:
    sweep_cells(
        cells_of({"topology": ["ring", "star"], "peers": [6, 12], "seeds": 2}), tmp_path, engine="here"
    )
    results = read_results(tmp_path)
    table = outcome_table(results)
    assert table[0][-1] == "rounds against ring, paired"
    compared = {(group.fields["topology"], group.fields["peers"]): row[-1] for group, row in
                zip(results.groups, table[1:], strict=True)}  # fmt: skip
    assert compared["ring", 6] == compared["ring", 12] == ""
    by_name = {(group.fields["topology"], group.fields["peers"]): group for group in results.groups}
    expected = by_name["star", 12].minus(by_name["ring", 12], "rounds_to_tolerance")
    assert compared["star", 12] == str(expected)


def test_learning_is_drawn_by_every_metric(tmp_path: Path) -> None:
    cells = cells_of(
        {"kind": "quadratic", "topology": ["ring", "complete"], "peers": 4, "rounds": 8, "dimension": 3}
    )
    sweep_cells(cells, tmp_path, engine="here")
    write_report(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.png")} == {
        "consensus-distance",
        "distance-to-stationary",
        "distance-to-optimum",
        "loss",
    }
