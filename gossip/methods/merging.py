"""Stages that mix adapters by their products, and the one of the final merge.

What they have in common: every peer must come to the same bytes from the same adapters, so sums go in the order of
senders, ourselves among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import centers, guards, products
from gossip.methods.catalogue import Entry
from gossip.methods.contribution import Contribution
from gossip.methods.factors import has_factors
from gossip.methods.mixing import weighted_sum
from gossip.methods.reach import vector_distance
from gossip.methods.requirements import Requirements, State
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


class MergeRule(NamedTuple):
    """How adapters become one.

    Attributes:
        merge: ``(adapters in the order of their senders, one weight above 0 each, spec of the result) -> adapter``.
        requires: what it asks of the run.
    """

    merge: Callable[[Sequence[AdapterState], Sequence[float], AdapterSpec], AdapterState]
    requires: Requirements = Requirements()


@dataclass(frozen=True, slots=True)
class Merge(Stage):
    """A round of the final merge: adapters, ours as our readers see it, become the same one on every peer.

    Args:
        rule: how.
        spec: of what travels.
    """

    rule: MergeRule
    spec: AdapterSpec
    name: ClassVar[str] = "merge"

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Merge, with nothing of ours that others have not."""
        row = guards.guarded(row)
        own = row.own._replace(state=AdapterState(self.spec, row.own_as_decoded))
        senders = [one for one in _by_sender(own, row.others) if one.weight > 0.0]
        states, weights = [one.state for one in senders], [one.weight for one in senders]
        return row._replace(own=own, vector=self.rule.merge(states, weights, self.spec).flat), state


def average(states: Sequence[AdapterState], weights: Sequence[float], spec: AdapterSpec) -> AdapterState:
    """Return the mean of adapters; of unequal ranks, of their products."""
    if any(state.spec != spec for state in states):
        return mean_product(states, weights, spec)
    return AdapterState(spec, weighted_sum([state.flat for state in states], weights))


def mean_product(states: Sequence[AdapterState], weights: Sequence[float], spec: AdapterSpec) -> AdapterState:
    """Return each module's mean product, cut back to its rank; whatever has no factors is averaged."""
    if len(states) == 1 and states[0].spec == spec:
        return states[0]
    if not has_factors(spec):
        return AdapterState(spec, weighted_sum([state.flat for state in states], weights))
    return products.average_products(states, weights, None, spec)


def clipped_product(
    states: Sequence[AdapterState], weights: Sequence[float], spec: AdapterSpec
) -> AdapterState:
    """Return the mean product of adapters of which none counts as farther from it than the median of them is.

    Who lies far away has a say in the direction, and not in how far (``centers.clipped``). Of three and fewer it is
    the plain mean.
    """
    distance = products.distance if has_factors(spec) else vector_distance
    return mean_product(states, centers.clipped(centers.pairwise(states, distance), weights).tolist(), spec)


def trimmed(states: Sequence[AdapterState], weights: Sequence[float], spec: AdapterSpec) -> AdapterState:
    """Return the coordinate-wise mean without a quarter of the others on each side, rounded up; of three, the mean."""
    count = len(states)
    sides = math.ceil((count - 1) / 4) if count >= centers.CROWD_MIN else 0
    return AdapterState(spec, centers.middle_mean([state.flat for state in states], sides, weights))


def median(states: Sequence[AdapterState], weights: Sequence[float], spec: AdapterSpec) -> AdapterState:
    """Return the coordinate-wise median; of three and fewer, the mean."""
    count = len(states)
    sides = (count - 1) // 2 if count >= centers.CROWD_MIN else 0
    return AdapterState(spec, centers.middle_mean([state.flat for state in states], sides, weights))


def _mean_product(
    own: Contribution, others: Sequence[Contribution], *, reference: AdapterState
) -> AdapterState:
    """Return the mean product with our spec, turned toward the reference."""
    if not others:
        return own.state
    senders = _by_sender(own, others)
    states = [contribution.state for contribution in senders]
    weights = [contribution.weight for contribution in senders]
    return products.average_products(states, weights, reference, own.state.spec)


def _by_sender(own: Contribution, others: Sequence[Contribution]) -> list[Contribution]:
    return sorted((own, *others), key=lambda contribution: contribution.sender)


def _entry(
    merge: Callable[[Sequence[AdapterState], Sequence[float], AdapterSpec], AdapterState],
    doc: str,
    *,
    linear: bool,
) -> Entry[MergeRule]:
    return Entry(lambda: MergeRule(merge, Requirements(linear=linear)), doc)


MERGES: dict[str, Entry[MergeRule]] = {
    "clipped": _entry(
        clipped_product, "as product, of adapters drawn to their median distance from it", linear=False
    ),
    "product": _entry(
        mean_product, "each LoRA module's mean product B A, cut back to its rank", linear=False
    ),
    "average": _entry(average, "the mean of the adapters", linear=False),
    "trimmed": _entry(trimmed, "per coordinate the mean without the quarter at either end", linear=True),
    "median": _entry(median, "per coordinate the median", linear=True),
    "none": _entry(average, "no final merge", linear=False),
}
"""How the peers' adapters become one after the last round."""
