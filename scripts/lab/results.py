"""Results on disk: a folder per finished spec, tidy Parquet for the whole, a manifest of its origin; and reading it.

``cells/<hash>/`` appears whole or not at all (written beside, synced, renamed), so whatever is there is finished, also
after kill -9 or a power cut. Equal specs give equal bytes: nothing of the machine's clock is written. It does not run
anything.
"""

from __future__ import annotations

import dataclasses
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
from numpy.typing import NDArray

from gossip.errors import LocalError
from peer.durable import sync
from scripts.lab.checkout import commit
from scripts.lab.files import write_file
from scripts.lab.spec import Spec

PARTIAL = ".partial-"
"""Begins the names of what is not finished."""

Columns = Mapping[str, NDArray[np.float64]]
"""Column -> float64[rows], NaN = no value."""

_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}
"""Type of a spec's field -> type of its column."""


class Result(Protocol):
    """What came out of a spec."""

    @property
    def tables(self) -> Mapping[str, Columns]:
        """The tables to keep, by name."""

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
    types = ((name, pa.int64() if name in whole else pa.float64()) for name in columns)
    return pa.schema([("cell", pa.string()), *types])


def runs_schema(
    example: Spec, outcomes: Iterable[str], whole: Iterable[str] = (), texts: Iterable[str] = ()
) -> pa.Schema:
    """Return the table of specs and outcomes; numbers, but for those named.

    Args:
        example: any spec of the sort: its values tell the types of its fields.
        whole: outcomes that are integers.
        texts: outcomes that are texts.
    """
    fields = [(name, _TYPES[type(value)]) for name, value in dataclasses.asdict(example).items()]
    types = {**dict.fromkeys(whole, pa.int64()), **dict.fromkeys(texts, pa.string())}
    return pa.schema(
        [("cell", pa.string()), *fields, *((name, types.get(name, pa.float64())) for name in outcomes)]
    )


class ResultFolder:
    """A folder of results.

    Args:
        path: made if it does not exist.
        layout: how results lie in it.

    Raises:
        LocalError: it cannot be made.
    """

    def __init__(self, path: Path, layout: ResultLayout) -> None:
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
            for abandoned in self._cells.glob(f"{PARTIAL}*"):
                shutil.rmtree(abandoned)
            yield
        finally:
            lock.release()

    def is_finished(self, spec: Spec) -> bool:
        """Tell whether the result of this spec is there."""
        return (self._cells / spec.name()).is_dir()

    def add(self, spec: Spec, result: Result) -> None:
        """Write one finished result, whole or not at all.

        Raises:
            LocalError: the disk is full, or the folder cannot be written.
        """
        name = spec.name()
        partial = self._cells / f"{PARTIAL}{name}"
        record = {"cell": name, "spec": dataclasses.asdict(spec), "outcome": result.outcome}
        try:
            partial.mkdir(exist_ok=True)
            for table, schema in self.layout.tables.items():
                pq.write_table(_arrow(name, result.tables[table], schema), partial / f"{table}.parquet")
            (partial / "run.json").write_text(json.dumps(record, indent=1) + "\n")
            (partial / "manifest.json").write_text(json.dumps(origin(self.layout.format), indent=1) + "\n")
            for path in (*partial.iterdir(), partial):
                sync(path)
            partial.rename(self._cells / name)
            sync(self._cells)
        except OSError as error:
            raise LocalError(f"cannot write the results of cell {name}: {error.strerror or error}") from error

    def collect(self, specs: Sequence[Spec], request: dict[str, Any]) -> None:
        """Join the finished ones of these specs, in their order: each table, ``runs.parquet``, manifest.

        Args:
            request: what the user asked for.
        """
        names = [spec.name() for spec in specs if self.is_finished(spec)]
        for table, schema in self.layout.tables.items():
            partial = self.path / f"{PARTIAL}{table}.parquet"
            with pq.ParquetWriter(partial, schema) as writer:
                for name in names:
                    writer.write_table(pq.read_table(self._cells / name / f"{table}.parquet", schema=schema))
            partial.replace(self.path / f"{table}.parquet")
        partial = self.path / f"{PARTIAL}runs.parquet"
        records = (self._record(name) for name in names)
        rows = [{"cell": record["cell"], **record["spec"], **record["outcome"]} for record in records]
        pq.write_table(pa.Table.from_pylist(rows, schema=self.layout.runs), partial)
        partial.replace(self.path / "runs.parquet")
        manifest = {
            "spec": request,
            "cells": len(specs),
            "finished": len(names),
            "seeds": sorted({spec.seed for spec in specs}),
            **origin(self.layout.format),
        }
        write_file(self.path / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())

    def _record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self._cells / name / "run.json").read_text())
        return record

    def outcome(self, spec: Spec) -> dict[str, Any]:
        """Return the outcome of a finished spec."""
        outcome: dict[str, Any] = self._record(spec.name())["outcome"]
        return outcome


def _arrow(name: str, columns: Columns, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name == "cell":
            arrays.append(pa.array([name] * len(next(iter(columns.values())))))
        else:
            values = columns[field.name]
            arrays.append(pa.array(values, mask=np.isnan(values)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


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


# -- reading


class Collected(NamedTuple):
    """What ``ResultFolder.collect`` wrote, read.

    Args:
        manifest: of the folder; ``manifest["spec"]`` is what the user asked for.
        runs: rows of runs.parquet, each a spec and its outcome.
        tables: name of the table -> name of the spec -> its columns.
    """

    manifest: dict[str, Any]
    runs: list[dict[str, Any]]
    tables: Mapping[str, Mapping[str, Columns]]


def read_collected(folder: Path, tables: Sequence[str]) -> Collected:
    """Read a folder of results.

    Raises:
        OSError: a file is not there, or cannot be read.
        ValueError: a file is not what its name says.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    runs = pq.read_table(folder / "runs.parquet").to_pylist()
    return Collected(
        manifest, runs, {name: _by_cell(pq.read_table(folder / f"{name}.parquet")) for name in tables}
    )


def _by_cell(table: pa.Table) -> dict[str, Columns]:
    """Cut a table into cell -> columns; the rows of a cell stand together."""
    cells = table.column("cell").to_numpy(zero_copy_only=False)
    columns = {
        name: table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in table.column_names
        if name != "cell"
    }
    starts = [0, *(np.nonzero(cells[1:] != cells[:-1])[0] + 1).tolist()] if len(cells) else []
    return {
        str(cells[start]): {name: values[start:end] for name, values in columns.items()}
        for start, end in zip(starts, [*starts[1:], len(cells)], strict=False)
    }
