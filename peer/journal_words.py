"""How numbers and stages of the journal are said to people."""

from __future__ import annotations

import math

STAGES = {
    "import": "loading libraries",
    "download": "downloading the base model",
    "verify": "checking its digest",
    "convert": "converting it once",
    "tokens": "turning the text into tokens once",
    "save": "saving it",
    "load": "loading the base model",
    "rate": "trying learning rates on our own text",
}
"""Stage of the preparation -> what a person is told of it; others are told by their own name."""

TRAVELS = {
    "weights": "adapter weights",
    "rollouts": "answers to tasks",
    "both": "adapter weights and answers to tasks",
}
"""`--share` -> what others can read of ours."""


def what_travels(join: str) -> str:
    """Return what others can read of ours, by the line with which a friend joins."""
    _, _, rest = join.partition(" --share ")
    return TRAVELS[rest.split()[0] if rest else "weights"]


def megabytes(count: float) -> str:
    """Return a byte count as people read it, e.g. ``"4.4 MB"``."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def loss_in_words(value: float) -> str:
    """Return a loss, or that it is no number."""
    return f"{value:.3f}" if math.isfinite(value) else "not finite"
