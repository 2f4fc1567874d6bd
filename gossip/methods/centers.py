"""The middle of a few adapters, found so that a minority of liars cannot carry it away: pure numbers.

What is the same for all peers that hold the same adapters, given in the same order: nothing here knows which is ours.
Points are known by their distances alone where that will do, so that the same lines serve vectors and products.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.methods.reach import Distance

WEISZFELD_STEPS = 32
"""Steps toward the geometric median. Source: ours; each brings it nearer by a factor of k where one of k is far away,
so that all that float32 can tell is reached, and steps go by distances alone, which costs next to nothing."""
SMOOTHING = 1e-3
"""Distances below this share of the usual one within the nearest half count as that, so that the geometric median is
smooth where it meets an adapter. Source: ours; RFA (arXiv 1912.13445) has an absolute one, which is 0.1 in its code."""
SORT_BLOCK = 64 * 1024
"""Values of each adapter that are sorted at a time: those of a row of 8 stay in the cache. Source: our bench."""
CROWD_MIN = 4
"""Fewer adapters are averaged as they are. Source: ours; of three, two that agree may be the liars."""
CLIP_STEPS = 50
"""Steps toward the clipped mean. Source: ours; its weights then change by less than float32 can tell."""


def pairwise(states: Sequence[AdapterState], distance: Distance) -> NDArray[np.float64]:
    """Return float64[n, n], the distance of every two adapters."""
    distances = np.zeros((len(states), len(states)))
    for place, state in enumerate(states):
        for other in range(place):
            distances[place, other] = distances[other, place] = distance(state, states[other])
    return distances


def middle_mean(vectors: Sequence[Tensor], sides: int, weights: Sequence[float] = ()) -> Tensor:
    """Return in every coordinate the mean of what remains without the least and the greatest ``sides`` values.

    Args:
        vectors: n tensors float32[P], n > 2 * sides; none is written.
        weights: one number above 0 each; none = they are equal. If they differ, that share of all weight is cut off on
            each side that so many equal ones would have had.

    Returns:
        A new float32[P], which depends on the values and not on their order.
    """
    count, result = len(vectors), torch.empty_like(vectors[0])
    shares = torch.tensor([weight / sum(weights) for weight in weights])
    for start in range(0, result.numel(), SORT_BLOCK):
        block = torch.stack([vector[start : start + SORT_BLOCK] for vector in vectors])
        ranked, order = block.sort(dim=0, stable=True)
        if len(set(weights)) > 1:
            after = shares[order].cumsum(dim=0)
            before, cut = torch.cat([torch.zeros_like(after[:1]), after[:-1]]), sides / count
            kept = after.clamp(cut, 1 - cut) - before.clamp(cut, 1 - cut)
            least = ranked.gather(0, (kept > 0).to(torch.uint8).argmax(dim=0, keepdim=True))[0]
            # Values that are cut off may be as large as they like: they are not multiplied, not even by 0.
            off = torch.where(kept > 0, ranked - least, 0.0)
            mean = (kept * off).sum(dim=0) / kept.sum(dim=0)
        else:
            ranked = ranked[sides : count - sides]
            least, mean = ranked[0], (ranked - ranked[0]).mean(dim=0)
        # Counted from the least that remains: of equal values the mean is exactly that.
        torch.add(least, mean, out=result[start : start + SORT_BLOCK])
    return result


def weiszfeld(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares of n points, at least 0 and 1 together, whose mean is their geometric median.

    Args:
        distances: float64[n, n], of every two points.
    """
    count = len(distances)
    # Of every point the lower median distance of the others from it, and of these the least: liars cannot stretch it.
    usual = float(np.sort(distances, axis=1)[:, count // 2].min())
    if usual <= 0.0:
        return _of_the_crowd(distances)
    shares = np.full(count, 1.0 / count)
    for _ in range(WEISZFELD_STEPS):
        nearness = 1.0 / np.maximum(_from_mean(distances, shares), SMOOTHING * usual)
        shares = nearness / nearness.sum()
    return shares


def clipped(distances: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return the shares of n points, at least 0 and 1 together, whose mean is their mean after clipping around itself.

    Whoever is farther from the result than the median of the distances from the geometric median counts as if it were
    that far (Huber's estimator; centered clipping, arXiv 2012.10333, with that median for its radius). Fewer than
    ``CROWD_MIN`` points are only averaged: among them nobody can tell who lies.

    Args:
        distances: float64[n, n], of every two points.
        weights: n numbers above 0, what each would count without clipping.
    """
    plain = np.asarray(weights, np.float64) / sum(weights)
    if len(distances) < CROWD_MIN:
        return plain
    shares = weiszfeld(distances)
    radius = float(np.median(_from_mean(distances, shares)))
    if radius <= 0.0:
        return shares
    for _ in range(CLIP_STEPS):
        shares = plain * radius / np.maximum(_from_mean(distances, shares), radius)
        shares /= shares.sum()
    return shares


def krum_choice(distances: NDArray[np.float64], liars: int) -> int:
    """Return which of n points has the least sum of squared distances to its n - liars - 2 nearest, at least 1."""
    count = max(1, len(distances) - liars - 2)
    ranked = np.sort(distances**2, axis=1)[:, 1 : count + 1]  # without itself
    return int(ranked.sum(axis=1).argmin())


def _from_mean(distances: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each point is from the mean with these shares, from distances alone."""
    to_all = distances**2 @ shares
    root: NDArray[np.float64] = np.sqrt(np.maximum(to_all - 0.5 * shares @ to_all, 0.0))
    return root


def _of_the_crowd(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return equal shares of those that lie where more than half of all do, which is where the median is."""
    together = (distances <= 0.0).sum(axis=1)
    largest = together == together.max()
    return np.where(largest, 1.0 / largest.sum(), 0.0)
