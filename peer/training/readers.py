"""Files of rows, read one by one: JSON lines, JSON, CSV, parquet, paragraphs of text, folders of `datasets`.

Each reader yields every row as it stands in the file, with its line number; a row that cannot be parsed is reported in
its place. Lines are read with the standard library (exact line numbers, no heavy imports); pyarrow and datasets are
imported only for their own formats. What a row must hold, ``data.py`` says.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gossip.errors import LocalError


class DataError(LocalError):
    """The user's data is missing, unreadable, or holds rows we were told to refuse."""

    exit_code = 6


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used, and why. ``line`` counts from 1 (rows, for formats without lines)."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


Lines: TypeAlias = Iterator[tuple[int, Any]]
"""Rows of a file: (line from 1, the row as it stands in the file or ``BadRow``)."""


def read(path: Path) -> Lines:
    """Yield (line, parsed row or ``BadRow``) of a file of a kind in ``READERS``, or a folder written by save_to_disk.

    Raises:
        DataError: no such path, of unknown kind, or not of the kind that its ending says.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise DataError(f"no data at {path} (looked in {Path.cwd()}). Check the path given as data.")
    if path.is_dir():
        return _read_folder(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"data {path} is of unknown kind {path.suffix!r}; known: {', '.join(READERS)}, folders"
        )
    return reader(path)


def _read_jsonl(path: Path) -> Lines:
    with path.open("rb") as opened:
        for line, raw in enumerate(opened, start=1):
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                yield line, json.loads(raw.decode())
            except UnicodeDecodeError as error:
                yield line, BadRow(path, line, f"not valid UTF-8 at byte {error.start + 1} of the line")
            except (json.JSONDecodeError, RecursionError) as error:
                yield line, BadRow(path, line, f"malformed JSON: {error}")


def _read_json(path: Path) -> Lines:
    """A list of rows, or an object with such a list in it; else the file is tried as JSON lines."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        yield from _read_jsonl(path)
        return
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        is_row = {"text", "messages", "completion"} & content.keys()
        content = lists[0] if len(lists) == 1 and not is_row else [content]
    if not isinstance(content, list):
        raise DataError(f"data {path} holds {type(content).__name__}, not a list of rows")
    yield from enumerate(content, start=1)


def _read_csv(path: Path) -> Lines:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        reader = csv.DictReader(opened)
        while True:
            line = reader.line_num + 1 if reader.line_num else 2
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield line, BadRow(path, line, f"malformed CSV: {error}")
                continue
            if row is None:
                return
            if None in row:
                yield line, BadRow(path, line, "more fields than the header has")
            else:
                yield line, row


def _read_txt(path: Path) -> Lines:
    """Paragraphs, parted by blank lines, are rows."""
    paragraph: list[bytes] = []
    start = 1
    with path.open("rb") as opened:
        for line, raw in enumerate(itertools.chain(opened, (b"",)), start=1):
            if raw.strip():
                paragraph.append(raw)
                continue
            if paragraph:
                try:
                    yield start, {"text": b"".join(paragraph).decode("utf-8-sig").strip()}
                except UnicodeDecodeError:
                    yield start, BadRow(path, start, "the paragraph is not valid UTF-8")
            paragraph, start = [], line + 1


def _read_parquet(path: Path) -> Lines:
    import pyarrow
    import pyarrow.parquet

    try:
        line = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                line += 1
                yield line, row
    except pyarrow.ArrowException as error:
        raise DataError(f"data {path} cannot be read as parquet: {error}") from error


def _read_folder(path: Path) -> Lines:
    """A dataset written by save_to_disk; of several splits, "train" is taken."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"folder {path} was not written by datasets' save_to_disk ({error}). Give the files in it instead."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise DataError(
                f'folder {path} has no split "train"; it has {", ".join(dataset)}. Give one of these.'
            )
        dataset = dataset["train"]
    yield from enumerate(dataset, start=1)


READERS: dict[str, Callable[[Path], Lines]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
"""Readers by ending: each yields (line, parsed row or ``BadRow``). To add a kind: a generator and a line here."""
