"""Plain text as tokens on disk, made once and mapped into memory: a corpus may be larger than memory.

This is how a model from scratch reads. Fine-tuning reads rows into memory (``shard.py``), because single rows are
planted, protected and audited there; a corpus is none of that. Each file of text becomes two files of whole numbers in
the cache, what is learned and what is held out, text after text with the tokenizer's own marks between them; which
lengths they are cut into is decided when they are read. They are keyed by what they are made from, may be removed at
any time, and only their owner can read them. While a file is made, the longest row must fit into memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from peer.training import data, sequences
from peer.training.base_models import cache_folder, tokenizer_digest
from peer.training.data import SHOWN_MAX, Row
from peer.training.frames import Progress
from peer.training.libraries import Tokenizer
from peer.training.model_making import make_once
from peer.training.readers import BadRow, DataError
from peer.training.sequences import Tokens

VERSION = 1
"""Goes up when the same text becomes other files."""
ROWS_AT_ONCE = 256
"""Rows that are tokenized together. Source: guess; a tokenizer gains nothing from more."""
NARROW = 1 << 16
"""Vocabularies up to this size take 2 bytes a token, larger ones 4."""
SAMPLE_LETTERS = 400
"""So much of the first row is shown. Source: as of rows in memory."""
PARTS = ("train", "held_out")
COUNTS = "counts.json"


class Split(NamedTuple):
    """How rows are told apart that are held out.

    Attributes:
        held_out: share of the rows, met in the mean: each is held out for what it says, so that equal rows stay
            together and nothing need be remembered of others.
        seed: of the run.
    """

    held_out: float
    seed: int


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file of text, tokenized.

    Attributes:
        source: the text.
        train, held_out: uint16 or uint32 [tokens], mapped.
        rows, rows_held_out: how many are behind each.
        bad: how many could not be used.
        shown: the first of those, a line each.
        sample: the beginning of the first row.
    """

    source: Path
    train: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]
    rows: int
    rows_held_out: int
    bad: int
    shown: tuple[str, ...]
    sample: str


class Blocks(Sequence[Tokens]):
    """Tokens of some files, cut into sequences when they are asked for.

    Args:
        files: whole numbers [tokens], each cut by itself.
        max_length: of a sequence, at least 1.
    """

    def __init__(self, files: Sequence[np.ndarray[Any, Any]], max_length: int) -> None:
        self._files, self._max_length = files, max_length
        counts = (sequences.block_count(len(file), max_length) for file in files)
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tokens]: ...
    def __getitem__(self, index: int | slice) -> Tokens | list[Tokens]:
        """Return a sequence, or some of them, copied out of the files."""
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self._ends, index)
        start = (index - (self._ends[file - 1] if file else 0)) * self._max_length
        ids = array("i")
        ids.frombytes(self._files[file][start : start + self._max_length].astype(np.intc).tobytes())
        return Tokens(ids)


def open_tokens(path: Path, tokenizer: Tokenizer, split: Split, report: Progress) -> TokenFile:
    """Return a file of text as tokens, making them first if they are not in the cache.

    Raises:
        DataError: the file cannot be used: it is missing, has fewer than two different rows, or rows that are no
            plain text.
        LocalError: the cache cannot be written.
    """
    key = [VERSION, _digest(path), path.suffix, tokenizer_digest(tokenizer), *split]
    folder = cache_folder() / "tokens" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    report("tokens", None)
    make_once(folder, lambda partial: _make(path, tokenizer, split, partial), report, mode=0o700)
    counts = json.loads((folder / COUNTS).read_text())
    kind = np.dtype(counts["dtype"])
    train, held_out = (_mapped(folder / f"{part}.tokens", kind) for part in PARTS)
    return TokenFile(
        source=path,
        train=train,
        held_out=held_out,
        rows=counts["train"],
        rows_held_out=counts["held_out"],
        bad=counts["bad"],
        shown=tuple(f"{path}:{line}: {reason}" for line, reason in counts["shown"]),
        sample=counts["sample"],
    )


def _mapped(path: Path, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return the numbers of a file without reading it; an empty one cannot be mapped."""
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _digest(path: Path) -> str:
    """Return SHA-256 (hex) of a file, or of all in a folder.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read data {path}: {reason}. Check the path and its permissions.") from error
    return digest.hexdigest()


def _make(path: Path, tokenizer: Tokenizer, split: Split, folder: Path) -> None:
    """Write the tokens of a file of text, reading it twice and holding some hundred rows at a time."""
    lowest, highest, bad, shown = _survey(path, split.seed)
    # at least one row on either side, as far as rows differ
    limit = min(max(split.held_out, math.nextafter(lowest, 1.0)), highest)
    counts: dict[str, Any] = dict.fromkeys(PARTS, 0)
    counts |= {"bad": bad, "shown": shown, "sample": ""}
    kind = np.dtype(np.uint16 if len(tokenizer) <= NARROW else np.uint32)
    begin, end = sequences.marks(tokenizer)
    with ExitStack() as opened:
        files = {part: opened.enter_context((folder / f"{part}.tokens").open("wb")) for part in PARTS}
        texts = (row for row in data.rows_of(path) if isinstance(row, Row))
        while rows := list(itertools.islice(texts, ROWS_AT_ONCE)):
            encoded = tokenizer([str(row.content) for row in rows], add_special_tokens=False, verbose=False)
            for row, ids in zip(rows, encoded["input_ids"], strict=True):
                part = PARTS[data.place_of(data.said(row), split.seed) < limit]
                files[part].write(np.array([*begin, *ids, *end], kind).tobytes())
                counts[part] += 1
                counts["sample"] = counts["sample"] or str(row.content)[:SAMPLE_LETTERS]
    (folder / COUNTS).write_text(json.dumps({**counts, "dtype": kind.name}))


def _survey(path: Path, seed: int) -> tuple[float, float, int, list[tuple[int, str]]]:
    """Return the lowest and the highest place of a row, how many are bad, and line and reason of the first of them.

    Raises:
        DataError: the file has too few rows, or some that are no plain text.
    """
    lowest, highest, bad = 1.0, 0.0, 0
    shown: list[tuple[int, str]] = []
    for row in data.rows_of(path):
        if isinstance(row, BadRow):
            bad += 1
            shown += [(row.line, row.reason)] if len(shown) < SHOWN_MAX else []
            continue
        if row.format != "text":
            raise DataError(
                f"{path}:{row.line}: --from-scratch learns plain text, and this is a row of {row.format}: give rows "
                'with "text" alone, and fine-tune on the others afterwards'
            )
        place = data.place_of(data.said(row), seed)
        lowest, highest = min(lowest, place), max(highest, place)
    if lowest > highest:
        data.refuse_useless(path, [f"{path}:{line}: {reason}" for line, reason in shown])
    if lowest == highest:
        raise DataError(f"{path}: all usable rows are one; at least 2 are needed (to train, and to hold out)")
    return lowest, highest, bad, shown
