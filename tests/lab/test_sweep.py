"""Sweeps: what is finished stays finished, whatever ends the process, and equal specs give equal bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gossip.errors import LocalError
from scripts.lab.convergence.cell import Cell
from scripts.lab.convergence.sweep import CELL_LAYOUT, sweep_cells
from scripts.lab.results import ResultFolder
from scripts.lab.spec import expand

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]

GRID = """
topology = ["path", "ring"]
peers = 200
rounds = 3000
tolerance = 1e-14
seeds = 6
"""


def cells_of(fields: dict[str, Any]) -> list[Cell]:
    return expand(fields, Cell())


def start(spec: Path, out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "scripts/convergence.py",
        "sweep",
        str(spec),
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Cells that are there, with what would change if they were written again."""
    return {
        file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in (out / "cells").glob("[0-9a-f]*/run.json")
    }


def test_a_sweep_killed_in_the_middle_goes_on_without_redoing_anything(tmp_path: Path) -> None:
    spec, out = tmp_path / "grid.toml", tmp_path / "out"
    spec.write_text(GRID)
    process = start(spec, out)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("3/12"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.stderr.read()  # ends when the workers have, too: they hold the pipe
    process.wait()
    before = finished(out)
    assert 3 <= len(before) < 12
    assert not (out / "runs.parquet").exists()

    again = start(spec, out)
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert f"{len(before)} of 12 cells were finished before" in said
    after = finished(out)
    assert len(after) == 12
    assert before.items() <= after.items()
    assert pq.read_table(out / "runs.parquet").num_rows == 12
    assert not list((out / "cells").glob(".partial-*"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["cells"], manifest["finished"], manifest["seeds"]) == (12, 12, list(range(6)))
    assert manifest["spec"]["text"] == GRID
    assert manifest["versions"]["numpy"]


def test_equal_specs_give_equal_bytes_in_one_process_and_in_many(tmp_path: Path) -> None:
    cells = cells_of({"topology": ["ring", "epidemic:2"], "peers": 8, "seeds": 2, "loss": 0.1})
    cells += cells_of({"kind": "quadratic", "peers": 5, "rounds": 6, "codec": "int8", "loss": 0.1})
    for engine in ("here", "pool"):
        assert sweep_cells(cells, tmp_path / engine, engine=engine, workers=2) == 0
    files = sorted(
        file.relative_to(tmp_path / "here") for file in (tmp_path / "here").rglob("*") if file.is_file()
    )
    assert len(files) == 3 * len(cells) + 4
    for file in files:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "pool" / file).read_bytes(), file


def test_a_grid_that_grows_keeps_what_it_has(tmp_path: Path) -> None:
    small = cells_of({"peers": 6, "seeds": 2})
    large = cells_of({"peers": [6, 8], "seeds": 2})
    assert sweep_cells(small, tmp_path, engine="here") == 0
    assert sweep_cells(large, tmp_path, engine="here") == 2
    assert pq.read_table(tmp_path / "runs.parquet").column("peers").to_pylist() == [6, 6, 8, 8]
    rounds = pq.read_table(tmp_path / "rounds.parquet")
    assert rounds.column("round").null_count == 0
    assert rounds.column("loss").null_count == rounds.num_rows


def test_all_cells_are_checked_before_the_first_runs(tmp_path: Path) -> None:
    cells = [Cell(peers=8), Cell(topology="hypercube", peers=12)]
    with pytest.raises(LocalError, match="power of two"):
        sweep_cells(cells, tmp_path, engine="here")
    assert not list(tmp_path.iterdir())


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        ResultFolder(tmp_path, CELL_LAYOUT).locked(),
        pytest.raises(LocalError, match="another sweep is writing"),
    ):
        sweep_cells([Cell(peers=4)], tmp_path, engine="here")


def test_unknown_and_absent_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalError, match="unknown engine 'slurm'; known: pool, here, ray"):
        sweep_cells([Cell()], tmp_path, engine="slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LocalError, match="pip install 'gossip-peer\\[ray\\]'"):
        sweep_cells([Cell(peers=4)], tmp_path, engine="ray")


def test_ray_in_local_mode_with_two_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    cells = cells_of({"topology": ["ring", "star"], "peers": 8, "seeds": 2})
    sweep_cells(cells, tmp_path / "ray", engine="ray", workers=2)
    sweep_cells(cells, tmp_path / "here", engine="here")
    for name in ("rounds.parquet", "runs.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_commands_print_a_table_and_leave_results(convergence: Run, tmp_path: Path) -> None:
    said = convergence("consensus", "ring", "star", "--peers", 8, "--workers", 1, "--out", tmp_path / "out")
    assert said.code == 0
    assert "ring" in said.out
    assert "rounds" in said.out
    assert (tmp_path / "out" / "rounds.parquet").exists()
    said = convergence("learn", "ring", "--peers", 4, "--rounds", 5, "--dimension", 3, "--workers", 1)
    assert said.code == 0
    assert "distance to theory's point" in said.out
