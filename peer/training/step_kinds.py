"""The catalogue of ways to take local steps: how the rows of one are chosen, and how a gradient is made of them."""

from __future__ import annotations

from collections.abc import Callable

from peer.config import PeerConfig
from peer.training.local_steps import Learner, Steps
from peer.training.plain_steps import PlainSteps
from peer.training.private_steps import PrivateSteps


def steps_of(learner: Learner) -> Steps:
    """Return what takes the steps of a peer."""
    return STEPS[kind_of(learner.config)](learner)


def kind_of(config: PeerConfig) -> str:
    """Return the kind of steps that a configuration asks for."""
    return "dp-sgd" if config.privacy.dp_epsilon else "plain"


STEPS: dict[str, Callable[[Learner], Steps]] = {"plain": PlainSteps, "dp-sgd": PrivateSteps}
"""Ways of taking steps by name."""
