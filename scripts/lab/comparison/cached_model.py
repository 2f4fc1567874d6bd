"""MiniLM with an adapter on its last layer alone, as cheap as it can be: all that is frozen is computed once per text.

The classification reads only the first token of the last layer, whose keys and values are sums of something frozen and
of LoRA's part. So a step costs a hundredth of the whole model's and is the same: ``LastLayer`` is checked against the
model that it is cut out of. Dropout is left out. It knows nothing of privacy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gossip.adapter import AdapterState
from gossip.errors import LocalError
from peer.config import PeerConfig
from peer.training import tasks
from peer.training.adapted_model import AdaptedModel
from peer.training.classification import CLASSIFICATION
from peer.training.data import Row
from peer.training.sequences import Batch, Tokens
from peer.training.task import Output

TEXTS_AT_ONCE = 64
"""Texts that the frozen layers read together. Source: guess."""
LAST = "5"
"""MiniLM's last layer, as ``lora_layers`` names it."""
DIFFERENCE_MAX = 1e-3
"""How far logits may lie from those of the whole model. Source: ours; rounding gives 1e-5."""


class Answer(NamedTuple):
    """What ``Task.forward`` returns."""

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Features:
    """What the frozen part makes of N texts of up to T tokens; float32, D wide.

    Attributes:
        hidden: [N, T, D], what enters the last layer.
        keys, values: [N, T, D], without LoRA's part.
        mask: [N, T], 0 where there is a token and minus infinity where there is none.
        labels: int64[N].
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor
    labels: Tensor


class LastLayer(torch.nn.Module):
    """The last layer and the head of an adapted model, for the first token; parameters are the model's own.

    Args:
        model: MiniLM as a classification, with LoRA on query and value of its last layer.
    """

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        base = model.module.base_model.model
        self.layer = base.bert.encoder.layer[-1]
        self.pooler = base.bert.pooler
        self.head = base.classifier
        self.parameters_by_name = model.parameters

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor, labels: Tensor) -> Answer:
        attention, first = self.layer.attention, hidden[:, 0]
        attending = getattr(attention, "self")  # noqa: B009 - a name of transformers that reads like ours
        values = values + lora_part(attending.value, hidden)
        heads = attending.num_attention_heads
        query = attending.query(first).view(len(first), heads, 1, -1)
        keys, values = (one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (keys, values))
        scores = query @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1]) + mask[:, None, None]
        context = (scores.softmax(-1) @ values).flatten(1)
        mixed = attention.output.LayerNorm(attention.output.dense(context) + first)
        inner = self.layer.intermediate.intermediate_act_fn(self.layer.intermediate.dense(mixed))
        out = self.layer.output.LayerNorm(self.layer.output.dense(inner) + mixed)
        logits = self.head(torch.tanh(self.pooler.dense(out)))
        return Answer(functional.cross_entropy(logits, labels), logits)


def lora_part(module: Any, x: Tensor) -> Tensor:
    """Return what LoRA adds to a linear module's output."""
    (name,) = module.active_adapters
    added: Tensor = module.lora_B[name](module.lora_A[name](x)) * module.scaling[name]
    return added


@torch.no_grad()
def features_of(model: AdaptedModel, rows: Sequence[Row]) -> Features:
    """Compute the frozen part for some texts, and check that what is built on it is the model.

    Raises:
        LocalError: it is not.
    """
    base, config = model.module.base_model.model, model.config
    model.module.eval()
    tokenized, bad = tasks.TASKS["classification"].tokenize(rows, model.tokenizer, config)
    assert not bad, "a workload's rows are in order"
    pieces = []
    for start in range(0, len(tokenized), TEXTS_AT_ONCE):
        batch, _ = CLASSIFICATION.collate(tokenized[start : start + TEXTS_AT_ONCE], 0)
        short = config.training.max_length - batch["input_ids"].shape[1]
        ids, present = (functional.pad(batch[name], (0, short)) for name in ("input_ids", "attention_mask"))
        found = base.bert(input_ids=ids, attention_mask=present, output_hidden_states=True)
        hidden = found.hidden_states[-2]
        attending = getattr(base.bert.encoder.layer[-1].attention, "self")  # noqa: B009 - as above
        mask = torch.where(present > 0, 0.0, -math.inf)
        linear = [getattr(attending, name) for name in ("key", "value")]
        keys, values = (getattr(one, "base_layer", one)(hidden) for one in linear)
        pieces.append(Features(hidden, keys, values, mask, batch["labels"]))
        if not start:
            _check(model, pieces[0], ids, present)
    names = Features.__slots__
    return Features(*(torch.cat([getattr(piece, name) for piece in pieces]) for name in names))


def _check(model: AdaptedModel, features: Features, ids: Tensor, present: Tensor) -> None:
    whole = model.module(input_ids=ids, attention_mask=present).logits
    inputs = {name: getattr(features, name) for name in Features.__slots__}
    difference = float((whole - LastLayer(model)(**inputs).logits).abs().max())
    if difference > DIFFERENCE_MAX:
        raise LocalError(
            f"the last layer by itself gives logits {difference:.2g} off those of {model.source.name}: this comparison "
            "is written for MiniLM"
        )


def task_on(features: Features) -> Any:
    """Return the classification of texts that are named by their numbers: ``Tokens`` of one id each."""

    def collate(batch: Sequence[Tokens], pad: int) -> tuple[dict[str, Tensor], int]:
        numbers = torch.tensor([one.ids[0] for one in batch])
        return {name: getattr(features, name)[numbers] for name in Features.__slots__}, len(batch)

    def forward(module: Any, batch: Batch) -> Output:
        answer: Output = module(**batch)
        return answer

    return replace(CLASSIFICATION, collate=collate, forward=forward)


@torch.no_grad()
def accuracy(model: AdaptedModel, state: AdapterState, features: Features, numbers: Sequence[int]) -> float:
    """Return the share of some texts that an adapter gives the right label."""
    model.put(state)
    inputs: Mapping[str, Tensor] = {
        name: getattr(features, name)[list(numbers)] for name in Features.__slots__
    }
    logits = LastLayer(model).eval()(**inputs).logits
    return float((logits.argmax(-1) == inputs["labels"]).float().mean())


def config_of(settings: Mapping[str, Any], seed: int, **options: Any) -> PeerConfig:
    """Return the configuration of a peer of the comparison."""
    return PeerConfig.of(**{**settings, "seed": seed, "lora_layers": LAST, **options})
