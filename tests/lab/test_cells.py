"""Cells: pure in their spec, true to theory, and refused where a field would do nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from gossip.errors import LocalError
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.result import COLUMNS, OUTCOMES, CellResult
from scripts.lab.convergence.run import run_cell
from scripts.lab.spec import expand, read_grid


def same(first: CellResult, second: CellResult) -> bool:
    return first.outcome == second.outcome and all(
        np.array_equal(first.rounds[name], second.rounds[name], equal_nan=True) for name in COLUMNS
    )


@pytest.mark.parametrize(
    "cell",
    [
        Cell(topology="epidemic:2", peers=12, loss=0.1, churn=0.2, seed=3),
        Cell(
            kind="quadratic",
            topology="ring",
            peers=6,
            rounds=12,
            loss=0.1,
            codec="int8",
            dimension=10,
            seed=3,
        ),
        Cell(kind="quadratic", topology="epidemic:2", peers=6, rounds=8, churn=0.2, dimension=4, seed=1),
    ],
)
def test_equal_specs_give_equal_results_and_other_seeds_do_not(cell: Cell) -> None:
    first = run_cell(cell)
    assert tuple(first.rounds) == COLUMNS
    assert tuple(first.outcome) == OUTCOMES
    assert same(first, run_cell(cell))
    assert not same(first, run_cell(dataclasses.replace(cell, seed=9)))


@pytest.mark.parametrize(
    ("topology", "peers"),
    [("ring", 16), ("torus", 16), ("star", 12), ("hypercube", 32), ("random-regular:4", 24)],
)
def test_the_measured_slope_is_the_predicted_one(topology: str, peers: int) -> None:
    outcome = run_cell(Cell(topology=topology, peers=peers, tolerance=1e-8)).outcome
    assert math.log(outcome["measured_rate"]) == pytest.approx(math.log(outcome["predicted_rate"]), rel=0.02)


def test_learning_comes_to_rest_where_theory_says() -> None:
    for steps in (1, 10):
        cell = Cell(kind="quadratic", topology="ring", peers=8, local_steps=steps, rounds=150, dimension=16)
        result = run_cell(cell)
        assert result.outcome["final_distance_to_stationary"] < 3e-5
        assert result.outcome["final_mean_error"] < 1e-5
        assert result.outcome["rounds_to_tolerance"] is not None


def test_more_local_steps_and_unlike_optima_keep_peers_apart() -> None:
    def spread(**fields: object) -> float:
        cell = Cell(kind="quadratic", topology="ring", peers=8, rounds=60, dimension=64, **fields)
        return float(run_cell(cell).outcome["final_distance"])

    assert spread(local_steps=20) > 2 * spread(local_steps=1)
    assert spread(heterogeneity=0.0) < 1e-4 < 0.4 * spread(heterogeneity=0.5) < spread(heterogeneity=1.0)


def test_what_consensus_costs_is_counted() -> None:
    cell = Cell(topology="ring", peers=10, rounds=3, payload_mb=2.0, latency_s=0.1, bandwidth_mbit=8.0)
    rounds = run_cell(cell).rounds
    assert rounds["bytes_per_peer"] == pytest.approx([0, 4e6, 8e6, 12e6])
    assert rounds["seconds"] == pytest.approx(np.arange(4) * (0.1 + 2 * 2.0))
    away = run_cell(dataclasses.replace(cell, churn=0.5, rounds=40)).rounds
    assert 0.15 < away["bytes_per_peer"][-1] / (40 * 4e6) < 0.35  # both ends must be there: a quarter


def test_loss_on_a_symmetric_graph_keeps_the_mean_and_elsewhere_moves_it() -> None:
    kept, moved = (
        run_cell(Cell(topology=name, peers=16, loss=0.2, churn=0.1)).outcome
        for name in ("ring", "epidemic:2")
    )
    assert kept["final_mean_error"] < 1e-12
    assert moved["final_mean_error"] > 0.01
    slower = run_cell(Cell(topology="ring", peers=16)).outcome["rounds_to_tolerance"]
    assert kept["rounds_to_tolerance"] > 1.2 * slower


def test_with_churn_all_rounds_end() -> None:
    result = run_cell(
        Cell(kind="quadratic", topology="epidemic:3", peers=8, rounds=20, churn=0.3, dimension=4)
    )
    assert result.rounds["peers"].tolist() == [8.0] * 21
    assert result.outcome["rounds_done"] == 20
    quiet = run_cell(Cell(kind="quadratic", topology="epidemic:3", peers=8, rounds=20, dimension=4))
    assert result.rounds["seconds"][-1] > 1.2 * quiet.rounds["seconds"][-1]


def test_no_loss_of_a_lone_peer() -> None:
    for kind in ("consensus", "quadratic"):
        outcome = run_cell(Cell(kind=kind, peers=1, rounds=3, dimension=2)).outcome
        assert outcome["final_distance"] == 0.0


# ---- specs and grids


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    assert Cell().name() == Cell().name() != Cell(seed=1).name()
    file = tmp_path / "graph.edges"
    file.write_text("a b\n")
    cell = Cell(topology=f"graph:{file}", peers=2)
    before = cell.name()
    file.write_text("a b\n# edited\n")
    assert cell.name() != before


def test_grids(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'peers = [8, 16]\nseeds = 3\n[[grid]]\ntopology = ["ring", "star"]\n[[grid]]\nloss = 0.1\n'
    )
    cells = read_grid(file, Cell())
    assert len(cells) == 2 * 3 * 2 + 2 * 3
    assert [cell.seed for cell in cells[:3]] == [0, 1, 2]
    assert len(expand({"peers": 4}, Cell())) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("topologi = 'ring'", "Did you mean 'topology'?"),
        ("peers = 'many'", "peers must be a whole number, not 'many'"),
        ("peers = true", "peers must be a whole number"),
        ("peers = []", "peers is an empty list"),
        ("loss = [0.0, -0.1]", "loss must be a probability from 0 to below 1, not -0.1"),
        ("loss = nan", "loss must be a number"),
        ("kind = 'consensus'\nlocal_steps = [1, 4]", "local_steps has no meaning for the kind 'consensus'"),
        ("kind = 'tiny'\ndimension = 4", "dimension has no meaning"),
        ("kind = 'linear'", "unknown kind 'linear'; known: consensus, quadratic, tiny"),
        ("seeds = 0", "seeds is a whole number of at least 1"),
        ("seeds = 2\nseed = 1", "excludes seed"),
        (f"seed = {list(range(400))}\nrounds = {list(range(400))}", "160000 cells, at most 100000"),
        ("peers = ", "not TOML"),
        ("grid = 3", r"\[\[grid\]\]"),
    ],
)
def test_bad_grids_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(LocalError, match=says) as refused:
        read_grid(file, Cell())
    assert "grid.toml" in str(refused.value)
