"""What is learned: to continue text, or to give a text one of some labels. From tokens to batches, targets and hits.

A classification puts a new, random head onto the base; it is drawn from the run's seed on the CPU, so that all peers
begin with the same one, and it trains beside the adapter and travels with it, unless it is to stay private. This file
meets torch modules, but neither peft nor an optimizer. The catalogue stands at the foot.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from peer.config import OPTIONS, PeerConfig
from peer.training import data
from peer.training.data import IGNORED, Message, Row, Tokens
from peer.training.readers import BadRow

HEAD_MODULES = ("score", "classifier", "pre_classifier")
"""What transformers calls a classification's head, at the top of a model: decoders; encoders; DistilBERT, besides."""

ATTENTION = {
    "bert": ("query", "key", "value"),
    "roberta": ("query", "key", "value"),
    "xlm-roberta": ("query", "key", "value"),
    "electra": ("query", "key", "value"),
    "mpnet": ("q", "k", "v", "o"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj"),
    "modernbert": ("Wqkv", "Wo"),
    "gpt_neox": ("query_key_value", "dense"),
}
"""Attention's matrices by model type, where they are not called as the default of ``lora_target_modules`` says. Source:
transformers' module names; BERT's output is left out, because "dense" also names other layers there."""

INITIAL_RANGE = 0.02
"""Standard deviation of a new head's weights where the model's configuration says none. Source: BERT paper's code."""


class Measured(NamedTuple):
    """Sums over some sequences.

    Args:
        loss: nats, summed over the targets.
        targets: tokens predicted, or texts classified.
        correct: texts given the right label; 0 where nothing is classified.
    """

    loss: float
    targets: int
    correct: int


class Task(NamedTuple):
    """One line of the catalogue.

    Args:
        peft_type: how peft calls it.
        tokenize: (rows, tokenizer, config) -> (sequences, rows that gave none).
        collate: (sequences, pad id) -> (model inputs with labels, number of targets).
        correct: (logits, labels) -> how many are right, or None where there is no such thing.
        doc: one line for help and tables.
    """

    peft_type: str
    tokenize: Callable[[Sequence[Row], Any, PeerConfig], tuple[list[Tokens], list[BadRow]]]
    collate: Callable[[Sequence[Tokens], int], tuple[dict[str, torch.Tensor], int]]
    correct: Callable[[torch.Tensor, torch.Tensor], int | None]
    doc: str


def canonical(config: PeerConfig) -> str:
    """Return what two peers must have in common of their task, as canonical JSON; the order of labels counts.

    A private head does, too: a peer that keeps it sends fewer tensors.
    """
    if config.model.task == "causal-lm":
        return json.dumps({"task": config.model.task})
    return json.dumps(
        {"labels": config.model.labels, "private_head": config.model.private_head, "task": config.model.task}
    )


@torch.no_grad()
def measure(task: Task, module: Any, sequences: Sequence[Tokens], batch_size: int, pad: int) -> Measured:
    """Return the sums of ``module`` (in evaluation mode) over ``sequences``."""
    loss, count, correct = 0.0, 0, 0
    device = next(module.parameters()).device
    for start in range(0, len(sequences), batch_size):
        batch, targets = task.collate(sequences[start : start + batch_size], pad)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        output = module(**batch)
        hits = task.correct(output.logits, batch["labels"])
        loss, count, correct = loss + output.loss.item() * targets, count + targets, correct + (hits or 0)
    return Measured(loss, count, correct)


# -- continuing text


def _tokenize_text(
    rows: Sequence[Row], tokenizer: Any, config: PeerConfig
) -> tuple[list[Tokens], list[BadRow]]:
    if not config.data.answers_only:
        return data.tokenize(rows, tokenizer, config.training.max_length)
    asked = [answer_of(row) if row.format == "messages" else row for row in rows]
    refused = [row for row in asked if isinstance(row, BadRow)]
    sequences, bad = data.tokenize(
        [row for row in asked if isinstance(row, Row)], tokenizer, config.training.max_length
    )
    return sequences, [*refused, *bad]


def answer_of(row: Row) -> Row | BadRow:
    """Return a chat as prompt and completion: its last message, and all that was said before."""
    messages: tuple[Message, ...] = tuple(row.content)  # type: ignore[arg-type] - a chat, by its format
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return BadRow(
            row.file, row.line, "the chat does not end with an answer of the assistant to something"
        )
    return Row(row.file, row.line, "prompt/completion", messages[-1:], messages[:-1])


def _collate_text(sequences: Sequence[Tokens], pad: int) -> tuple[dict[str, torch.Tensor], int]:
    batch = data.collate(sequences, pad)
    return batch, int((batch["labels"][:, 1:] != IGNORED).sum())  # the first of a row is never predicted


# -- classifying text


def _tokenize_labeled(
    rows: Sequence[Row], tokenizer: Any, config: PeerConfig
) -> tuple[list[Tokens], list[BadRow]]:
    """One sequence a row, with the tokenizer's own marks (an encoder reads its class off one), cut at the end."""
    sequences: list[Tokens] = []
    bad: list[BadRow] = []
    for row in rows:
        ids = tokenizer(row.content, truncation=True, max_length=config.training.max_length, verbose=False)[
            "input_ids"
        ]
        if ids:
            sequences.append(Tokens(array("i", ids), label=config.model.labels.index(row.label)))
        else:
            bad.append(BadRow(row.file, row.line, "nothing to read once tokenized"))
    return sequences, bad


def _collate_labeled(sequences: Sequence[Tokens], pad: int) -> tuple[dict[str, torch.Tensor], int]:
    """Return input_ids and attention_mask, int64[B, T], and labels, int64[B]."""
    batch = data.collate(sequences, pad)
    return {**batch, "labels": torch.tensor([one.label for one in sequences])}, len(sequences)


def _correct(logits: torch.Tensor, labels: torch.Tensor) -> int:
    return int((logits.argmax(-1) == labels).sum())


# -- the base and its head


def check_base(config: PeerConfig, base: Any, missing: Collection[str]) -> None:
    """Refuse a base that cannot do the task.

    Args:
        missing: tensors of the model that its files do not hold, as from_pretrained reports them.

    Raises:
        LocalError: it lacks more than a new head, or takes fewer tokens than max_length.
    """
    lacking = sorted(
        name for name in missing if not (config.model.labels and name.partition(".")[0] in HEAD_MODULES)
    )
    if lacking:
        hint = (
            ""
            if config.model.labels
            else " If it is an encoder, it can only classify: --task classification."
        )
        raise LocalError(
            f"model {config.model.model} cannot do --task {config.model.task}: its files lack {len(lacking)} tensors "
            f"of it, such as {lacking[0]}.{hint}"
        )
    longest = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if config.model.labels and longest is not None and config.training.max_length > longest:
        raise LocalError(
            f"max_length {config.training.max_length} exceeds the model's {longest} positions; lower it"
        )


@torch.no_grad()
def draw_head(config: PeerConfig, base: Any, missing: Collection[str], pad: int) -> None:
    """Draw the tensors of a classification's head that the base's files do not hold, from the run's seed.

    On the CPU and in float32, so that peers with other devices draw the same; the head then computes in float32, since
    small steps would be lost in bfloat16. Also tells the model which token is padding. Does nothing for other tasks.
    """
    if not config.model.labels:
        return
    base.config.pad_token_id = pad
    generator = torch.Generator().manual_seed(config.run.seed)
    spread = getattr(base.config.get_text_config(), "initializer_range", INITIAL_RANGE)
    for name in head_modules(base):
        head = getattr(base, name).float()
        for part, parameter in sorted(head.named_parameters()):
            if f"{name}.{part}" in missing:
                drawn = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
                parameter.copy_(torch.zeros_like(drawn) if part.endswith("bias") else drawn)
        head.register_forward_pre_hook(_in_float32)


def head_modules(base: Any) -> list[str]:
    """Return the names of the modules that make up a classifying model's head."""
    return [name for name in HEAD_MODULES if hasattr(base, name)]


def _in_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if isinstance(one, torch.Tensor) else one for one in inputs)


def target_modules(config: PeerConfig, base: Any) -> tuple[str, ...]:
    """Return the modules to adapt: as given, or attention's as this model calls them where the default was left."""
    given = config.model.lora_target_modules
    default = OPTIONS["lora_target_modules"].default
    return ATTENTION.get(base.config.model_type, given) if given == default else given


def head_names(spec: AdapterSpec) -> frozenset[str]:
    """Return the names of the head's tensors in an adapter: what a peer with ``private_head`` neither sends nor mixes.

    ``base_model.model.score.weight``: peft's prefix, then the head's module.
    """
    found = (name for name, _ in spec.entries)
    return frozenset(
        name
        for name in found
        if name.removeprefix("base_model.model.").partition(".")[0] in HEAD_MODULES and ".lora_" not in name
    )


TASKS: dict[str, Task] = {
    "causal-lm": Task(
        "CAUSAL_LM", _tokenize_text, _collate_text, lambda logits, labels: None, "continue text"
    ),
    "classification": Task(
        "SEQ_CLS", _tokenize_labeled, _collate_labeled, _correct, "give a text one of some labels"
    ),
}
"""What can be learned. A new one must also stand in ``TASKS`` of ``config.py``, and have its kind of model in
``adapted_model.py``."""
