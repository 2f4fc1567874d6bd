"""Results on disk: a folder per finished spec (cell, trial), tidy Parquet for the whole, a manifest of its origin.

``cells/<hash>/`` appears whole or not at all (written beside, synced, renamed), so whatever is there is finished, also
after kill -9 or a power cut. Equal specs give equal bytes: nothing of the machine's clock is written. It does not run
anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from gossip.errors import LocalError
from peer.durable import sync
from scripts.lab.checkout import commit
from scripts.lab.convergence.cell import DEFAULTS, FORMAT
from scripts.lab.convergence.run import COLUMNS, OUTCOMES, Column
from scripts.lab.figures import write_file
from scripts.lab.sweep import Spec

PARTIAL = ".partial-"
WHOLE = {"round", "peers", "rounds_done", "rounds_to_tolerance", "events"}
"""Columns that are whole numbers."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}


class Result(Protocol):
    """What came out of a spec."""

    @property
    def tables(self) -> Mapping[str, Mapping[str, Column]]:
        """Table -> column -> float64[rows], NaN = no value."""

    @property
    def outcome(self) -> dict[str, Any]:
        """One record; None = no meaning, or never reached."""


class ResultLayout(NamedTuple):
    """How results of one sort of spec lie on disk.

    Args:
        tables: name of the file -> its columns, the first of them ``cell``, the spec's name.
        runs: columns of the table of specs and outcomes, the first of them ``cell``.
        format: number that is raised when results begin to mean something else.
    """

    tables: Mapping[str, pa.Schema]
    runs: pa.Schema
    format: int


def table_schema(columns: Iterable[str], whole: Iterable[str] = ()) -> pa.Schema:
    """Return a table of numbers, of which ``whole`` are integers."""
    return pa.schema(
        [("cell", pa.string()), *((name, pa.int64() if name in whole else pa.float64()) for name in columns)]
    )


def runs_schema(
    fields: Mapping[str, Any], outcomes: Iterable[str], whole: Iterable[str] = (), texts: Iterable[str] = ()
) -> pa.Schema:
    """Return the table of specs, typed by values of their ``fields``, and outcomes."""
    spec = ((name, _TYPES[type(value)]) for name, value in fields.items())
    kinds = {**dict.fromkeys(whole, pa.int64()), **dict.fromkeys(texts, pa.string())}
    return pa.schema(
        [("cell", pa.string()), *spec, *((name, kinds.get(name, pa.float64())) for name in outcomes)]
    )


ROUNDS_SCHEMA = table_schema(COLUMNS, WHOLE)
"""One row = one round of one cell."""

RUNS_SCHEMA = runs_schema(DEFAULTS, OUTCOMES, WHOLE, ("log_hash",))
"""One row = one cell: its spec, then its outcomes (null = no meaning, or never reached)."""

CELL_LAYOUT = ResultLayout({"rounds": ROUNDS_SCHEMA}, RUNS_SCHEMA, FORMAT)


class ResultFolder:
    """A folder of results.

    Args:
        path: made if it does not exist.
        layout: how results lie in it.

    Raises:
        LocalError: it cannot be made.
    """

    def __init__(self, path: Path, layout: ResultLayout = CELL_LAYOUT) -> None:
        self.path, self.layout = path, layout
        self._cells = path / "cells"
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalError(
                f"cannot make the folder {path}: {error.strerror}; choose another --out"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder alone; what a killed writer left half-done is removed.

        Raises:
            LocalError: another sweep writes into it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise LocalError(
                f"another sweep is writing into {self.path}; wait for it, or choose another --out"
            ) from error
        try:
            for left in self._cells.glob(f"{PARTIAL}*"):
                shutil.rmtree(left)
            yield
        finally:
            lock.release()

    def is_finished(self, name: str) -> bool:
        """Tell whether the cell of this name is there."""
        return (self._cells / name).is_dir()

    def add(self, cell: Spec, result: Result) -> None:
        """Write one finished cell, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        name = cell.name()
        partial = self._cells / f"{PARTIAL}{name}"
        record = {"cell": name, "spec": cell.fields(), "outcome": result.outcome}
        try:
            partial.mkdir(exist_ok=True)
            for table, schema in self.layout.tables.items():
                pq.write_table(_table_of(name, result.tables[table], schema), partial / f"{table}.parquet")
            (partial / "run.json").write_text(json.dumps(record, indent=1) + "\n")
            (partial / "manifest.json").write_text(json.dumps(origin(self.layout.format), indent=1) + "\n")
            for file in (*partial.iterdir(), partial):
                sync(file)
            partial.rename(self._cells / name)
            sync(self._cells)
        except OSError as error:
            raise LocalError(f"cannot write the results of cell {name}: {error.strerror or error}") from error

    def collect(self, cells: Sequence[Spec], spec: dict[str, Any]) -> None:
        """Join the finished ones of these cells, in their order: each table, ``runs.parquet``, manifest."""
        names = [name for name in (cell.name() for cell in cells) if self.is_finished(name)]
        for table, schema in self.layout.tables.items():
            partial = self.path / f"{PARTIAL}{table}.parquet"
            with pq.ParquetWriter(partial, schema) as writer:
                for name in names:
                    writer.write_table(pq.read_table(self._cells / name / f"{table}.parquet", schema=schema))
            partial.replace(self.path / f"{table}.parquet")
        partial = self.path / f"{PARTIAL}runs.parquet"
        pq.write_table(_runs((self._record(name) for name in names), self.layout.runs), partial)
        partial.replace(self.path / "runs.parquet")
        manifest = {
            "spec": spec,
            "cells": len(cells),
            "finished": len(names),
            "seeds": sorted({cell.seed for cell in cells}),
            **origin(self.layout.format),
        }
        write_file(self.path / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())

    def _record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self._cells / name / "run.json").read_text())
        return record

    def record(self, cell: Spec) -> dict[str, Any]:
        """Return the outcome of a finished cell."""
        outcome: dict[str, Any] = self._record(cell.name())["outcome"]
        return outcome


def _table_of(name: str, columns: Mapping[str, Column], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name == "cell":
            arrays.append(pa.array([name] * len(next(iter(columns.values())))))
        else:
            values = columns[field.name]
            arrays.append(pa.array(values, mask=np.isnan(values)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _runs(records: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(
        [{"cell": record["cell"], **record["spec"], **record["outcome"]} for record in records], schema=schema
    )


@lru_cache(maxsize=4)
def origin(format: int) -> dict[str, Any]:
    """Return what a result depends on besides its spec: format, commit and versions."""
    packages = ("gossip-peer", "numpy", "scipy", "networkx", "torch", "pyarrow")
    return {
        "format": format,
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
