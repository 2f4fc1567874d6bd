"""The page of pictures: everything it shows is there, small, and has a place to be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.lab.convergence.gallery import BEGIN, END, TOPOLOGIES
from scripts.lab.convergence.sweep import CELL_LAYOUT

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_all_ten_and_its_pictures_are_small() -> None:
    page = (DOCS / "topology.md").read_text()
    table = page[page.index(BEGIN) : page.index(END)]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == list(TOPOLOGIES)
    for name in ("topologies", "consensus", "learning"):
        assert f"(images/{name}.png)" in page
        assert (DOCS / "images" / f"{name}.png").stat().st_size < 150_000


def test_the_page_explains_every_column() -> None:
    page = (DOCS / "topology.md").read_text()
    for name in CELL_LAYOUT.tables["rounds"].names:
        assert f"`{name}`" in page, name


def test_a_page_without_a_place_for_the_table_is_refused(
    convergence: Callable[..., Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    said = convergence("gallery", "--out", tmp_path, "--pages", page, "--seeds", 1)
    assert said.code == 2
    assert "has no place for the table" in said.err
    assert page.read_text() == "nothing here\n"
