"""Which learning rate a run has whose user gave none: the usual one of its kind of adapter, or that of a trial.

A trainer is always made with a rate (``with_rate``); ours may then find a better one on its own text
(``rate_trial.py``).
"""

from __future__ import annotations

from peer.config import PeerConfig
from peer.training.adapter_kinds import ADAPTERS
from peer.training.frames import Progress, RateChoice
from peer.training.privacy_budget import RATE_FACTOR
from peer.training.trainers import FindsRate, Trainer, trainer_name

SGD_FACTOR = 100.0
"""Plain SGD wants rates that are so many times those of AdamW, which divides by the size of gradients. Source: our
tests, in which 0.5 suits SGD and 5e-3 AdamW; gradients are clipped to 1."""


AGENT_FACTOR = 0.04
"""Learning by trial wants so much of the rate of learning text: few answers are right, so that gradients are mostly
noise. Source: our trials of ``full`` on the novice, where 2e-4 gains, 1e-3 loses all."""


def usual_rate(config: PeerConfig) -> float:
    """Return the usual rate of the kind of adapter with the optimizer, and with noise if there is noise."""
    rate = ADAPTERS[config.model.adapter].rate
    if config.training.local_optimizer == "sgd":
        rate *= SGD_FACTOR
    if config.model.task == "agent":
        rate *= AGENT_FACTOR
    return rate * RATE_FACTOR if config.privacy.dp_epsilon else rate


def with_rate(config: PeerConfig) -> PeerConfig:
    """Return the configuration with the usual rate where none was given."""
    if config.training.learning_rate:
        return config
    return config.with_options(learning_rate=usual_rate(config))


def choose(trainer: Trainer, config: PeerConfig, progress: Progress) -> RateChoice | None:
    """Return the rate that a trainer will take, found by itself if it can; None if the user gave one.

    Args:
        trainer: made with the usual rate, where none was given; as it was saved, after a restart.
        config: what the user gave.
        progress: told of a trial.
    """
    if config.training.learning_rate:
        return None
    if isinstance(trainer, FindsRate):
        return trainer.find_rate(progress)
    return RateChoice(usual_rate(config), "usual", f"{trainer_name(config)} makes no trial")
