"""Workloads: texts in groups, the base model and the settings that learn them, laid out as files for some peers.

A workload needs no model hub: its texts and its model come out of packages, or out of a file of the user's. Laid out,
each peer has a file to train on, and all have the same files to be measured on, whose held-out rows are nobody's
training text. It knows nothing of gossip, nor of how training is done. The catalogue stands at the foot.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.durable import write_atomically
from peer.training import base_models, data, readers
from peer.training.frames import Progress
from scripts.lab import corpus
from scripts.lab.partition import Heterogeneity, heterogeneity, parse_partitioner

SOURCE_ROWS = 1000
"""Snippets taken of each source. Source: ours; equal classes, so that chance is 1 in 4, and more than 100 steps."""
TOPIC_ROWS_MIN = 40
"""Topics of fewer different rows are left out. Source: ours; 10 % of fewer hardly fill a block to measure on."""
NEWS_ROWS_MAX = 300
"""Stories taken of each topic at most. Source: ours; most topics have about so many, and two have ten times more, which
a guess of "earn" would else profit from."""
GROUPS_MAX = 16
"""More groups are measured together. Source: guess; each is a file to evaluate for every peer."""
GROUP_ROWS_MIN = 20
"""With a smaller group all are measured together. Source: guess; it would hold out a row or two."""


class Sample(NamedTuple):
    """One row as it stands in a file, and the group (language, source, topic, label) that it is shared out by."""

    row: Mapping[str, Any]
    group: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the catalogue.

    Attributes:
        samples: fetches what is needed, telling of it, and returns all rows in their own order.
        settings: fields of ``PeerConfig`` with which it learns: model, task, adapter, steps.
        partition: how it is shared out if nothing else is said, as ``scripts/lab/partition.py`` reads it.
        doc: one line for help and tables.
    """

    samples: Callable[[Progress], list[Sample]]
    settings: Mapping[str, Any]
    partition: str
    doc: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A workload on disk, for some peers.

    Attributes:
        train: one file a peer.
        measured: files whose held-out rows (by ``settings`` and the seed) are in no file of ``train``: for eval_data.
        settings: fields of ``PeerConfig``, less data, eval_data and seed.
        heterogeneity: of the peers' groups.
    """

    train: tuple[Path, ...]
    measured: tuple[Path, ...]
    settings: Mapping[str, Any]
    heterogeneity: Heterogeneity

    @property
    def one_by_one(self) -> bool:
        """Held-out rows are told by what they say, as ``data.split`` does for models from scratch."""
        return _one_by_one(self.settings)

    def config(self, peer: int, seed: int, **settings: Any) -> PeerConfig:
        """Return the configuration of one peer; ``seed`` must be the one that it was laid out with."""
        given = {**self.settings, **settings}
        return PeerConfig.of(data=(self.train[peer],), eval_data=self.measured, seed=seed, **given)


def parse_workload(text: str) -> Workload:
    """Return the workload that ``text`` names: of ``WORKLOADS``, ``file:PATH[:FIELD]`` or ``labeled:PATH[:FIELD]``.

    Raises:
        LocalError: unknown; the message names the known ones.
    """
    if text in WORKLOADS:
        return WORKLOADS[text]
    kind, _, rest = text.partition(":")
    if kind in ("file", "labeled") and rest:
        path, field = (rest, "") if Path(rest).exists() else _field(rest)
        return _given(Path(path), field) if kind == "file" else _labeled(Path(path), field or "label")
    raise LocalError(
        f"unknown workload {text!r}; known: {', '.join(WORKLOADS)}, file:PATH[:FIELD] (rows, grouped by a field of "
        "theirs) and labeled:PATH[:FIELD] (a classification, its labels in FIELD)"
    )


def lay_out(
    workload: Workload,
    peers: int,
    folder: Path,
    *,
    seed: int,
    partition: str = "",
    progress: Progress = lambda stage, done: None,
) -> Layout:
    """Write the files of ``peers`` peers into ``folder``; equal arguments write equal files everywhere.

    Args:
        partition: such as ``"dirichlet:0.3"``; the workload's own if empty.

    Raises:
        LocalError: a text cannot be had, the partition is unknown, or there are too few rows for so many peers.
    """
    divide = parse_partitioner(partition or workload.partition)
    samples = _distinct(workload.samples(progress))
    settings = dict(workload.settings)
    if settings.get("task") == "classification":
        settings["labels"] = tuple(sorted({sample.group for sample in samples}))
    folder.mkdir(parents=True, exist_ok=True)
    measured, kept = _write_measured(samples, folder, settings, seed)
    groups = [samples[index].group for index in kept]
    rows_of_peers = divide(groups, peers, seed)
    train = [
        _write(folder / f"peer-{peer}.jsonl", samples, [kept[row] for row in rows], seed)
        for peer, rows in enumerate(rows_of_peers)
    ]
    return Layout(tuple(train), tuple(measured), settings, heterogeneity(groups, rows_of_peers))


def _write_measured(
    samples: Sequence[Sample], folder: Path, settings: Mapping[str, Any], seed: int
) -> tuple[list[Path], list[int]]:
    """Write the files that all are measured on; return them, and the samples of theirs that are not held out."""
    labels: tuple[str, ...] = settings.get("labels", ())
    held_out = settings.get("held_out", PeerConfig().data.held_out)
    files: list[Path] = []
    kept: list[int] = []
    for name, indices in _measured_groups(samples, together=bool(labels)).items():
        files.append(_write(folder / f"measured-{name}.jsonl", samples, indices, seed))
        rows, _ = data.split(
            data.load([files[-1]], labels=labels).rows, held_out, seed, one_by_one=_one_by_one(settings)
        )
        kept += [_shuffled(indices, seed)[row.line - 1] for row in rows]
    return files, sorted(kept)  # the samples' own order again: some partitions cut along it


def _one_by_one(settings: Mapping[str, Any]) -> bool:
    """Tell how training holds out rows: from scratch by what they say, otherwise by where they stand."""
    return bool(settings.get("from_scratch"))


def _measured_groups(samples: Sequence[Sample], together: bool) -> dict[str, list[int]]:
    """Return the rows of each file to measure on: one a group, or one for all."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(index)
    if together or len(groups) > GROUPS_MAX or min(map(len, groups.values())) < GROUP_ROWS_MIN:
        return {"all": list(range(len(samples)))}
    names = {group: "".join(letter if letter.isalnum() else "-" for letter in group)[:40] for group in groups}
    if len(set(names.values())) < len(names):
        names = {group: str(index) for index, group in enumerate(groups)}
    return {names[group]: indices for group, indices in groups.items()}


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first of equal texts: a held-out one must not be trained on as its twin."""
    return list({_line({**sample.row, "label": None}): sample for sample in reversed(samples)}.values())[::-1]


def _shuffled(indices: Sequence[int], seed: int) -> list[int]:
    order = list(indices)
    random.Random(f"rows {seed}").shuffle(order)  # only the first held-out rows of a file are measured
    return order


def _write(path: Path, samples: Sequence[Sample], indices: Sequence[int], seed: int) -> Path:
    lines = [_line(samples[index].row) + "\n" for index in _shuffled(indices, seed)]
    write_atomically(path, "".join(lines).encode())
    return path


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


# -- where rows come from


def _languages(report: Progress) -> list[Sample]:
    return [
        Sample({"text": text}, language)
        for language in corpus.LANGUAGES
        for texts in corpus.topics(language).values()
        for text in texts
    ]


def _topics(report: Progress) -> list[Sample]:
    topics = {name: texts for name, texts in corpus.topics().items() if len(set(texts)) >= TOPIC_ROWS_MIN}
    return [Sample({"text": text}, topic) for topic, texts in topics.items() for text in texts]


def _chats(report: Progress) -> list[Sample]:
    """The topics' conversations as messages, a question first and an answer last; what follows that is left out."""
    samples = []
    for topic, talks in corpus.conversations().items():
        chats = [turns[: len(turns) // 2 * 2] for turns in talks if len(turns) > 1 and all(turns)]
        if len(set(map(tuple, chats))) < TOPIC_ROWS_MIN:
            continue
        for turns in chats:
            roles = ("user", "assistant") * (len(turns) // 2)
            messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
            samples.append(Sample({"messages": messages}, topic))
    return samples


def _speeches(report: Progress) -> list[Sample]:
    speeches = corpus.speeches(base_models.cache_folder(), report)
    return [Sample({"text": text, "role": role}, role) for role, texts in speeches.items() for text in texts]


def _passages(report: Progress) -> list[Sample]:
    passages = corpus.passages(base_models.cache_folder(), report)
    return [Sample({"text": text}, "plays") for text in passages]


def _news(report: Progress) -> list[Sample]:
    stories = corpus.news(base_models.cache_folder(), report)
    return [
        Sample({"text": text, "label": topic}, topic)
        for topic, texts in sorted(stories.items())
        for text in _drawn(sorted(set(texts)), NEWS_ROWS_MAX, f"stories of {topic}")
    ]


def _sources(report: Progress) -> list[Sample]:
    snippets = corpus.sources(base_models.cache_folder(), report)
    return [
        Sample({"text": text, "label": source}, source)
        for source, texts in snippets.items()
        for text in _drawn(sorted(set(texts)), SOURCE_ROWS, f"snippets of {source}")
    ]


def _drawn(texts: Sequence[str], most: int, seed: str) -> list[str]:
    return random.Random(seed).sample(texts, min(most, len(texts)))


def _given(path: Path, field: str) -> Workload:
    """A user's rows, of any format that training reads, grouped by ``field`` (none: all one group)."""

    def samples(report: Progress) -> list[Sample]:
        usable = {row.line for row in data.load([path]).rows}
        rows = [value for line, value in readers.read(path) if line in usable]
        return [Sample(row, _group(path, row, field) if field else "all") for row in rows]

    doc = f"rows of {path}" + (f", grouped by {field}" if field else "")
    return Workload(samples, {}, "natural" if field else "iid", doc)


def _labeled(path: Path, field: str) -> Workload:
    """A user's texts with a label each."""

    def samples(report: Progress) -> list[Sample]:
        usable = {row.line for row in data.load([path]).rows if row.format == "text"}
        rows = [value for line, value in readers.read(path) if line in usable]
        labels = [_group(path, row, field) for row in rows]
        return [
            Sample({"text": row["text"], "label": label}, label)
            for row, label in zip(rows, labels, strict=True)
        ]

    return Workload(samples, CLASSIFYING, "dirichlet:0.3", f"texts of {path}, labeled by {field}")


def _field(rest: str) -> tuple[str, str]:
    path, _, field = rest.rpartition(":")
    return (path, field) if path else (rest, "")


def _group(path: Path, row: Mapping[str, Any], field: str) -> str:
    if row.get(field) is None or not str(row[field]).strip():
        raise LocalError(f"{path}: a row has no {field!r} to group it by; it has {', '.join(map(repr, row))}")
    return str(row[field]).strip()


TINY: Mapping[str, Any] = {
    "model": "tiny",
    "device": "cpu",
    "threads": 1,
    "lora_target_modules": ("all-linear",),
    "learning_rate": 5e-3,
    "batch_size": 8,
    "max_length": 64,
    "eval_blocks_max": 8,
}
"""Source: as the tests of training use it; learns in tens of steps."""

CLASSIFYING: Mapping[str, Any] = {
    "model": "minilm",
    "task": "classification",
    "threads": 1,
    "lora_target_modules": ("query", "value"),
    "learning_rate": 3e-3,
    "batch_size": 8,
    "max_length": 24,
    "local_steps": 2,
    "eval_blocks_max": 120,
}
"""Source: ml-runtime.md, section 6B."""

SCRATCH: Mapping[str, Any] = {
    "from_scratch": "nano",
    "device": "cpu",
    "threads": 1,
    "learning_rate": 2e-3,
    "local_steps": 10,
    "batch_size": 8,
    "max_length": 128,
    "eval_blocks_max": 64,
}
"""Source: as the demo learns (``testnet/settings.py``); four times its sequences are measured, all at once."""

WORKLOADS: dict[str, Workload] = {
    "languages": Workload(
        _languages, {"threads": 1}, "natural", "dialogues in 4 languages; SmolLM2 (fetches 93 MB)"
    ),
    "languages-tiny": Workload(
        _languages, TINY, "natural", "the same for a byte-level model of 0.1 M parameters"
    ),
    "topics": Workload(
        _topics, {"threads": 1}, "natural", "English dialogues on 6 topics; SmolLM2 (fetches 93 MB)"
    ),
    "topics-tiny": Workload(_topics, TINY, "natural", "the same for a byte-level model of 0.1 M parameters"),
    "chats": Workload(
        _chats,
        {"threads": 1, "answers_only": True},
        "natural",
        "questions and answers on 6 topics as messages, answers learned; SmolLM2 (fetches 93 MB)",
    ),
    "chats-tiny": Workload(
        _chats,
        {**TINY, "answers_only": True, "max_length": 128},
        "natural",
        "the same for a byte-level model of 0.1 M parameters",
    ),
    "shakespeare": Workload(
        _speeches, {"threads": 1}, "natural", "speeches of 8 roles of plays; SmolLM2 (fetches 99 MB)"
    ),
    "shakespeare-tiny": Workload(
        _speeches, TINY, "natural", "the same for a byte-level model of 0.1 M parameters (fetches 5 MB)"
    ),
    "scratch": Workload(
        _passages,
        SCRATCH,
        "iid",
        "all of Shakespeare for a model of 0.16 M parameters from scratch (fetches 5 MB)",
    ),
    "news": Workload(
        _news,
        {**CLASSIFYING, "max_length": 32},
        "dirichlet:0.3",
        "which of 8 topics a news story has; MiniLM (fetches 124 MB)",
    ),
    "sources": Workload(
        _sources, CLASSIFYING, "dirichlet:0.3", "which of 4 sources a snippet is from; MiniLM (fetches 86 MB)"
    ),
}
"""Workloads by name. To add one: a function that returns its samples, and a line here."""
