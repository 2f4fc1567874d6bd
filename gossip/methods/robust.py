"""What bounds the harm that lying neighbors can do in a row: the catalogue of robust rules.

A rule takes our own contribution and the others', all finite and within the bounds of the guards, and returns the
others as they are to be mixed. Filters drop, clippers draw nearer to us, and aggregators put one robust aggregate of
the row, us included, in the place of every other; so each goes together with every mixing rule, step size and codec
that does not count on the weights of W. What a rule does is routine: an objection of its own is nobody's fault, and no
sign that something is amiss. Who is judged by distance may have other data than we do, so honest ones are hit too; what
that costs is in docs/robustness.md. With k others, f of them liars, and B the liars that a rule is asked to bear:

- clipped to a radius t, the f move our mix by at most their weight in the row times t;
- with f <= B, a trimmed mean, and with f < (k + 1) / 2 the median, lies in every coordinate among what the honest sent.

No rule can do anything where most of a row lies. Sources: algorithms.md section 4; those of each rule at the rule. It
knows neither peers nor rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.methods.catalogue import Entry
from gossip.methods.centers import krum_choice, middle_mean, pairwise, weiszfeld
from gossip.methods.contribution import Contribution, Guarded, Objection, nearer
from gossip.methods.reach import Distance
from gossip.methods.requirements import Requirements
from topology.parameters import Parameter, whole

READS_MIN = 4
"""``auto`` trims and clips rows of W that read at least so many. Source: measured (docs/robustness.md): of four, three
remain when one is dropped; a ring reads two, and to drop one of them takes half of its mixing away."""
LIARS_SHARE = 4
"""One in so many of a row is borne if nobody says how many, rounded up. Source: algorithms.md section 4."""
LIARS_MAX = 1_000
"""More liars than this cannot be asked for. Source: ours; only keeps typing errors out."""


class RobustRow(NamedTuple):
    """What a rule knows of a row besides what came.

    Attributes:
        reads: neighbors in this round's row of W, whether or not they came.
        distance: of two adapters, in the space in which they are mixed.
        by_weight: who is too far is given less weight in place of being drawn nearer: products are mixed.
    """

    reads: int
    distance: Distance
    by_weight: bool


Rule = Callable[[Contribution, Sequence[Contribution], RobustRow], Guarded]
"""``(own, others, row) -> (others as they are to be mixed, objections)``; pure, keeps the order."""


class RobustRule(NamedTuple):
    """A rule, and what it asks of the run."""

    apply: Rule
    requires: Requirements = Requirements()


# -- filters and clippers


def keep_all(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
    """Mix the row as it is."""
    return list(others), []


def clip(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
    """Draw whoever lies farther from us than the lower median of the row to that distance.

    Self-centered clipping, ClippedGossip (arXiv 2202.01545), with the median for its unknown radius.
    """
    distances = [row.distance(contribution.state, own.state) for contribution in others]
    return _clipped(own, others, distances, row)


def trim_clip(liars: int | None = None) -> RobustRule:
    """Drop the B farthest, then draw the rest to the lower median of their distances.

    What is dropped gives its weight to us. Known as remove-then-clip; measured best of the catalogue (ours).
    """

    def apply(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
        near, distances, objections = _nearest(own, others, liars, row)
        clipped, more = _clipped(own, near, distances, row)
        return clipped, [*objections, *more]

    return RobustRule(apply)


def nearest_neighbors(liars: int | None = None) -> RobustRule:
    """Drop the B farthest; their weight goes to the rest, ourselves included, in proportion.

    With equal weights that is the mean of the k + 1 - B nearest of NNA (MoNNA, arXiv 2302.01772).
    """

    def apply(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
        near, _, objections = _nearest(own, others, liars, row)
        kept = 1.0 - sum(one.weight for one in others) + sum(one.weight for one in near)
        rest = 1.0 / kept if kept > 0.0 else 1.0  # 0 where W gives us no weight and all are dropped
        return [one._replace(weight=one.weight * rest) for one in near], objections

    return RobustRule(apply)


def adaptive(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
    """``trim-clip`` where the row of W reads at least ``READS_MIN``, else nothing."""
    rule = trim_clip().apply if row.reads >= READS_MIN else keep_all
    return rule(own, others, row)


def _nearest(
    own: Contribution, others: Sequence[Contribution], liars: int | None, row: RobustRow
) -> tuple[list[Contribution], list[float], list[Objection]]:
    """Return all but the B farthest from us, their distances, and objections to the rest; of equals the first stay."""
    distances = [row.distance(contribution.state, own.state) for contribution in others]
    ranked = sorted(range(len(others)), key=lambda index: (distances[index], others[index].sender))
    dropped = set(ranked[len(others) - borne(liars, len(others)) :])
    kept = [index for index in range(len(others)) if index not in dropped]
    objections = [_routine(others[index], "trimmed") for index in sorted(dropped)]
    return [others[index] for index in kept], [distances[index] for index in kept], objections


def _clipped(
    own: Contribution, others: Sequence[Contribution], distances: Sequence[float], row: RobustRow
) -> Guarded:
    if not others:
        return [], []
    radius = statistics.median_low(distances)
    passed, objections = [], []
    for contribution, distance in zip(others, distances, strict=True):
        if distance <= radius:
            passed.append(contribution)
            continue
        passed.append(nearer(own, contribution, radius / distance, by_weight=row.by_weight))
        objections.append(_routine(contribution, "clipped to row"))
    return passed, objections


# -- aggregators


def trimmed_mean(liars: int | None = None) -> RobustRule:
    """In every coordinate, drop the B least and the B greatest values of the row, ours among them; mean of the rest.

    Yin et al. (arXiv 1803.01498).
    """

    def apply(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
        sides = min(borne(liars, len(others)), len(others) // 2)
        return _aggregated(own, others, lambda vectors: middle_mean(vectors, sides)), []

    return RobustRule(apply, Requirements(linear=True))


def median(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
    """In every coordinate the median of the row, ours among them; of an even number the mean of the middle two."""
    sides = len(others) // 2
    return _aggregated(own, others, lambda vectors: middle_mean(vectors, sides)), []


def geometric_median(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
    """The point with the least sum of distances to the row, ours among them: RFA (arXiv 1912.13445)."""
    if not others:
        return [], []
    return _combined(own, others, weiszfeld(_distances(own, others, row)), row), []


def krum(liars: int | None = None) -> RobustRule:
    """The adapter of the row, ours among them, whose k - B - 1 nearest lie nearest, by squared distances.

    Krum (Blanchard et al., NeurIPS 2017) promises something where k >= 2 B + 2. Of equals the first is taken, we before
    all others.
    """

    def apply(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> Guarded:
        if not others:
            return [], []
        chosen = krum_choice(_distances(own, others, row), borne(liars, len(others)))
        shares = np.zeros(len(others) + 1)
        shares[chosen] = 1.0
        left = [one for place, one in enumerate(others, 1) if place != chosen]
        return _combined(own, others, shares, row), [_routine(one, "trimmed") for one in left]

    return RobustRule(apply)


def _distances(own: Contribution, others: Sequence[Contribution], row: RobustRow) -> NDArray[np.float64]:
    """Return float64[k + 1, k + 1], of all in the row; ours come first."""
    return pairwise([own.state, *(contribution.state for contribution in others)], row.distance)


def _aggregated(
    own: Contribution, others: Sequence[Contribution], aggregate: Callable[[list[Tensor]], Tensor]
) -> list[Contribution]:
    """Return the others with the row's aggregate in place of what they sent."""
    if not others:
        return []
    vector = aggregate([own.state.flat, *(contribution.state.flat for contribution in others)])
    state, scale = AdapterState(own.state.spec, vector), _scale(others)
    return [one._replace(state=state, weight=one.weight * scale) for one in others]


