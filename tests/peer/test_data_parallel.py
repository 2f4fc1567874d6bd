"""The law of synchronous training: with one step a round on the complete graph, gossip is data-parallel SGD.

Adapters travel in float32, and transformers' models compute norms and losses in it, so that in a run the two differ by
its rounding. Here the steps are those of training itself on a model in float64, the batches those of a shard, and the
rows of W those of the topology; nothing in between is rounded.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from peer.config import PeerConfig
from peer.training.causal_lm import CAUSAL_LM
from peer.training.local_steps import OPTIMIZERS, Learner, Shift
from peer.training.model_making import silent
from peer.training.plain_steps import PlainSteps
from peer.training.sequences import BatchSampler, Tokens
from peer.training.shard import open_shard
from peer.training.tiny_model import byte_tokenizer
from topology.links import parse_topology

PEERS, ROUNDS = ("a", "b", "c", "d"), 20
NEVER_CLIPPED = 1e9


class Bigrams(torch.nn.Module):
    """Predicts a byte from the one before, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Embedding(258, 16, dtype=torch.float64)
        self.outer = torch.nn.Linear(16, 258, dtype=torch.float64)


def forward(model: Any, batch: Any) -> Any:
    logits = model.outer(torch.tanh(model.inner(batch["input_ids"][:, :-1])))
    return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits.mT, batch["labels"][:, 1:]))


def learner_of(path: Path) -> Learner:
    config = PeerConfig.of(
        data=(path,), from_scratch="nano", local_optimizer="sgd", learning_rate=0.5, batch_size=2, max_length=16,
        max_grad_norm=NEVER_CLIPPED,
    )  # fmt: skip
    model = Bigrams()
    parameters = dict(model.named_parameters())
    shard = open_shard(config, byte_tokenizer(), silent)
    sampler = BatchSampler(len(shard.train), 2, 0)
    return Learner(
        config,
        model,
        parameters,
        dataclasses.replace(CAUSAL_LM, forward=forward),
        shard,
        OPTIMIZERS["sgd"](list(parameters.values()), config.training),
        lambda sequences: CAUSAL_LM.collate(sequences, 257),
        lambda: [shard.train[index] for index in sampler.draw()],
        258,
    )


def test_one_step_a_round_on_the_complete_graph_is_data_parallel_sgd(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(f'{{"text": "row {number} says {number * 7919}"}}\n' for number in range(90)))
    learner = learner_of(path)
    batches = [[learner.draw() for _ in PEERS] for _ in range(ROUNDS)]
    start = values_of(learner)
    rows = [row_of(peer) for peer in PEERS]
    together = [start] * len(PEERS)
    parallel = start
    for drawn in batches:
        moved = [stepped(learner, one, [batch]) for one, batch in zip(together, drawn, strict=True)]
        together = [(torch.stack(moved) * row[:, None]).sum(0) for row in rows]
        parallel = stepped(learner, parallel, drawn)
    assert (parallel - start).norm() > 1e-2 * start.norm(), "something was learned"
    for one in together:
        assert (one - parallel).norm() < 1e-12 * parallel.norm()


def row_of(peer: str) -> Tensor:
    """Return the peer's row of W, float64, in the order of ``PEERS``."""
    links = parse_topology("complete", seed=0)(peer, PEERS, 0, random.Random(0))
    weights = {**dict(links.read_from), peer: links.self_weight}
    return torch.tensor([weights[other] for other in PEERS], dtype=torch.float64)


def values_of(learner: Learner) -> Tensor:
    """Return all trained values, float64[P]."""
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters.values()])


def stepped(learner: Learner, values: Tensor, batches: list[list[Tokens]]) -> Tensor:
    """Return float64[P] after one optimizer step on the mean loss over some batches, as training takes it."""
    parameters = list(learner.parameters.values())
    pieces = values.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))
    config, drawn = learner.config.with_options(accumulate=len(batches)), iter(batches)
    steps = PlainSteps(dataclasses.replace(learner, config=config, draw=lambda: next(drawn)))
    spec = AdapterSpec.of(learner.parameters)
    unused = AdapterState(spec, torch.zeros(spec.size))
    assert steps.take(Shift(learner.parameters, unused, None, 0.0)).counts
    return values_of(learner)
