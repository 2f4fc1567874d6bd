"""The task of giving a text one of some labels, by a new head on the base model.

The head is drawn from the run's seed on the CPU, so that all peers begin with the same one; it trains beside the
adapter and travels with it, unless it is to stay private.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec
from peer.config import PeerConfig
from peer.training import sequences, task
from peer.training.data import Row
from peer.training.libraries import BaseModel, Tokenizer
from peer.training.readers import BadRow
from peer.training.sequences import Tokens
from peer.training.task import Task

HEAD_MODULES = ("score", "classifier", "pre_classifier")
"""What transformers calls a classification's head, at the top of a model: decoders; encoders; DistilBERT, besides."""

INITIAL_RANGE = 0.02
"""Standard deviation of a new head's weights where the model's configuration says none. Source: BERT paper's code."""


def head_names(spec: AdapterSpec) -> frozenset[str]:
    """Return the names of the head's tensors in an adapter: what a peer with ``private_head`` neither sends nor mixes.

    ``base_model.model.score.weight``: peft's prefix, then the head's module.
    """
    return frozenset(
        name
        for name, _ in spec.entries
        if name.removeprefix("base_model.model.").partition(".")[0] in HEAD_MODULES and ".lora_" not in name
    )


def _tokenize(
    rows: Sequence[Row], tokenizer: Tokenizer, config: PeerConfig
) -> tuple[list[Tokens], list[BadRow]]:
    """One sequence a row, with the tokenizer's own marks (an encoder reads its class off one), cut at the end."""
    labels, max_length = config.model.labels, config.training.max_length
    tokenized: list[Tokens] = []
    bad: list[BadRow] = []
    for row in rows:
        assert isinstance(row.content, str), "labeled text, by its format"
        ids = tokenizer(row.content, truncation=True, max_length=max_length, verbose=False)["input_ids"]
        if ids:
            tokenized.append(Tokens(array("i", ids), label=labels.index(row.label)))
        else:
            bad.append(BadRow(row.file, row.line, "nothing to read once tokenized"))
    return tokenized, bad


def _collate(batch: Sequence[Tokens], pad: int) -> tuple[dict[str, Tensor], int]:
    """Return input_ids and attention_mask, int64[B, T], and labels, int64[B]; each text is one target."""
    inputs = sequences.collate(batch, pad)
    return {**inputs, "labels": torch.tensor([text.label for text in batch])}, len(batch)


def _correct(logits: Tensor, labels: Tensor) -> int:
    """Count the rows of float[B, classes] whose largest entry is that of the label."""
    return int((logits.argmax(-1) == labels).sum())


def _check_base(config: PeerConfig, base: BaseModel, missing: Collection[str]) -> None:
    """Refuse a base that lacks more than a new head, or takes fewer tokens than ``max_length``."""
    lacking = sorted(name for name in missing if name.partition(".")[0] not in HEAD_MODULES)
    task.refuse_lacking(config.model, lacking, hint="")
    task.refuse_too_long(config, base)


def _head_modules(base: BaseModel) -> list[str]:
    return [name for name in HEAD_MODULES if hasattr(base, name)]


@torch.no_grad()
def prepare_head(base: BaseModel, missing: Collection[str], pad: int, seed: int) -> None:
    """Draw the head's tensors that the base's files do not hold, and let the head compute in float32.

    On the CPU and in float32, so that peers with other devices draw the same; small steps would be lost in bfloat16.
    Also tells the model which token is padding.

    Args:
        missing: names of the tensors to draw, as ``from_pretrained`` reports them.
    """
    base.config.pad_token_id = pad
    generator = torch.Generator().manual_seed(seed)
    spread = getattr(base.config.get_text_config(), "initializer_range", INITIAL_RANGE)
    for module in _head_modules(base):
        head: torch.nn.Module = getattr(base, module).float()
        for name, parameter in sorted(head.named_parameters()):
            if f"{module}.{name}" in missing:
                drawn = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
                parameter.copy_(torch.zeros_like(drawn) if name.endswith("bias") else drawn)
        head.register_forward_pre_hook(_in_float32)


def _in_float32(module: torch.nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in inputs)


CLASSIFICATION = Task(
    doc="give a text one of some labels",
    peft_type="SEQ_CLS",
    loader="AutoModelForSequenceClassification",
    tokenize=_tokenize,
    collate=_collate,
    correct=_correct,
    forward=task.forward,
    head_modules=_head_modules,
    check_base=_check_base,
    prepare_base=prepare_head,
)
