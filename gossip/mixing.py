"""How a peer combines its own adapter with those it has read: the catalogue of mixing rules.

A rule is a value: ``init`` makes its state, ``mix`` is pure. Contributions come in sorted order of senders, because
float sums must not depend on arrival; their weights and our own add up to 1 (a row of W, with the weight of whatever
did not come returned to self). Rules act on the flat vector: averaging LoRA factors is not averaging their product
(error bounded by the factors' disagreement, algorithms.md section 3.1), which stays small under a common start and
frequent mixing. To add a rule: one function and one line in ``MIXERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState

MIX_BLOCK = 256 * 1024
"""Values mixed at a time, 1 MiB of float32: the sum stays in the cache while the contributions stream by.
Source: our bench (scripts/bench.py mixing)."""

AGE_RATIO_MAX = 4.0
"""An age is a claim: no contribution counts as more than this many times our own age. Source: guess."""


class Contribution(NamedTuple):
    """One decoded adapter as a mixing rule sees it.

    Attributes:
        sender: peer id.
        state: the adapter.
        weight: its entry in my row of W, in [0, 1].
        age: local steps that went into it (a claim, except our own).
        round: the round in which it was published.
    """

    sender: str
    state: AdapterState
    weight: float
    age: int
    round: int


class Mixer(NamedTuple):
    """A mixing rule. ``mix(own, others, S) -> (AdapterState, S)``; weights of ``own`` and ``others`` sum to 1."""

    init: Callable[[AdapterSpec], Any]
    mix: Callable[[Contribution, Sequence[Contribution], Any], tuple[AdapterState, Any]]
    doc: str


def weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of ``weights[k] * vectors[k]``.

    Args:
        vectors: K >= 1 tensors float32[P]; none is written.
        weights: K numbers.

    Returns:
        A new float32[P]. One pass over each input: blocks are summed while they lie in the cache.
    """
    total = torch.empty_like(vectors[0])
    for start in range(0, total.numel(), MIX_BLOCK):
        block = total[start : start + MIX_BLOCK]
        torch.mul(vectors[0][start : start + MIX_BLOCK], weights[0], out=block)
        for vector, weight in zip(vectors[1:], weights[1:], strict=True):
            block.add_(vector[start : start + MIX_BLOCK], alpha=weight)
    return total


def average(own: Contribution, others: Sequence[Contribution]) -> AdapterState:
    """Weighted average with the row of W: D-PSGD, Dec-LoRA (arXiv 2501.15361)."""
    if not others:
        return own.state
    parts = (own, *others)
    return AdapterState(
        own.state.spec, weighted_sum([part.state.flat for part in parts], [part.weight for part in parts])
    )


def age_weighted(own: Contribution, others: Sequence[Contribution]) -> AdapterState:
    """Row of W times age, renormalized: the MergeUpdate of gossip learning (Ormandi et al. 2013) on a row.

    A newcomer (age 0) takes over its neighbors' adapter; between equals it is ``average``. Ages above
    ``AGE_RATIO_MAX`` times our own are cut to that, so that a lie does not replace us (a newcomer has nothing to lose).
    """
    cap = AGE_RATIO_MAX * own.age if own.age else float("inf")
    masses = [part.weight * min(part.age, cap) for part in (own, *others)]
    total = sum(masses)
    if total == 0:  # everybody is new
        return average(own, others)
    return average(
        own._replace(weight=masses[0] / total),
        [part._replace(weight=mass / total) for part, mass in zip(others, masses[1:], strict=True)],
    )


def _stateless(mix: Callable[[Contribution, Sequence[Contribution]], AdapterState]) -> Mixer:
    """Lift a plain function to a rule without state."""
    return Mixer(
        init=lambda spec: (),
        mix=lambda own, others, state: (mix(own, others), state),
        doc=(mix.__doc__ or "").split("\n")[0],
    )


MIXERS: dict[str, Mixer] = {
    "average": _stateless(average),
    "age": _stateless(age_weighted),
}
