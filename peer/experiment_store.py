"""Results on disk: a folder per finished cell, tidy Parquet for the whole, and a manifest of where it came from.

``cells/<hash>/`` appears whole or not at all (written beside, synced, renamed), so whatever is there is finished, also
after kill -9 or a power cut. Equal specs give equal bytes: nothing of the machine's clock is written. It does not run
anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from gossip.errors import LocalError
from peer.durable import sync
from peer.experiment_cells import COLUMNS, OUTCOMES, CellResult
from peer.experiments import DEFAULTS, FORMAT, Cell
from peer.figures import write_file

PARTIAL = ".partial-"
WHOLE = {"round", "peers", "rounds_done", "rounds_to_tolerance", "events"}
"""Columns that are whole numbers."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}

ROUNDS_SCHEMA = pa.schema(
    [("cell", pa.string()), *((name, pa.int64() if name in WHOLE else pa.float64()) for name in COLUMNS)]
)
"""One row = one round of one cell."""

RUNS_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        *((name, _TYPES[type(default)]) for name, default in DEFAULTS.items()),
        *(
            (name, pa.string() if name == "log_hash" else pa.int64() if name in WHOLE else pa.float64())
            for name in OUTCOMES
        ),
    ]
)
"""One row = one cell: its spec, then its outcomes (null = no meaning, or never reached)."""


class ResultFolder:
    """A folder of results.

    Args:
        path: made if it does not exist.

    Raises:
        LocalError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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

    def add(self, cell: Cell, result: CellResult) -> None:
        """Write one finished cell, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        name = cell.name()
        partial = self._cells / f"{PARTIAL}{name}"
        record = {"cell": name, "spec": cell.fields(), "outcome": result.outcome}
        try:
            partial.mkdir(exist_ok=True)
            pq.write_table(_table_of(name, result), partial / "rounds.parquet")
            (partial / "run.json").write_text(json.dumps(record, indent=1) + "\n")
            (partial / "manifest.json").write_text(json.dumps(origin(), indent=1) + "\n")
            for file in (*partial.iterdir(), partial):
                sync(file)
            partial.rename(self._cells / name)
            sync(self._cells)
        except OSError as error:
            raise LocalError(f"cannot write the results of cell {name}: {error.strerror or error}") from error

    def collect(self, cells: Sequence[Cell], spec: dict[str, Any]) -> None:
        """Join the finished ones of these cells, in their order: ``rounds.parquet``, ``runs.parquet``, manifest."""
        names = [name for name in (cell.name() for cell in cells) if self.is_finished(name)]
        partial = self.path / f"{PARTIAL}rounds.parquet"
        with pq.ParquetWriter(partial, ROUNDS_SCHEMA) as writer:
            for name in names:
                writer.write_table(pq.read_table(self._cells / name / "rounds.parquet", schema=ROUNDS_SCHEMA))
        partial.replace(self.path / "rounds.parquet")
        partial = self.path / f"{PARTIAL}runs.parquet"
        pq.write_table(_runs(self._record(name) for name in names), partial)
        partial.replace(self.path / "runs.parquet")
        manifest = {
            "spec": spec,
            "cells": len(cells),
            "finished": len(names),
            "seeds": sorted({cell.seed for cell in cells}),
            **origin(),
        }
        write_file(self.path / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())

    def _record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self._cells / name / "run.json").read_text())
        return record

    def record(self, cell: Cell) -> dict[str, Any]:
        """Return the outcome of a finished cell."""
        outcome: dict[str, Any] = self._record(cell.name())["outcome"]
        return outcome


def _table_of(name: str, result: CellResult) -> pa.Table:
    count = len(result.rounds["round"])
    columns: list[pa.Array] = [pa.array([name] * count)]
    for column in COLUMNS:
        values = result.rounds[column]
        kind = ROUNDS_SCHEMA.field(column).type
        columns.append(pa.array(values, mask=np.isnan(values)).cast(kind))
    return pa.Table.from_arrays(columns, schema=ROUNDS_SCHEMA)


def _runs(records: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"cell": record["cell"], **record["spec"], **record["outcome"]} for record in records],
        schema=RUNS_SCHEMA,
    )


@lru_cache(maxsize=1)
def origin() -> dict[str, Any]:
    """Return what a result depends on besides its spec: format, commit and versions."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent,
        check=False,
    )
    packages = ("gossip-peer", "numpy", "scipy", "networkx", "torch", "pyarrow")
    return {
        "format": FORMAT,
        "commit": asked.stdout.strip() or None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