def _combined(
    own: Contribution, others: Sequence[Contribution], shares: NDArray[np.float64], row: RobustRow
) -> list[Contribution]:
    """Return the others so that their mean is that of the row with these shares, ours first.

    Where products are mixed, only weights can say so.
    """
    if row.by_weight:
        total = sum(one.weight for one in others) * _scale(others)
        pairs = zip(others, shares[1:], strict=True)
        return [one._replace(weight=total * float(share)) for one, share in pairs]

    def aggregate(vectors: list[Tensor]) -> Tensor:
        total = torch.zeros_like(vectors[0])
        for vector, share in zip(vectors[1:], shares[1:], strict=True):
            if share > 0.0:
                total.add_(vector - vectors[0], alpha=float(share))
        return total.add_(vectors[0])

    return _aggregated(own, others, aggregate)


def _scale(others: Sequence[Contribution]) -> float:
    """Return by how much the others' weights grow, as an aggregate counts ours once more.

    Where all weights are equal the aggregate is then the whole mix, as in the literature, and without a robust rule the
    row's mean would be the same.
    """
    count, total = len(others), sum(contribution.weight for contribution in others)
    return min((count + 1) / count, 1.0 / total) if total > 0.0 else 1.0


def borne(liars: int | None, count: int) -> int:
    """Return how many of so many others are counted as liars: as asked for, else a quarter, but of one alone none."""
    if liars is not None:
        return min(liars, count)
    return math.ceil(count / LIARS_SHARE) if count > 1 else 0


def _routine(contribution: Contribution, reason: str) -> Objection:
    return Objection(contribution.sender, reason, is_fault=False, is_routine=True)


_LIARS = (
    Parameter(
        "B",
        "liars to bear, default a quarter of those that came, rounded up",
        whole(0, LIARS_MAX),
        required=False,
    ),
)

ROBUST: dict[str, Entry[RobustRule]] = {
    "none": Entry(
        partial(RobustRule, keep_all), "the row as it is, within the bounds of --norm-cap and --step-cap"
    ),
    "auto": Entry(
        partial(RobustRule, adaptive), f"trim-clip where a row of W reads at least {READS_MIN}, else none"
    ),
    "clip": Entry(partial(RobustRule, clip), "who lies beyond the median distance is drawn to it"),
    "trim-clip": Entry(
        trim_clip, "the B farthest are left out, the rest drawn to their median distance", _LIARS
    ),
    "nna": Entry(nearest_neighbors, "the mean of all but the B farthest (NNA)", _LIARS),
    "trimmed": Entry(trimmed_mean, "per coordinate the mean without the B least and B greatest", _LIARS),
    "median": Entry(
        partial(RobustRule, median, Requirements(linear=True)), "per coordinate the median of the row"
    ),
    "geometric-median": Entry(
        partial(RobustRule, geometric_median), "the point with the least sum of distances to the row (RFA)"
    ),
    "krum": Entry(krum, "the adapter whose k - B - 1 nearest lie nearest (Krum)", _LIARS),
}
