"""Records: what commands measured, as JSON files in docs/records/, from which the figures of pages are written.

A record is a table: each row has a name, and a value in each column. Here they are made of what commands leave, read,
and written; ``evidence.py`` puts them on pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gossip.errors import LocalError
from scripts.lab.files import write_file
from scripts.lab.page import markdown_table
from scripts.lab.statistics import Interval

Value = int | float | str | Mapping[str, Any] | None
"""What stands at one place: a count, a number, a text; ``mean``, ``n`` runs and, of several, ``half`` the width of the
interval or ``least`` and ``most``, with a ``note`` in brackets; None = nothing was measured."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one command measured, as docs/records/ holds it.

    Attributes:
        title: what it is about.
        command: that measured it.
        columns: their names, which tables show.
        rows: name -> column -> value.
        heading: of the column of names.
        titles: row or column -> how tables call it, where not by its name.
        digits: column -> digits behind the point that tables show; of others four significant ones.
        made: what else is known of its origin.
    """

    title: str
    command: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Value]]
    heading: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    digits: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def at(self, row: str, column: str) -> Value:
        """Return a value.

        Raises:
            LocalError: no such row or column.
        """
        if row not in self.rows or column not in self.columns:
            raise LocalError(
                f"the record {self.title!r} has no {row!r} / {column!r}; its rows: {list(self.rows)}"
            )
        return self.rows[row].get(column)


def value_of(measured: Interval, note: str = "") -> Value:
    """Return a mean with its interval as a place of a record has it; text, if runs came to nothing."""
    if measured.mean is None:
        return str(measured)
    half = {} if measured.half is None else {"half": measured.half}
    return {"mean": measured.mean, **half, "n": measured.runs, **({"note": note} if note else {})}


Records = Callable[[str], Record]
"""Gives a record by its name."""


def record_of(content: Mapping[str, Any]) -> Record:
    """Return the record that ``write_record`` has written as this."""
    rows = {row["name"]: row["values"] for row in content["rows"]}
    fields = {name: content[name] for name in ("title", "command", "heading", "titles", "digits", "made")}
    return Record(columns=tuple(content["columns"]), rows=rows, **fields)


def record_of_table(
    title: str,
    command: str,
    table: Sequence[Sequence[Value]],
    digits: int,
    titles: Mapping[str, str] | None = None,
) -> Record:
    """Return a record of rows of which the first is the heading and each begins with its name.

    Args:
        digits: behind the point, which tables show of all numbers.
        titles: of some rows.
    """
    (heading, *columns), *rows = table
    names = tuple(str(name) for name in columns)
    values = {str(name): dict(zip(names, cells, strict=True)) for name, *cells in rows}
    if len(values) < len(rows) or len(set(names)) < len(names):
        raise LocalError(f"{title}: rows or columns of one name")
    called = {name: title for name, title in (titles or {}).items() if name in values}
    return Record(title, command, names, values, str(heading), called, dict.fromkeys(names, digits))


def write_record(file: Path, record: Record) -> None:
    """Write a record, a row a line.

    Raises:
        LocalError: it cannot be written.
    """
    rows = [json.dumps({"name": name, "values": values}) for name, values in record.rows.items()]
    names = ("title", "command", "made", "heading", "columns", "titles", "digits")
    fields = {name: getattr(record, name) for name in names}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in fields.items()]
    write_file(file, "\n".join(["{", *lines, ' "rows": [', "  " + ",\n  ".join(rows), " ]", "}\n"]).encode())


def records_in(folder: Path) -> Records:
    """Return what reads the records of a folder by name, each once."""

    @cache
    def read(name: str) -> Record:
        file = folder / f"{name}.json"
        try:
            return record_of(read_json(file))
        except (KeyError, TypeError) as error:
            raise LocalError(
                f"{file} is no record: {error}; `evidence take` makes one of a result"
            ) from error

    return read


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LocalError(f"cannot read the record {file}: {error}") from error


def shown(value: Value, digits: int | None = None) -> str:
    """Return a value as a table shows it.

    Args:
        digits: behind the point; None = four significant ones, and two of an interval.
    """
    match value:
        case None | str() | int():
            return "" if value is None else str(value)
        case float():
            return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
    if value["mean"] is None:
        return f"reached by {value['n']}" if value["n"] else ""
    text = shown(value["mean"], digits)
    half = value.get("half") or 0.0
    if half > 1e-9 * abs(value["mean"]):  # else equal but for rounding
        text += f" ± {half:.2g}" if digits is None else f" ± {half:.{digits}f}"
    if "least" in value:
        spread = f"{shown(value['least'], digits)} to {shown(value['most'], digits)}"
        text += f" ({spread})" if value["n"] > 1 else " (one seed)"
    return f"{text} ({value['note']})" if "note" in value else text


# -- what commands leave


def table_of(record: Record, asked: Mapping[str, Any]) -> list[str]:
    """Return a table of a record as lines of Markdown.

    Args:
        asked: ``rows`` and ``columns``, names, by default all; ``titles``, name of a row or column -> how the page
            calls it; ``heading``; ``digits``, column -> digits behind the point. The last three go before the record's.

    Raises:
        LocalError: it asks for what the record does not have, or for something else.
    """
    if unknown := set(asked) - {"rows", "columns", "titles", "heading", "digits"}:
        raise LocalError(f"a table cannot be asked for {', '.join(sorted(unknown))}")
    rows, columns = asked.get("rows", list(record.rows)), asked.get("columns", record.columns)
    titles = {**record.titles, **asked.get("titles", {})}
    digits = {**record.digits, **asked.get("digits", {})}
    head = [asked.get("heading", record.heading), *(titles.get(column, column) for column in columns)]
    body = [
        [titles.get(row, row), *(shown(record.at(row, column), digits.get(column)) for column in columns)]
        for row in rows
    ]
    return markdown_table([head, *body])


def record_of_comparison(content: Mapping[str, Any]) -> Record:
    """Return the record of the ``record.json`` of a comparison; ``budget`` and ``rate`` become columns."""
    rows = {
        row["method"]: {**{name: row[name] for name in ("budget", "rate") if name in row}, **row["values"]}
        for row in content["rows"]
    }
    return Record(
        title="",
        command=content["command"],
        columns=("budget", "rate", *content["columns"]),
        rows=rows,
        heading="method",
        titles={**{name: f"`{name}`" for name in rows if name != "base model"}, **COMPARED},
        digits={"share_of_gain": 0, "gap_closed": 0},
        made=content["made"],
    )


COMPARED = {
    "rate": "learning rate",
    "share_of_gain": "share of strongest central's gain, %",
    "gap_closed": "gap closed, %",
    "loss": "loss, nats",
    "worst_loss": "worst peer, nats",
    "accuracy_percent": "accuracy, %",
    "megabytes": "MB a peer",
    "seconds": "virtual seconds",
    "unmerged_loss": "before the merge, nats",
}
"""Columns of comparisons -> how tables call them."""


def record_of_testnet(summary: Mapping[str, Any]) -> Record:
    """Return the record of a ``summary.json``.

    The rows are ``base``, the regimes, ``gossip`` and ``gossip worst``; the share is that of the gain over the base
    which the best central training comes to.
    """
    losses = {
        _regime(name): loss for name, loss in summary.items() if "_loss" in name and isinstance(loss, float)
    }
    base = losses["base"]
    best = min((loss for name, loss in losses.items() if name.startswith("central")), default=None)
    rows: dict[str, dict[str, Value]] = {}
    for name, loss in losses.items():
        share = None if best is None or name == "base" else 100 * (base - loss) / (base - best)
        rows[name] = {"loss": loss, "gain": None if name == "base" else base - loss, "share": share}
        if (accuracy := summary.get(_accuracy(name))) is not None:
            rows[name]["accuracy"] = 100 * accuracy
    peers = summary["peers"]
    rows["run"] = {
        "seconds": summary["wall_s"],
        "reads": sum(peer["fetches_ok"] for peer in peers) / len(peers),
        "megabytes": sum(peer["bytes_in"] for peer in peers) / len(peers) / 1e6,
    }
    columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
    return Record("", "", columns, rows, heading="", digits={"loss": 3, "gain": 3, "share": 0, "seconds": 0})


def _regime(key: str) -> str:
    return key.replace("_loss_mean", "").replace("_loss", "").replace("_", " ")


def _accuracy(regime: str) -> str:
    key = regime.replace(" ", "_")
    return {"gossip": "gossip_accuracy_mean", "gossip_worst": "gossip_accuracy_worst"}.get(
        key, f"{key}_accuracy"
    )


def record_of_bench(lines: Sequence[str]) -> Record:
    """Return the record of a ``bench.jsonl``; of figures of one name the last counts."""
    figures = [json.loads(line) for line in lines]
    rows = {
        one["name"]: {
            "value": one["value"],
            "unit": one["unit"],
            "target": one["target"],
            "": {None: "", True: "met", False: "missed"}[one["met"]],
        }
        for one in figures
    }
    return Record("", "", ("value", "unit", "target", ""), rows, heading="what", digits={"value": 3})
