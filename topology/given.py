"""Matrices and graphs given by the user in a file: the one place of this package that reads one.

``matrix:FILE`` is CSV (numbers, optional header of peer ids, optional column of them) or JSON (rows, or ``{"peers":
[...], "matrix": [[...]]}``). Without names, rows belong to the roster in sorted order. It is checked on reading and
refused with file, row and sum. A roster member that is away is left out and its weight returns to those who would
have read it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topology.announced import WANTS_NOTHING, Announcements
from topology.edges import ROUNDING, WeightedEdges
from topology.errors import TopologyError
from topology.plans import Members

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ROW_SUM_TOLERANCE = 1e-9
"""How far a row's sum may be from 1. Source: issue 2; the validator's in algorithms.md 1.1."""


@dataclass(frozen=True, slots=True, eq=False)
class GivenMatrix:
    """W from a file, for a roster.

    Args:
        file: where it came from, for messages.
        names: peer of each row, or None where the file has none and no roster was given: then rows belong to the
            members in sorted order when exactly as many are there, and nobody reads anybody otherwise.
        weighted: the whole matrix.
        symmetric: whether W equals its transpose.
        doubly_stochastic: whether its columns sum to 1 within 1e-9.
    """

    file: str
    names: tuple[str, ...] | None
    weighted: WeightedEdges
    symmetric: bool
    doubly_stochastic: bool

    @property
    def wants(self) -> frozenset[str]:
        return WANTS_NOTHING

    def knowing(self, announced: Announcements) -> GivenMatrix:
        return self

    def period(self, n: int) -> int:
        return 1

    def key(self, members: Members, round: int) -> Hashable:
        return members if self.names is not None else len(members)

    def matrix(self, members: Members, round: int) -> csr_array:
        whole, n = self.weighted, len(members)
        if self.names is None and n != whole.n:
            none = np.zeros(0, dtype=np.int64)
            return WeightedEdges(n, none, none, np.zeros(0)).matrix()
        place = {peer: index for index, peer in enumerate(members)}
        of_row = np.asarray([place.get(name, -1) for name in self.names or members], dtype=np.int64)
        reader, read = of_row[whole.reader], of_row[whole.read]
        here = (reader >= 0) & (read >= 0)
        return WeightedEdges(n, reader[here], read[here], whole.weight[here]).matrix()

    def fallback(self, members: Members, round: int) -> csr_array:
        return self.matrix(members, round)

    def check(self, members: Members) -> None:
        if len(members) != self.weighted.n:
            raise TopologyError(
                f"{self.file}: the matrix is for {self.weighted.n} peers, the roster has {len(members)}"
            )
        check_names(self.file, self.names, members)


def check_names(file: str, names: Sequence[str] | None, members: Members) -> None:
    """Refuse names of a file that are not exactly the roster's; says which are unknown and which are missing."""
    if names is None:
        return
    unknown, missing = sorted(set(names) - set(members)), sorted(set(members) - set(names))
    if unknown or missing:
        parts = [f"not in the roster: {', '.join(unknown)}"] if unknown else []
        parts += [f"missing in the file: {', '.join(missing)}"] if missing else []
        raise TopologyError(f"{file}: names do not fit the roster ({'; '.join(parts)})")


def read_matrix(file: str, roster: Sequence[str] | None = None) -> GivenMatrix:
    """Read and check a mixing matrix.

    Args:
        file: a path ending in .csv or .json.
        roster: all peers of the run; gives rows without names their owners even while some are away.

    Raises:
        TopologyError: unreadable, not square, an entry not finite or negative, a row that does not sum to 1
            within 1e-9, or not for this roster.
    """
    names, rows = read_table(file, "matrix")
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(row, 1):
            if value < 0:
                raise TopologyError(
                    f"{file}: row {number}, column {column}: weights must not be negative: {value!r}"
                )
        if abs((total := math.fsum(row)) - 1.0) > ROW_SUM_TOLERANCE:
            owner = f" ({names[number - 1]})" if names else ""
            raise TopologyError(
                f"{file}: row {number}{owner} sums to {total:.12g}; every row of W must sum to 1"
            )
    matrix = np.asarray(rows, dtype=np.float64)
    sums = matrix.sum(axis=1, keepdims=True)
    matrix = np.where(
        np.abs(sums - 1.0) > ROUNDING, matrix / sums, matrix
    )  # what is left of 1 must not be negative
    reader, read = np.nonzero(matrix - np.diag(np.diag(matrix)))
    given = GivenMatrix(
        file,
        names if names is not None or roster is None else tuple(sorted(roster)),
        WeightedEdges(len(matrix), reader, read, matrix[reader, read]),
        symmetric=bool((np.abs(matrix - matrix.T) <= ROW_SUM_TOLERANCE).all()),
        doubly_stochastic=bool((np.abs(matrix.sum(axis=0) - 1.0) <= ROW_SUM_TOLERANCE).all()),
    )
    if roster is not None:
        given.check(tuple(sorted(roster)))
    return given


