"""What a method asks of the run it takes part in; ``compatibility.py`` holds it against topology and settings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]
"""State of a method: named CPU tensors, a value. The store writes it as safetensors, a simulation copies it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Requirements of a mixing rule, optimizer, codec or factor rule; all off by default.

    Args:
        doubly_stochastic: columns of W sum to 1 too, so that a round keeps the mean.
        symmetric: W equals its transpose.
        static: the same W in every round.
        uniform: every row of W reads everybody with equal weights.
        lock_step: synchronous rounds: neighbors are waited for (``collect_s`` > 0).
        positive: W is positive semidefinite (smallest eigenvalue at least 0), as lazy weights make it.
        exact_codec: adapters travel as they are, without loss.
        linear: the adapter's tensors are averaged one by one, not refactored together.
        whole_rows: all that came of a row is mixed as it came: no robust rule leaves out or draws nearer.
        all_parts: all that travels of the adapter does so in every round.
    """

    doubly_stochastic: bool = False
    symmetric: bool = False
    static: bool = False
    uniform: bool = False
    lock_step: bool = False
    positive: bool = False
    exact_codec: bool = False
    linear: bool = False
    whole_rows: bool = False
    all_parts: bool = False
