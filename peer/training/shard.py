"""A peer's shard: the sequences it learns from, and the held-out ones that adapters are measured on.

It knows nothing of optimizers or adapters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training import audited_rows, canaries, data, sequences
from peer.training.audited_rows import AuditedRows
from peer.training.frames import Progress
from peer.training.libraries import Tokenizer
from peer.training.readers import DataError
from peer.training.sequences import Tokens
from peer.training.task import Task
from peer.training.token_files import Blocks, Split, open_tokens
from peer.training.units import Unit, check_owners, owner_field, units_of, without_owners_of


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows, tokenized.

    Attributes:
        train: what is learned, at least one sequence.
        held_out: what is measured, by resolved file: each of ``data`` (maybe empty), and each of ``eval_data``.
        rows: rows behind ``train``.
        rows_held_out: rows held out of ``data``.
        report: what was read, as text for a human.
        label_rows: rows behind ``train`` of each label, in the run's order; empty without labels.
        units: what ``train`` consists of, where units are protected; else empty.
        canaries: how many of ``rows`` are canaries.
        audited: what adapters are audited on; None without ``--audit``.
    """

    train: Sequence[Tokens]
    held_out: Mapping[Path, Sequence[Tokens]]
    rows: int
    rows_held_out: int
    report: str
    label_rows: tuple[int, ...]
    units: Sequence[Unit] = ()
    canaries: int = 0
    audited: AuditedRows | None = None


def make_shard(config: PeerConfig, loaded: data.Loaded, task: Task, tokenizer: Tokenizer) -> Shard:
    """Split and tokenize the rows of ``config.data.data``, and read and tokenize the held-out ones of ``eval_data``.

    Args:
        loaded: the rows of ``config.data.data``.

    Raises:
        DataError: nothing is left to learn from or to measure, or a file of ``eval_data`` cannot be used.
    """
    check_owners(loaded.rows, config)
    own, held = split_rows(config, loaded.rows)
    planted = _canaries(config, own)
    train = canaries.planted(own, planted)
    units: list[Unit] = []
    if config.privacy.dp_epsilon:
        held = without_owners_of(held, train)  # who is measured is not protected
        units, refused = units_of(train, task, tokenizer, config)
        tokenized = [one for unit in units for one in unit.sequences]
    else:
        tokenized, refused = task.tokenize(train, tokenizer, config)
    bad = (*loaded.bad, *refused)
    if not tokenized:
        shown = map(str, bad[: data.SHOWN_MAX])
        raise DataError("\n".join(["no training sequence is left after tokenizing", *shown]))

    def measured(rows: Sequence[data.Row]) -> list[Tokens]:
        return task.tokenize(rows, tokenizer, config)[0][: config.data.eval_blocks_max]

    held_out: dict[Path, list[Tokens]] = {
        file.resolve(): measured([row for row in held if row.file == file]) for file in config.data.data
    }
    if not any(held_out.values()):
        raise DataError("no held-out sequence is left after tokenizing: give more rows, or raise held_out")
    for file in config.data.eval_data:
        if file.resolve() not in held_out:
            held_out[file.resolve()] = measured(_held_out_rows(config, file))
            if not held_out[file.resolve()]:
                raise DataError(f"eval_data {file}: no held-out sequence is left after tokenizing")
    report = data.Loaded(loaded.rows, bad).report(sequences.render(own[0], tokenizer))
    labels = Counter(row.label for row in train)
    label_rows = tuple(labels[label] for label in config.model.labels)
    audited = None
    if config.privacy.audit:
        audited = audited_rows.choose(own, held, planted, task, tokenizer, config)
    counts = len(train), len(held)
    return Shard(tokenized, held_out, *counts, report, label_rows, units, len(planted), audited)


def is_streamed(config: PeerConfig) -> bool:
    """Say whether text is read from files of tokens, not into memory: from scratch, unless single rows are of interest.

    (Differential privacy is refused with a model that is trained whole, so its units are never among them.)
    """
    return bool(config.model.from_scratch) and not (config.privacy.canaries or config.privacy.audit)


def open_shard(config: PeerConfig, tokenizer: Tokenizer, report: Progress) -> Shard:
    """Return the shard of a model from scratch, whose sequences stay on disk; see ``token_files.py``.

    Raises:
        DataError: as ``make_shard``.
        LocalError: the cache cannot be written.
    """
    options, length = config.data, config.training.max_length
    split = Split(options.held_out, config.run.seed)
    files = [open_tokens(path, tokenizer, split, report) for path in options.data]
    bad, shown = sum(file.bad for file in files), [line for file in files for line in file.shown]
    if bad and options.bad_rows == "refuse":
        data.refuse_bad(bad, shown[: data.SHOWN_MAX])
    train = Blocks([file.train for file in files], length)
    others = (
        path for path in options.eval_data if path.resolve() not in {one.resolve() for one in options.data}
    )
    measured = [*files, *(open_tokens(path, tokenizer, split, report) for path in others)]
    held_out = {
        file.source.resolve(): Blocks([file.held_out], length)[: options.eval_blocks_max] for file in measured
    }
    if not train or not all(held_out.values()):
        raise DataError(
            "no sequence is left to learn from or to measure: give more text, or lower max_length"
        )
    rows, rows_held_out = sum(file.rows for file in files), sum(file.rows_held_out for file in files)
    names = [file.source.name for file in files]
    told = data.report(names, {"text": rows + rows_held_out}, bad, shown[: data.SHOWN_MAX], files[0].sample)
    return Shard(train, held_out, rows, rows_held_out, told, ())


def _canaries(config: PeerConfig, rows: Sequence[data.Row]) -> list[data.Row]:
    """Return the canaries that are planted among ``rows``: those kept in the home folder, the same ones each time."""
    if not config.privacy.canaries:
        return []
    if config.run.home is None:
        raise LocalError("--canaries need a --home, where they are kept")
    kept = canaries.keep(config.run.home / canaries.FILE, config.privacy.canaries, rows)
    # Where all rows of an owner are protected as one, each canary is an owner's.
    return [replace(row, owner=f"canary {row.content}") for row in kept] if owner_field(config) else kept


def _held_out_rows(config: PeerConfig, file: Path) -> list[data.Row]:
    """Return the rows of another peer's file that it holds out, too."""
    rows = data.load(
        [file],
        bad_rows=config.data.bad_rows,
        labels=config.model.labels,
        owner_field=owner_field(config),
    ).rows
    return split_rows(config, rows)[1]


def split_rows(config: PeerConfig, rows: Sequence[data.Row]) -> tuple[list[data.Row], list[data.Row]]:
    """Return (training rows, held-out rows) of a peer's files, as its training tells them apart.

    Raises:
        DataError: a side would be empty.
    """
    one_by_one = config.privacy.dp_epsilon > 0 or bool(config.model.from_scratch)  # as token files do
    return data.split(rows, config.data.held_out, config.run.seed, one_by_one=one_by_one)
