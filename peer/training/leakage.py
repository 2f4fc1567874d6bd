"""What scores say of leaks: how well members are told from others, how far planted rows stand out, whose a row is.

Pure statistics; a score is any number that is larger for rows that a model was trained on. Every figure of a sample
comes with a 95 % interval. It knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from peer.training.frames import RowLosses

CONFIDENCE = 0.95
"""Of all intervals."""
Z = 1.959963984540054
"""Its two-sided quantile of the normal distribution."""
FALSE_POSITIVE_RATES = (0.01, 0.05)
"""Where true positives are counted. Source: Carlini et al., "Membership Inference Attacks From First Principles"
(arXiv 2112.03570): an attack that is sure of a few rows hardly shows in a mean over all."""
ROWS_MIN = 5
"""Fewer rows on either side say nothing: at 5 of each even a perfect attack only shows an AUC of .64 to 1. Source:
ours."""


WORST = 1e9
"""Stands for a loss that is no number, nats; no row of a model in order has such a one."""
Scores: TypeAlias = Sequence[float] | npt.NDArray[np.float64]


class Share(NamedTuple):
    """A share of a sample, 0 to 1, with its interval."""

    value: float
    low: float
    high: float


class Membership(NamedTuple):
    """How well scores tell members from others.

    Attributes:
        members, others: how many rows of each.
        auc: share of pairs (a member, another) in which the member has the larger score; ties count half. 0.5 = chance.
        true_positives: allowed share of others -> share of members that are beyond all but so many of them.
    """

    members: int
    others: int
    auc: Share
    true_positives: dict[float, Share]

    def is_too_few_for(self, rate: float) -> bool:
        """Whether not even one of the others may be a false positive at this rate."""
        return self.others * rate < 1.0


class Exposure(NamedTuple):
    """How far planted rows stand out of rows like them that were never seen, bits; see ``exposure``.

    Attributes:
        planted, references: how many rows of each.
        mean, highest: of the planted rows.
        chance_mean, chance_highest: expected if none of them had been seen.
        limit: the most that so many references can show.
    """

    planted: int
    references: int
    mean: float
    highest: float
    chance_mean: float
    chance_highest: float
    limit: float


class Figures(NamedTuple):
    """What an adapter gives away of the rows that it was measured on.

    Attributes:
        calibrated: by how much less than without the adapter a row's loss is; None where there is nothing to compare
            with.
        plain: by the loss alone, as one judges who has no base model.
        blind: by the loss without the adapter, which cannot know: what it tells apart differs in kind, not by
            membership.
        exposure: of canaries; None without any.
    """

    calibrated: Membership | None
    plain: Membership
    blind: Membership | None
    exposure: Exposure | None

    @property
    def membership(self) -> Membership:
        """The stronger of the attacks that were possible: the calibrated one."""
        return self.calibrated or self.plain


def figures(losses: RowLosses, before: RowLosses | None) -> Figures:
    """Return what an adapter gives away.

    Args:
        losses: of the adapter, on at least one row of both kinds.
        before: of the same rows without it (the base model, or the adapter that a run begins with); None = not known.
    """
    plain = membership(_gains(losses.members), _gains(losses.held_out))
    if before is None:
        return Figures(None, plain, None, None)
    gained = membership(_gains(losses.members, before.members), _gains(losses.held_out, before.held_out))
    blind = membership(_gains(before.members), _gains(before.held_out))
    return Figures(gained, plain, blind, canary_exposure(losses, before))


def canary_exposure(losses: RowLosses, before: RowLosses) -> Exposure | None:
    """Return how far canaries stand out of rows like them; None if there are none."""
    if not losses.canaries:
        return None
    return exposure(_gains(losses.canaries, before.canaries), _gains(losses.references, before.references))


def _gains(losses: Sequence[float], before: Sequence[float] | None = None) -> npt.NDArray[np.float64]:
    """Return by how much losses are lower than before (than 0); a loss that is no number is as bad as can be."""
    start = np.zeros(len(losses)) if before is None else np.asarray(before, float)
    gains: npt.NDArray[np.float64] = np.nan_to_num(
        start - np.asarray(losses, float), nan=-WORST, posinf=WORST, neginf=-WORST
    )
    return gains


def membership(members: Scores, others: Scores) -> Membership:
    """Return how well scores tell members from others.

    Args:
        members, others: finite scores, at least one of each.
    """
    inside, outside = np.asarray(members, float), np.sort(np.asarray(others, float))
    beaten = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    auc = float(beaten.sum() / (2.0 * len(inside) * len(outside)))
    positives = {}
    for rate in FALSE_POSITIVE_RATES:
        threshold = outside[len(outside) - 1 - math.floor(rate * len(outside))]
        positives[rate] = share_of(int((inside > threshold).sum()), len(inside))
    return Membership(len(inside), len(outside), auc_interval(auc, len(inside), len(outside)), positives)


def auc_interval(auc: float, members: int, others: int) -> Share:
    """Return the interval of an area under the curve, one that stays honest at 0 and 1.

    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2",
    Statistics in Medicine 25 (2006) 559-573, method 5: the values whose own standard error (Hanley and McNeil 1982,
    with both sample sizes at their mean) is compatible with the one seen, as Wilson's interval is for a share.
    DeLong's would have no width where members and others do not overlap.
    """

    def excess(theta: float) -> float:
        return abs(auc - theta) - Z * _standard_error(theta, members, others)

    low = _root(excess, 0.0, auc) if auc > 0.0 else 0.0
    high = _root(excess, 1.0, auc) if auc < 1.0 else 1.0
    return Share(auc, low, high)


def _standard_error(theta: float, members: int, others: int) -> float:
    star = (members + others) / 2 - 1
    spread = 1 + star * (1 - theta) / (2 - theta) + star * theta / (1 + theta)
    return math.sqrt(theta * (1 - theta) * spread / (members * others))


def share_of(hits: int, trials: int) -> Share:
    """Return a share with its exact interval.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404-413. It takes the trials as given: where they depend on a
    threshold that was read off other rows, chance in those comes on top.

    Args:
        hits: 0 to ``trials``.
        trials: at least 1.
    """
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return Share(hits / trials, low, high)


def exposure(planted: Scores, references: Scores) -> Exposure:
    """Return how far planted rows stand out.

    A planted row's exposure is log2(R + 1) - log2(its rank among itself and the R references), in bits: 0 for the last,
    log2(R + 1) for the first; what ties with it counts as before it. Source: Carlini et al., "The Secret Sharer" (arXiv
    1802.08232), section 4, estimated by sampling. A row that was never seen has any rank alike: its exposure is about
    exponentially distributed, 1 / ln 2 = 1.44 bits in the mean, and the highest of n is 1.44 (1 + 1/2 + ... + 1/n).

    Args:
        planted, references: finite scores, at least one of each.
    """
    count = len(references)
    outside = np.sort(np.asarray(references, float))
    ranks = 1 + count - np.searchsorted(outside, np.asarray(planted, float), "left")
    bits = np.log2((count + 1) / ranks)
    places = np.arange(1, count + 2)
    chance = float(np.log2((count + 1) / places).mean())
    return Exposure(
        planted=len(planted),
        references=count,
        mean=float(bits.mean()),
        highest=float(bits.max()),
        chance_mean=chance,
        chance_highest=_expected_highest(len(planted), count),
        limit=math.log2(count + 1),
    )


def _expected_highest(planted: int, references: int) -> float:
    """Return the mean of the highest exposure of rows that were never seen, each of any rank alike."""
    places = np.arange(1, references + 2)
    beyond = 1.0 - (places - 1) / (references + 1)  # chance that a rank is at least this
    first = beyond**planted - np.append(beyond[1:], 0.0) ** planted  # that the best of all is just this
    return float((first * np.log2((references + 1) / places)).sum())


def attributed(losses: npt.NDArray[np.float64]) -> list[int]:
    """Return for each row the adapter whose it most likely is: that on which its loss is lowest.

    Each adapter's mean over all of the rows is taken off first: one that has learned more than the others is better at
    every row, and would be taken for the owner of all.

    Args:
        losses: float64[R, K], of R rows on K adapters; as many rows of each owner.
    """
    return [int(owner) for owner in np.argmin(losses - losses.mean(axis=0), axis=1)]


def _root(excess: Callable[[float], float], outer: float, inner: float) -> float:
    """Return where ``excess`` turns from positive (towards ``outer``) to negative (at ``inner``), by bisection."""
    for _ in range(60):
        middle = (outer + inner) / 2
        if excess(middle) > 0:
            outer = middle
        else:
            inner = middle
    return (outer + inner) / 2
