"""A learning rate from a short trial on one's own text, before the first round: the learning-rate range test.

From the initial adapter, a step is taken at each of a row of rates that grow by a constant factor (Smith, arXiv
1506.01186). Batches differ more from one another than a step changes the loss, so what counts is the *gain*: by how
much the loss of a step's batch, before the step, is below what the initial adapter has on the same batch. While rates
are too low the gain is about 0; then it grows, stands, and is lost again where steps are too long. Taken is the lowest
rate at which it has come to 0.6 of its greatest: high on the slope, where the loss still falls fast, and well below
where it rises. The trial has an optimizer and a sampler of its own and leaves no trace.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from peer.training.frames import Progress
from peer.training.local_steps import OPTIMIZERS, Learner, Shift
from peer.training.plain_steps import PlainSteps
from peer.training.sequences import BatchSampler, Tokens

STEPS = 16
"""Rates that are tried, a step each. Source: ours; each is then 1.5 times the one before."""
BELOW = 10.0
"""The lowest rate is the kind's usual one over this. Source: our bench; there next to nothing is learned in a step."""
ABOVE = 50.0
"""The highest rate is the kind's usual one times this. Source: ours; there the loss rises again, with AdamW."""
SECONDS = 120.0
"""A trial that takes longer is broken off, or not begun. Source: ours; SmolLM2 needs 30 s of one core."""
FORWARD = 0.25
"""Share of that which measuring the batches may take: a step takes three times as long. Source: as of any network."""
SHARE = 0.6
"""Taken is the rate at which the gain has come to this share of its greatest. Source: our bench (docs/results.md): so
chosen, 1.3e-2 to 2.9e-2 for the tiny model and 3.6e-3 for SmolLM2, where searches over whole runs find 1e-2 to 2e-2
and 4e-3 to 6e-3."""
LOST = 0.25
"""The trial ends when two gains in a row are below this share of the greatest: steps are too long. Source: ours."""
GAIN_MIN = 0.01
"""Below this share of the loss, the greatest gain is chance. Source: ours; batches of 4 gain up to 0.3 % by chance."""


class Tried(NamedTuple):
    """A step of the trial: its rate, and the gain of the steps before it, nats."""

    rate: float
    gain: float


def rates_around(usual: float) -> tuple[float, ...]:
    """Return the rates that are tried, from low to high."""
    factor = (BELOW * ABOVE) ** (1 / (STEPS - 1))
    return tuple(usual / BELOW * factor**step for step in range(STEPS))


def smoothed(gains: Sequence[float]) -> list[float]:
    """Return each gain averaged with its neighbors, itself counting double, so that one odd batch decides little."""
    padded = [gains[0], *gains, gains[-1]]
    return [
        (before + 2.0 * gain + after) / 4.0
        for before, gain, after in zip(padded[:-2], gains, padded[2:], strict=True)
    ]


def chosen(tried: Sequence[Tried], base_loss: float) -> float:
    """Return the rate that a trial speaks for, in two digits; 0 if it speaks for none: nothing was learned at any.

    Args:
        tried: from low to high, gains finite.
        base_loss: mean loss of the initial adapter on the trial's batches, nats.
    """
    if not tried:
        return 0.0
    gains = smoothed([one.gain for one in tried])
    greatest = max(gains)
    if not greatest > GAIN_MIN * base_loss:
        return 0.0
    rate = next(one.rate for one, gain in zip(tried, gains, strict=True) if gain >= SHARE * greatest)
    return float(f"{rate:.2g}")  # people copy it


class Trial(NamedTuple):
    """What came of a trial: the rate it speaks for, or 0 and why it speaks for none; and its steps."""

    rate: float
    tried: tuple[Tried, ...] = ()
    why: str = ""


TOO_LONG = Trial(0.0, why="a trial on our own text takes too long here")


def try_rates(learner: Learner, shift: Shift, usual: float, progress: Progress) -> Trial:
    """Run the trial from the adapter that the model holds, which is changed by it.

    Args:
        learner: its data, model and kind of optimizer are used.
        shift: of all parameters, from the adapter that the model holds.
        usual: the rate in whose surroundings is looked.
        progress: told of its steps.
    """
    training, train = learner.config.training, learner.shard.train
    sampler = BatchSampler(len(train), training.batch_size, learner.config.run.seed)
    batches = [
        [[train[index] for index in sampler.draw()] for _ in range(training.accumulate)] for _ in range(STEPS)
    ]
    drawn = itertools.chain.from_iterable(batches)
    optimizer = OPTIMIZERS[training.local_optimizer](list(shift.trained.values()), training)
    steps = PlainSteps(dataclasses.replace(learner, optimizer=optimizer, draw=lambda: next(drawn)))
    started = time.monotonic()
    learner.module.train()
    progress("rate", None)
    before = _losses(learner, batches)
    if time.monotonic() - started > FORWARD * SECONDS:
        return TOO_LONG
    tried: list[Tried] = []
    for rate, base in zip(rates_around(usual), before, strict=True):
        progress("rate", (len(tried) + 1) / STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        tried.append(Tried(rate, base - steps.take(shift).loss))
        if is_lost(tried):
            break
        if time.monotonic() - started > SECONDS:
            return TOO_LONG
    finite = tuple(one for one in tried if math.isfinite(one.gain))
    rate = chosen(finite, sum(before) / len(before))
    return Trial(rate, finite, "" if rate else "in a trial on our own text no rate helped")


def is_lost(tried: Sequence[Tried]) -> bool:
    """Say whether steps have become too long: the last two took more than ``LOST`` of the greatest gain, or one's loss
    is no number."""
    if not math.isfinite(tried[-1].gain):
        return True
    greatest = max(one.gain for one in tried)
    return len(tried) > 2 and greatest > 0 and max(one.gain for one in tried[-2:]) < LOST * greatest


@torch.no_grad()
def _losses(learner: Learner, steps: Sequence[Sequence[Sequence[Tokens]]]) -> list[float]:
    """Return the mean loss of the batches of each step as the model is now."""
    means = []
    for batches in steps:
        total, all_targets = 0.0, 0
        for sequences in batches:
            batch, targets = learner.batch(sequences)
            total += learner.task.forward(learner.module, batch).loss.item() * targets
            all_targets += targets
        means.append(total / all_targets)
    return means
