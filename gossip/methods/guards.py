"""What is checked before anything from a neighbor touches our adapter: the catalogue of guards.

A guard takes our own contribution and the others', and returns those that may pass (perhaps clipped) and a reason for
each one dropped or changed. Guards run in the order of ``GUARDS``; the weight of what is dropped returns to self. Those
of the catalogue need nothing but the row; after them come the bound by what rounds have been like (``reach.py``) and,
if the run has one, a robust rule for the row as a whole (``robust.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from gossip.adapter import AdapterState
from gossip.methods.contribution import Contribution, Guarded, Objection, nearer
from gossip.methods.reach import RoundReach, vector_distance
from gossip.methods.stage import Combination

REFUSE_RATIO = 100.0
"""A neighbor this many times beyond the cap is refused, not clipped (ux-reliability.md B3, case 16)."""


Guard = Callable[[Contribution, Sequence[Contribution], float], Guarded]
"""``(own, others, norm_cap) -> (passed, objections)``; pure, keeps the order."""


def finite(own: Contribution, others: Sequence[Contribution], norm_cap: float) -> Guarded:
    """Drop adapters with a NaN or an infinity anywhere."""
    # The sum is finite only if every value is (values near the float32 limit are caught too, and rightly so).
    return _keep(
        others, lambda contribution: math.isfinite(float(contribution.state.flat.sum())), "non-finite"
    )


def norm_clip(own: Contribution, others: Sequence[Contribution], norm_cap: float) -> Guarded:
    """Clip an adapter that lies farther from ours than ``norm_cap`` times our norm; refuse it far beyond.

    Self-centered clipping (ClippedGossip, arXiv 2202.01545) with a radius relative to our own norm. LoRA starts with
    B = 0 but A != 0, so our norm is never zero in practice; with a zero norm everything would be refused, hence 1.
    """
    radius = norm_cap * (float(torch.linalg.vector_norm(own.state.flat)) or 1.0)
    passed, objections = [], []
    for contribution in others:
        distance = vector_distance(contribution.state, own.state)
        if distance <= radius:
            passed.append(contribution)
        elif distance <= REFUSE_RATIO * radius:
            passed.append(nearer(own, contribution, radius / distance, by_weight=False))
            objections.append(Objection(contribution.sender, "clipped", is_fault=False))
        else:
            objections.append(Objection(contribution.sender, "norm", is_fault=True))
    return passed, objections


def guarded(row: Combination, around: Contribution | None = None) -> Combination:
    """Return a row with those that may pass; the weight of the others returns to self.

    Args:
        row: what has come.
        around: what a robust rule measures distances from: ours, where mixing does not count from what readers see of
            us, which is the rule and what None stands for.
    """
    own, norm_cap = row.own, row.norm_cap
    others = [contribution for contribution in row.others if contribution.sender not in row.excluded]
    of_our_rank = [contribution for contribution in others if contribution.state.spec == own.state.spec]
    passed, objections = apply_all(own, of_our_rank, norm_cap)
    if len(of_our_rank) < len(others):  # decoded with a spec of this run, hence of another rank
        of_other_ranks = [
            contribution for contribution in others if contribution.state.spec != own.state.spec
        ]
        more, more_objections = of_another_rank(own, of_other_ranks, norm_cap)
        passed = sorted((*passed, *more), key=lambda contribution: contribution.sender)
        objections = [*objections, *more_objections]
    if row.reach is not None:
        passed, more_objections = within_reach(own, passed, row.reach)
        objections = [*objections, *more_objections]
    if row.robust is not None:
        passed, more_objections = row.robust(around or _as_readers_see_it(row), passed)
        objections = [*objections, *more_objections]
    return row._replace(
        own=own._replace(weight=1.0 - sum(contribution.weight for contribution in passed)),
        others=tuple(passed),
        came=row.others,
        objections=(*row.objections, *objections),
    )


def _as_readers_see_it(row: Combination) -> Contribution:
    return row.own._replace(state=AdapterState(row.own.state.spec, row.own_as_decoded))


def apply_all(own: Contribution, others: Sequence[Contribution], norm_cap: float) -> Guarded:
    """Run every guard of the catalogue in order; return what passed all of them and all objections."""
    passed, objections = list(others), []
    for guard in GUARDS.values():
        passed, more_objections = guard(own, passed, norm_cap)
        objections += more_objections
    return passed, objections


def within_reach(own: Contribution, others: Sequence[Contribution], reach: RoundReach) -> Guarded:
    """Clip what lies farther from ours than rounds go (``reach.py``); all are finite."""
    distances = [reach.distance(contribution.state, own.state) for contribution in others]
    radius = reach.radius(distances)
    passed, objections = [], []
    for contribution, distance in zip(others, distances, strict=True):
        if distance <= radius:
            passed.append(contribution)
            continue
        objections.append(Objection(contribution.sender, "far", is_fault=False))
        passed.append(nearer(own, contribution, radius / distance, by_weight=reach.by_weight))
    return passed, objections


def of_another_rank(own: Contribution, others: Sequence[Contribution], norm_cap: float) -> Guarded:
    """Drop adapters of another LoRA rank that are not finite, or whose factors are too large to lie within the cap.

    No distance is known between factors of different shapes: what is within the cap of ours has at most (1 + cap) times
    our norm.
    """
    passed, objections = finite(own, others, norm_cap)
    largest = (1.0 + norm_cap) * (float(torch.linalg.vector_norm(own.state.flat)) or 1.0)

    def is_small(contribution: Contribution) -> bool:
        return float(torch.linalg.vector_norm(contribution.state.flat)) <= largest

    small, more_objections = _keep(passed, is_small, "norm")
    return small, [*objections, *more_objections]


def _keep(others: Sequence[Contribution], test: Callable[[Contribution], bool], reason: str) -> Guarded:
    passed, objections = [], []
    for contribution in others:
        if test(contribution):
            passed.append(contribution)
        else:
            objections.append(Objection(contribution.sender, reason, is_fault=True))
    return passed, objections


GUARDS: dict[str, Guard] = {
    "finite": finite,
    "norm": norm_clip,
}
