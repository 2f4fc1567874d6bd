"""The page of pictures: everything it shows is there, small, and has a place to be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.convergence import gallery
from scripts.lab.convergence.gallery import TOPOLOGIES, record_of_consensus
from scripts.lab.convergence.statistics import read_results
from scripts.lab.convergence.sweep import CELL_LAYOUT
from scripts.lab.records import records_in, table_of

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_all_ten_and_its_pictures_are_small() -> None:
    page = (DOCS / "topology.md").read_text()
    assert "<!-- record: topologies -->" in page
    assert list(records_in(DOCS / "records")("topologies").rows) == list(TOPOLOGIES)
    for name in ("topologies", "consensus", "learning"):
        assert f"(images/{name}.png)" in page
        assert (DOCS / "images" / f"{name}.png").stat().st_size < 150_000


def test_the_page_explains_every_column() -> None:
    page = (DOCS / "topology.md").read_text()
    for name in CELL_LAYOUT.tables["rounds"].names:
        assert f"`{name}`" in page, name


def test_the_table_is_a_record_of_real_runs(
    convergence: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("consensus", "star", "base:1", "--peers", 8, "--seeds", 2, "--payload-mb", 4, "--workers", 1)
    assert convergence(*words, "--out", tmp_path).code == 0
    monkeypatch.setattr(gallery, "PEERS", 8)
    star, exact = table_of(record_of_consensus(read_results(tmp_path).groups), {})[2:]
    assert star.startswith("| `star` | 1.75 | 0.1250 |")
    assert exact.startswith("| `base:1` | 1 |  |  | 3 | 3 | 12 | 12 | 0 |")
