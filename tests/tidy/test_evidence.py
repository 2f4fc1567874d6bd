"""Figures of the pages: they are those of the records, and whoever wants to see one again finds the command."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab import privacy_bounds
from scripts.lab.evidence import BLOCK, FIGURE, changed_pages, pages_of, written
from scripts.lab.records import records_in

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "records"
RECORDS = records_in(FOLDER)
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json"))
PAGES = pages_of(ROOT)
GENERATED = {"limits.md", "events.md", "exit-codes.md"}
"""Pages whose tables are no measurements."""
ABOVE, BELOW = 15, 10
"""Lines before and after a table within which its command stands."""
COMMAND = re.compile(
    r"(python scripts/\w+\.py|python -m (?:scripts|peer)\.[\w.]+|peer [a-z]+|pytest )\s?[^`]*"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_every_page_says_what_its_records_say() -> None:
    """If it fails: ``python -m scripts.lab.evidence``."""
    differences = [
        line
        for page, text in changed_pages(ROOT).items()
        for line in difflib.unified_diff(
            page.read_text().splitlines(), text.splitlines(), name_of(page), "its records", n=0, lineterm=""
        )
    ]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_digit_of_a_measured_figure_can_change_unnoticed(page: Path) -> None:
    text = page.read_text()
    for part, start, end in guarded(text):
        for place in (place for place in range(start, end) if part[place].isdigit()):
            digit = str((int(part[place]) + 1) % 10)
            changed = part[:place] + digit + part[place + 1 :]
            assert written(changed, RECORDS) != changed, changed


def guarded(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield parts of a page that records give, each with where its figures begin and end."""
    for block in BLOCK.finditer(text):
        head = len(block[1])
        yield block[0], head, len(block[0]) - len(block["end"])
    for figure in FIGURE.finditer(text):
        yield figure[0], 0, len(figure["number"])


def test_every_record_is_shown_and_every_page_names_the_commands_of_its_records() -> None:
    seen = set()
    for page in PAGES:
        text = page.read_text()
        names = {block["name"] for block in BLOCK.finditer(text)}
        names |= {figure["place"].split()[1] for figure in FIGURE.finditer(text)}
        for name in names:
            command = one_line(RECORDS(name).command)
            assert command in one_line(text), f"{name_of(page)} shows {name} and does not name {command}"
        seen |= names
    assert sorted(seen) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_what_it_is_and_names_a_command_that_exists(name: str) -> None:
    record = RECORDS(name)
    assert record.title
    assert record.rows
    assert all(set(values) <= set(record.columns) for values in record.rows.values())
    match record.command.split()[:3]:
        case ["python", "-m", module]:
            assert importlib.util.find_spec(module), module
        case ["python", script, *_] | ["pytest", script, *_]:
            assert (ROOT / script).exists(), script
        case other:
            pytest.fail(f"no command of ours: {other}")
    assert not re.search(r"/(work|root|tmp|home)/", (FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=name_of)
def test_a_table_with_figures_is_of_a_record_or_stands_near_its_command(page: Path) -> None:
    text = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), page.read_text())
    lines = text.splitlines()
    for start, end in tables_with_figures(lines):
        whole_page = lines[:BELOW] if page.parent.name == "comparisons" else []
        near = "\n".join([*whole_page, *lines[max(0, start - ABOVE) : end + BELOW]])
        commands = re.findall(r"`([^`]+)`|^ {4}(.+)$", near, flags=re.MULTILINE)
        assert any(COMMAND.match(one_line(one or other)) for one, other in commands), lines[start]


def tables_with_figures(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the first line of each table that has a measured figure somewhere, and the line behind its last."""
    start = None
    for number, line in enumerate([*lines, ""]):
        if line.startswith("|") and start is None:
            start = number
        elif not line.startswith("|") and start is not None:
            cells = [cell.strip(" *") for row in lines[start + 2 : number] for cell in row.split("|")[2:]]
            if any(re.match(r"-?\d+\.\d+|\d+ \(|\d+(\.\d+)? (%|±)", cell) for cell in cells):
                yield start, number
            start = None


def test_what_a_promise_is_worth_is_computed_again() -> None:
    assert RECORDS("privacy-bounds") == privacy_bounds.bounds()
