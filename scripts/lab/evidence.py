"""Figures of README.md and docs/, written from the records in docs/records/; a record holds what one command measured.

    python -m scripts.lab.evidence                                write the pages anew from the records
    python -m scripts.lab.evidence take NAME FILE --command TEXT  make docs/records/NAME.json of what a command left

FILE is the ``record.json`` of a comparison or of the experiment on robustness, the ``summary.json`` of a testnet, or
the ``bench.jsonl`` of a bench. A table stands on a page between two comments. The first says in TOML what is shown and
how; each of its lines may be left out. A number in running text has a comment behind it that names record, row and
column (``:: half``, ``:: least`` or ``:: most`` after them: another figure of that place than the mean).

    <!-- record: demo
    rows = ["base", "gossip", "central"]
    titles.central = "centralized"
    digits.loss = 3
    -->
    <!-- end of record -->

    It ends at 4.060<!-- demo :: gossip :: loss --> nats.

Numbers in running text keep the digits that they have. Comments do not show where Markdown is rendered. A test compares
the pages with what this file writes.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from gossip.errors import LocalError
from scripts.lab.checkout import checkout
from scripts.lab.files import write_file
from scripts.lab.program import run_program
from scripts.lab.records import (
    Records,
    read_json,
    record_of,
    record_of_bench,
    record_of_comparison,
    record_of_testnet,
    records_in,
    table_of,
    write_record,
)

BLOCK = re.compile(
    r"(<!-- record: (?P<name>\S+)(?P<shown>\s.*?)-->\n).*?(?P<end><!-- end of record -->)", re.DOTALL
)
FIGURE = re.compile(
    r"(?P<number>(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?)(?P<between>[^\d\n<]{0,12})(?P<place><!-- [^>\n]+ :: [^>\n]+ -->)"
)


app = App(
    name="python -m scripts.lab.evidence", help=__doc__, default_parameter=Parameter(show_env_var=False)
)


def written(page: str, records: Records) -> str:
    """Return the text of a page with its tables and numbers as the records have them.

    Raises:
        LocalError: a comment that cannot be read, or that names what there is not.
    """

    def block(match: re.Match[str]) -> str:
        try:
            asked = tomllib.loads(match["shown"])
        except tomllib.TOMLDecodeError as error:
            raise LocalError(f"the comment of the record {match['name']}: {error}") from error
        return "\n".join([match[1].rstrip("\n"), *table_of(records(match["name"]), asked), match["end"]])

    def figure(match: re.Match[str]) -> str:
        return f"{_figure(match['number'], match['place'], records)}{match['between']}{match['place']}"

    page, blocks = BLOCK.subn(block, page)
    page, figures = FIGURE.subn(figure, page)
    if blocks != page.count("<!-- record:") or figures != len(
        re.findall(r"<!-- [^>\n]+ :: [^>\n]+ -->", page)
    ):
        raise LocalError(
            "a comment names a record, and no table ends behind it or no number stands before it"
        )
    return page


def _figure(number: str, place: str, records: Records) -> str:
    """Return the number that a place of a record has, with as many digits as another number."""
    name, row, *rest = place.removeprefix("<!-- ").removesuffix(" -->").split(" :: ")
    if len(rest) not in (1, 2):
        raise LocalError(f"{place} names no column")
    value = records(name).at(row, rest[0])
    if isinstance(value, Mapping):
        value = value.get(rest[1] if len(rest) == 2 else "mean")
    if not isinstance(value, int | float):
        raise LocalError(f"{place} is no number")
    separator = "," if "," in number else ""
    return f"{value:{separator}.{len(number.partition('.')[2])}f}"


def pages_of(root: Path) -> list[Path]:
    """Return the pages of a checkout that may show figures."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


@app.command
def take(
    name: Annotated[str, Parameter(help="Of the record, or of a folder of records.")],
    source: Annotated[Path, Parameter(help="What a command left; a folder of such records is taken whole.")],
    *,
    command: Annotated[str | None, Parameter(help="That left it; default: what the file says.")] = None,
    title: Annotated[str | None, Parameter(help="What it is about; default: what the file says.")] = None,
) -> None:
    """Make a record of what a command left."""
    if source.is_dir():
        for file in sorted(source.glob("*.json")):
            take(f"{name}/{file.stem}", file, command=command, title=title)
        return
    if source.suffix == ".jsonl":
        found = record_of_bench(source.read_text(encoding="utf-8").splitlines())
    else:
        content = read_json(source)
        kinds = {
            "base_loss": record_of_testnet,
            "strongest_central": record_of_comparison,
            "heading": record_of,
        }
        kind = next((kind for key, kind in kinds.items() if key in content), None)
        if kind is None:
            raise LocalError(f"{source} is nothing that a record is made of")
        found = kind(content)
    found = replace(found, command=command or found.command, title=title or found.title)
    if not found.command or not found.title:
        raise LocalError(f"{source} does not say its command and title: give --command and --title")
    file = _root() / "docs" / "records" / f"{name}.json"
    write_record(file, found)
    print(f"written to {file}")


@app.default
def write_pages() -> None:
    """Write tables and numbers of all pages anew; say which pages changed."""
    root = _root()
    for page, text in changed_pages(root).items():
        write_file(page, text.encode())
        print(page.relative_to(root))


def changed_pages(root: Path) -> dict[Path, str]:
    """Return the pages of a checkout that differ from what its records give, with the text that they should have.

    Raises:
        LocalError: a comment of a page cannot be followed.
    """
    records, changed = records_in(root / "docs" / "records"), {}
    for page in pages_of(root):
        before = page.read_text(encoding="utf-8")
        try:
            after = written(before, records)
        except LocalError as error:
            raise LocalError(f"{page.relative_to(root)}: {error}") from error
        if after != before:
            changed[page] = after
    return changed


def _root() -> Path:
    root = checkout()
    if root is None:
        raise LocalError("this installed copy has no docs folder: call it in a checkout")
    return root


if __name__ == "__main__":
    sys.exit(run_program(app, None, called=None, extra="research"))
