"""What a round mixes: adapters read from neighbors, and the row of W that they and our own make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gossip.adapter import AdapterState


class Contribution(NamedTuple):
    """One decoded adapter as a mixing rule sees it.

    Attributes:
        sender: peer id.
        state: the adapter.
        weight: its entry in my row of W, in [0, 1].
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


class MixInput(NamedTuple):
    """What is mixed in one round.

    Attributes:
        own: our adapter after local steps; its weight is what the others leave of 1.
        seen: float32[P], our own adapter as readers decode it; ``own.state.flat`` itself if nothing is lost.
        others: what was read, in sorted order of senders.
        gamma: mixing step size in (0, 1].
    """

    own: Contribution
    seen: Tensor
    others: Sequence[Contribution]
    gamma: float
