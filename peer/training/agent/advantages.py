"""What an answer is worth, and the objective that makes good answers more probable: GRPO, and a rule for strangers.

Pure functions of numbers and tensors. Sources: GRPO (arXiv 2402.03300) for advantages within a group; DAPO (2503.14476)
for the two clipping bounds, the mean over tokens and no KL; the rule for others' answers is ours (docs/agents.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
"""How far the ratio of probabilities may fall and rise with effect. Source: DAPO (arXiv 2503.14476)."""

ADVANTAGE_MAX = 3.0
"""Largest advantage of another's answer. Source: ours; the advantage of one right answer in a group of ten."""

NEED_FLOOR = 0.02
"""What a task that is always answered right still weighs when answers of others are drawn. Source: ours; a skill that
is never drawn any more could be lost unnoticed."""


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Return (reward - mean) / standard deviation of each answer to one question; all 0 where all are alike."""
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / deviation if deviation else 0.0 for reward in rewards]


def received_advantage(success: float) -> float:
    """Return what a right answer of another is worth to who answers right with probability ``success``, 0 to 1.

    It is the advantage that one's own right answer would have in a large group: (1 - b) / sqrt(b (1 - b)), at most
    ``ADVANTAGE_MAX``; nothing to who is always right.
    """
    if success >= 1.0:
        return 0.0
    return min(ADVANTAGE_MAX, math.sqrt((1.0 - success) / success)) if success > 0.0 else ADVANTAGE_MAX


def need(success: float) -> float:
    """Return the weight with which answers to a task are drawn by who answers right with probability ``success``."""
    return 1.0 + NEED_FLOOR - success


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return float32[B, T - 1]: of each token but the first, the log-probability that it was given.

    Args:
        logits: float[B, T, vocabulary].
        tokens: int64[B, T].
    """
    predicted = logits[:, :-1].float().log_softmax(dim=-1)
    return predicted.gather(-1, tokens[:, 1:, None])[..., 0]


def objective(now: Tensor, before: Tensor, advantages: Tensor, counts: Tensor, total: int) -> Tensor:
    """Return the loss to lower: minus the clipped objective, summed over the agent's tokens, over ``total``.

    Args:
        now: float32[B, T], log-probabilities of the tokens, differentiable.
        before: the same when the answers were drawn; equal to ``now`` in a first step, where nothing is clipped.
        advantages: float32[B].
        counts: bool[B, T], the agent's tokens.
        total: tokens that the mean is over, at least those that count.
    """
    ratio = (now - before).exp()
    worth = advantages[:, None]
    gained = torch.minimum(ratio * worth, ratio.clamp(1.0 - CLIP_LOW, 1.0 + CLIP_HIGH) * worth)
    return -(gained * counts).sum() / total
