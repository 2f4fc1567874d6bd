"""Stages that mix adapters by their products, and the one of the final merge.

What they have in common: every peer must come to the same bytes from the same adapters, so sums go in the order of
senders, ourselves among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import guards, products
from gossip.methods.contribution import Contribution
from gossip.methods.mixing import weighted_sum
from gossip.methods.requirements import State
from gossip.methods.stage import Combination, Stage


@dataclass(frozen=True, slots=True)
class ProductMixing(Stage):
    """The mean of products, cut back to our rank (``--factors tsvd``), in place of a mixing rule."""

    spec: AdapterSpec
    name: ClassVar[str] = "mixer"

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Mix products; our own factors say how the result is turned, so that AdamW's moments go on in it."""
        row = guards.guarded(row, around=row.own)
        mixed = _mean_product(row.own, row.others, reference=row.own.state)
        return row._replace(vector=mixed.flat), state


@dataclass(frozen=True, slots=True)
class Merge(Stage):
    """A round of the final merge: adapters, ours as our readers see it, become the same one on every peer.

    Args:
        by_products: LoRA modules are merged by their products; else all values are averaged.
        spec: of what travels.
    """

    by_products: bool
    spec: AdapterSpec
    name: ClassVar[str] = "merge"

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Merge, with nothing of ours that others have not."""
        row = guards.guarded(row)
        own = row.own._replace(state=AdapterState(self.spec, row.own_as_decoded))
        ranks_differ = any(contribution.state.spec != self.spec for contribution in row.others)
        if self.by_products or ranks_differ:
            vector = _mean_product(own, row.others, reference=None).flat
        else:
            senders = _by_sender(own, row.others)
            vector = weighted_sum(
                [contribution.state.flat for contribution in senders],
                [contribution.weight for contribution in senders],
            )
        return row._replace(own=own, vector=vector), state


def _mean_product(
    own: Contribution, others: Sequence[Contribution], *, reference: AdapterState | None
) -> AdapterState:
    """Return the mean product with our spec."""
    if not others:
        return own.state
    senders = _by_sender(own, others)
    states = [contribution.state for contribution in senders]
    weights = [contribution.weight for contribution in senders]
    return products.average_products(states, weights, reference, own.state.spec)


def _by_sender(own: Contribution, others: Sequence[Contribution]) -> list[Contribution]:
    return sorted((own, *others), key=lambda contribution: contribution.sender)