def read_table(file: str, kind: str) -> tuple[tuple[str, ...] | None, list[list[float]]]:
    """Read a square table of finite numbers from CSV or JSON: (names or None, rows).

    Raises:
        TopologyError: with file and row, and what would be valid.
    """
    text = read_text(file, kind)
    if Path(file).suffix.lower() == ".json":
        names, cells = _json_cells(file, text)
    else:
        names, cells = _csv_cells(file, text)
    size = len(cells)
    if size == 0:
        raise TopologyError(f"{file}: holds no rows; expected a square {kind} of numbers")
    for number, row in enumerate(cells, 1):
        if len(row) != size:
            raise TopologyError(f"{file}: not square: {size} rows, but row {number} has {len(row)} columns")
    if names is not None and len(names) != size:
        raise TopologyError(f"{file}: {len(names)} peer names for a {kind} of {size} rows")
    if names is not None and len(set(names)) != size:
        double = sorted({name for name in names if names.count(name) > 1})
        raise TopologyError(f"{file}: peers named twice: {', '.join(double)}")
    return names, [
        [_number(file, i, j, cell) for j, cell in enumerate(row, 1)] for i, row in enumerate(cells, 1)
    ]


def read_text(file: str, kind: str) -> str:
    """Return a file's text; a missing or unreadable one is a ``TopologyError`` that names it."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"cannot read the {kind} file {file!r}: {error}") from error


def _json_cells(file: str, text: str) -> tuple[tuple[str, ...] | None, list[list[object]]]:
    try:
        content: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise TopologyError(f"{file}: not JSON: {error}") from error
    names: object = None
    if isinstance(content, dict):
        names, content = content.get("peers"), content.get("matrix")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TopologyError(f'{file}: "peers" must be a list of names')
    if not (isinstance(content, list) and all(isinstance(row, list) for row in content)):
        raise TopologyError(f'{file}: expected a list of rows, or {{"peers": [...], "matrix": [[...]]}}')
    return (tuple(names) if isinstance(names, list) else None), content


def _csv_cells(file: str, text: str) -> tuple[tuple[str, ...] | None, list[list[object]]]:
    """Cells as text. A first row is a header if it holds a word, or if there is one row more than columns."""
    dialect = csv.excel_tab if "\t" in text.partition("\n")[0] else csv.excel
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), dialect)]
    rows = [row for row in rows if any(row)]
    if not rows:
        return None, []
    body = rows[1:]
    if all(_is_number(cell) for cell in rows[0]) and len(rows) != len(rows[0]) + 1:
        return None, [list(row) for row in rows]
    names = tuple(rows[0])
    if body and all(len(row) == len(body) + 1 for row in body):  # a column of names before the numbers
        names = names[1:] if len(names) == len(body) + 1 else names
        if tuple(row[0] for row in body) != names:
            raise TopologyError(
                f"{file}: the first column's names differ from the header's, or stand in another order"
            )
        body = [row[1:] for row in body]
    return names, [list(row) for row in body]


def _is_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _number(file: str, row: int, column: int, cell: object) -> float:
    valid = isinstance(cell, int | float) and not isinstance(cell, bool)
    if not valid and not (isinstance(cell, str) and _is_number(cell)):
        raise TopologyError(f"{file}: row {row}, column {column}: {cell!r} is not a number")
    value = float(cell)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise TopologyError(f"{file}: row {row}, column {column}: {cell!r} is not finite")
    return value
