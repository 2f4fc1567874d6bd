"""What a peer and its training process say to one another, and the frames it travels in.

A frame is a 4-byte big-endian header length, a msgpack map, then ``payload_bytes`` raw bytes (an adapter's float32
values, two such vectors one after the other, or nothing). Both ends are ours and run on one machine, so a malformed
frame is a bug, not an attack; lengths are bounded all the same, because a stray print into the pipe would otherwise be
read as a length of gigabytes. This file does no IO and knows neither torch nor trio.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from gossip.rollouts import Rollout

HEADER_BYTES_MAX = 16 << 20
"""Largest header. Source: guess; a report of 1000 bad rows with an adapter config takes about 200 kB."""

PREFIX_BYTES = 4
"""Length of the header's length."""

LABELS_FILE = "labels.json"
"""Beside an exported classification: its labels, a list in the order of the head's outputs."""

Progress = Callable[[str, float | None], None]
"""Called with (stage, done): stage is "download", "convert", ...; done is 0 to 1, or None where not known."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step has been taken.

    Attributes:
        step: number within this round, 1 to ``steps``.
        loss: mean loss over the step's target tokens, nats.
    """

    step: int
    steps: int
    loss: float
    tokens: int


OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of one round of local steps.

    Attributes:
        state: the adapter after the steps.
        loss: mean training loss over the round's target tokens, nats.
        sequences: how many sequences were trained on (the weight that sample-weighted mixing wants).
        tokens: target tokens among them.
        seconds: wall time of the steps.
        dropped: steps dropped because they did not fit into memory; later batches have half as many sequences.
        unsaved: why the training process could not save its own state; empty if it could, or was not asked to.
        stopped: why no step was taken (``state`` is then what it was); empty if steps were.
        rollouts: answers of our own for others to learn from; none from most trainers.
    """

    state: AdapterState
    loss: float
    steps: int
    sequences: int
    tokens: int
    seconds: float
    dropped: int = 0
    unsaved: str = ""
    stopped: str = ""
    rollouts: tuple[Rollout, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out losses, nats a token; of a classification, nats a text, and shares of texts given the right label.

    Attributes:
        own: mean over the target tokens of our own held-out rows.
        all: mean of the token means of all shards (our own, and each file of ``eval_data``); None without
            eval_data.
        per_file: token mean of each ``eval_data`` file, by its path.
        accuracy, accuracy_all, accuracy_per_file: the same of hits, 0 to 1; None and empty but for a classification.
    """

    own: float
    all: float | None
    per_file: Mapping[str, float]
    accuracy: float | None = None
    accuracy_all: float | None = None
    accuracy_per_file: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Mean losses of single rows over their targets, nats, perhaps not finite; always of the same rows in the same
    order.

    Attributes:
        members: rows of ours that are learned, or a sample of them.
        held_out: rows held out of the same files, or a sample.
        canaries: all that were planted.
        references: rows of the same make as canaries, never planted; none without canaries.
    """

    members: tuple[float, ...]
    held_out: tuple[float, ...]
    canaries: tuple[float, ...] = ()
    references: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """How a run's values become a folder that plain peft or transformers loads; see ``lora_xs.export_tensors``.

    Attributes:
        weights: name of the file of tensors.
        files: the other files that are written, name to text; they never change in a run. Of a classification, its
            labels are among them, as a list in ``LABELS_FILE``.
        copies: paths of the base model's files that go along as they are (a tokenizer); empty for adapters.
        frozen: factors that all peers share and that never travel, under their exported names; None without any.
    """

    weights: str
    files: Mapping[str, str]
    copies: tuple[str, ...] = ()
    frozen: AdapterState | None = None

    @property
    def is_whole(self) -> bool:
        """Whether what is trained is a whole model, not an adapter."""
        return "config.json" in self.files


@dataclass(frozen=True, slots=True)
class RateChoice:
    """The learning rate of a run whose user gave none.

    Attributes:
        rate: it.
        source: "tried", by a trial on our own text; "usual", of the kind of adapter; or "kept", from before a restart.
        why: why it is the usual one, a clause; else empty.
        tried: of a trial, the rates of its steps and by how many nats the loss was lower before each.
    """

    rate: float
    source: Literal["tried", "usual", "kept"]
    why: str = ""
    tried: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """What the training process knows once model, data and adapter are set up.

    Attributes:
        initial: the seeded adapter that every peer of the run starts from (also after a resume).
        manifest: base_digest, base_dtype, tokenizer_digest, adapter_digest (of the seeded values),
            adapter_spec, adapter_frozen (of what peers draw alike and do not send): what must be equal among peers
            for mixing to make sense.
        model_name: how to name the base model to a human.
        device: "cpu", "cuda" or "mps".
        data_report: the rows read, the bad ones, one rendered sample: text to print.
        rows, rows_held_out, sequences: this peer's shard: rows to learn from, rows held out, sequences to learn
            from.
        base_parameters: parameters of the frozen base.
        seconds: from the start of the process until now.
        export: how the adapter is written for others to load.
        label_rows: rows to learn from of each label, in the run's order of labels; empty but for a classification.
        canaries: how many of ``rows`` are canaries.
        notes: what the user should know before the first step, sentence by sentence.
        rate: the learning rate that was chosen; None where the user gave one.
        takes_rollouts: the trainer learns from rollouts of others (``worker.py`` finds out).
    """

    initial: AdapterState
    manifest: Mapping[str, str]
    model_name: str
    device: str
    data_report: str
    rows: int
    rows_held_out: int
    sequences: int
    base_parameters: int
    seconds: float
    export: Export
    label_rows: tuple[int, ...] = ()
    canaries: int = 0
    notes: tuple[str, ...] = ()
    rate: RateChoice | None = None
    takes_rollouts: bool = False


def encode(header: Mapping[str, Any], payload_bytes: int = 0) -> bytes:
    """Return prefix and header of a frame; the caller sends ``payload_bytes`` raw bytes after it."""
    packed: bytes = msgpack.packb({**header, "payload_bytes": payload_bytes})
    if len(packed) > HEADER_BYTES_MAX:
        raise LocalError(f"a frame's header has {len(packed)} bytes, more than {HEADER_BYTES_MAX}")
    return struct.pack(">I", len(packed)) + packed


def header_length(prefix: bytes | bytearray) -> int:
    """Return the header's length in bytes.

    Raises:
        LocalError: beyond the limit: the pipe does not carry frames (something else wrote into it).
    """
    length: int = struct.unpack(">I", prefix)[0]
    if not 0 < length <= HEADER_BYTES_MAX:
        raise LocalError(f"the pipe to the training process carries no frame (header of {length} bytes)")
    return length


def decode_header(packed: bytes | bytearray) -> dict[str, Any]:
    """Return a frame's header; it holds ``kind`` and ``payload_bytes``."""
    header = msgpack.unpackb(packed)
    if not isinstance(header, dict) or "kind" not in header or "payload_bytes" not in header:
        raise LocalError(f"not a frame's header: {str(header)[:100]}")
    return header
