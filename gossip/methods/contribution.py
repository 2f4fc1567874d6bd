"""What a round mixes: adapters read from neighbors, and the row of W that they and our own make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterState


class Contribution(NamedTuple):
    """One adapter of a row, from its arrival until it is mixed.

    Attributes:
        sender: peer id.
        state: the adapter as decoded; of another spec than ours only where ranks may differ.
        weight: its entry in our row of W, in [0, 1].
        age: local steps that went into it (a claim, except our own).
        round: the round in which it was published.
        confirmed: the sender is known to have our adapter of this round too.
    """

    sender: str
    state: AdapterState
    weight: float
    age: int
    round: int
    confirmed: bool = True


class Objection(NamedTuple):
    """Why a contribution was dropped or changed.

    Attributes:
        sender: whose it was.
        reason: a stable word.
        is_fault: honest peers never do it.
        is_routine: it happens to somebody in every round, and says nothing about whom it happened to.
    """

    sender: str
    reason: str
    is_fault: bool
    is_routine: bool = False


Guarded = tuple[list[Contribution], list[Objection]]
"""What may be mixed, and what was dropped or changed."""


class MixInput(NamedTuple):
    """What a mixing rule is given.

    Attributes:
        own: our adapter after local steps; its weight is what the others leave of 1.
        own_as_decoded: float32[P], the same as readers decode it; ``own.state.flat`` itself if nothing is lost.
        others: what was read, in sorted order of senders.
        gamma: mixing step size in (0, 1].
    """

    own: Contribution
    own_as_decoded: Tensor
    others: Sequence[Contribution]
    gamma: float


def reweighed(contributions: Sequence[Contribution], weights: Sequence[float]) -> list[Contribution]:
    """Return the same contributions with other weights."""
    pairs = zip(contributions, weights, strict=True)
    return [contribution._replace(weight=weight) for contribution, weight in pairs]


def nearer(own: Contribution, other: Contribution, share: float, *, by_weight: bool) -> Contribution:
    """Return another's contribution at this share, in [0, 1], of its way from ours.

    In the mean of a row, drawing an adapter nearer to ours is the same as giving it less weight and ourselves more;
    ``by_weight``: where products are mixed, only the latter can be done.
    """
    if by_weight:
        return other._replace(weight=other.weight * share)
    flat = torch.add(own.state.flat, other.state.flat - own.state.flat, alpha=share)
    return other._replace(state=AdapterState(own.state.spec, flat))


def scaled_to(neighbor_weight: float, contributions: Sequence[Contribution]) -> list[Contribution]:
    """Scale weights down if late adapters of other rounds' rows make them exceed this row's share of neighbors.

    Args:
        neighbor_weight: what the row of W gives to neighbors, in [0, 1].
    """
    weights = [contribution.weight for contribution in contributions]
    total, allowed = sum(weights), max([neighbor_weight, *weights])
    if total <= allowed + 1e-9:
        return list(contributions)
    return reweighed(contributions, [weight * allowed / total for weight in weights])
