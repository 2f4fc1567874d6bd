"""How a peer combines its own adapter with those it has read: the catalogue of mixing rules.

A rule is a value: ``init`` makes its state, the rest is pure. Contributions come in sorted order of senders, because
float sums must not depend on arrival; their weights and our own add up to 1 (a row of W, with the weight of whatever
did not come returned to self). Rules act on the flat vector: averaging LoRA factors is not averaging their product
(error bounded by the factors' disagreement, algorithms.md section 3.1), which stays small under a common start and
frequent mixing. To add a rule: one function and one line in ``MIXERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterState
from gossip.methods import push_sum
from gossip.methods.catalogue import Entry
from gossip.methods.contribution import Contribution, MixInput
from gossip.methods.requirements import Requirements, State
from topology.parameters import Parameter, fraction

MIX_BLOCK = 256 * 1024
"""Values mixed at a time, 1 MiB of float32: the sum stays in the cache while the contributions stream by.
Source: our bench (scripts/bench.py mixing)."""

AGE_RATIO_MAX = 4.0
"""An age is a claim: no contribution counts as more than this many times our own age. Source: guess."""

STALENESS_EXPONENT = 0.5
"""How fast a weight falls with rounds of delay. Source: FedAsync (arXiv 1903.03934), polynomial staleness."""


class Mixer(NamedTuple):
    """A mixing rule.

    Attributes:
        init: the adapter that we begin with -> state.
        publish: ``(own after local steps, number of readers, S) -> (vector that travels, S)``, once a round.
        extra: values that travel besides the P of the adapter, after them.
        read: ``(sender, vector as decoded, weight in my row, S) -> (adapter values float32[P], weight, S)``.
        mix: ``(row, S) -> (adapter, S)``.
        requires: what it asks of the run.
        reweighs: contributions count otherwise than W says, even if all of them come in time.
        confirms: only exchanges that both sides know of count: the node waits for word that its own adapter has come.
    """

    init: Callable[[AdapterState], State]
    publish: Callable[[AdapterState, int, State], tuple[Tensor, State]]
    extra: int
    read: Callable[[str, Tensor, float, State], tuple[Tensor, float, State]]
    mix: Callable[[MixInput, State], tuple[AdapterState, State]]
    requires: Requirements
    reweighs: bool
    confirms: bool = False


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


def average(row: MixInput) -> AdapterState:
    """Weighted average with the row of W: D-PSGD, Dec-LoRA (arXiv 2501.15361).

    x + gamma sum_j w_j (y_j - seen). Counting from what readers saw of us, not from x, keeps the mean whatever a codec
    loses, if W is doubly stochastic (CHOCO, arXiv 1902.00340; DeepSqueeze).
    """
    if not row.others:
        return row.own.state
    own, taken = row.own.state.flat, [part.weight for part in row.others]
    if row.seen is own:
        kept = row.own.weight if row.gamma == 1.0 else 1.0 - row.gamma * sum(taken)
        vectors, weights = [own], [kept]
    else:
        vectors, weights = [own, row.seen], [1.0, -row.gamma * sum(taken)]
    vectors += [part.state.flat for part in row.others]
    weights += [row.gamma * weight for weight in taken]
    return replace(row.own.state, flat=weighted_sum(vectors, weights))


def age_weighted(row: MixInput) -> AdapterState:
    """Row of W times age, renormalized: the MergeUpdate of gossip learning (Ormandi et al. 2013) on a row.

    A newcomer (age 0) takes over its neighbors' adapter; between equals it is ``average``. Ages above
    ``AGE_RATIO_MAX`` times our own are cut to that, so that a lie does not replace us (a newcomer has nothing to lose).
    """
    cap = AGE_RATIO_MAX * row.own.age if row.own.age else float("inf")
    masses = [part.weight * min(part.age, cap) for part in (row.own, *row.others)]
    total = sum(masses)
    if total == 0:  # everybody is new
        return average(row)
    own = row.own._replace(weight=masses[0] / total)
    others = [part._replace(weight=mass / total) for part, mass in zip(row.others, masses[1:], strict=True)]
    return average(row._replace(own=own, others=others))


def staleness(exponent: float = STALENESS_EXPONENT) -> Mixer:
    """Weight times (1 + rounds of delay)^-A, the rest to self (FedAsync, arXiv 1903.03934, on a row of W)."""

    def mix(row: MixInput) -> AdapterState:
        delays = [max(0, row.own.round - part.round) for part in row.others]
        if not any(delays):
            return average(row)
        pairs = zip(row.others, delays, strict=True)
        return average(
            _thinned(
                row, [part._replace(weight=part.weight * (1 + late) ** -exponent) for part, late in pairs]
            )
        )

    return _stateless(mix, Requirements(linear=True))


def symmetric_drop(row: MixInput) -> AdapterState:
    """An exchange counts only if both sides have it, else its weight goes to self: loss does not move the mean.

    As far as both decide alike: word that comes after one side's deadline is known to the other alone, and with many
    losses the mean then drifts as without the rule. Push-sum is exact under any loss.

    With a share q of confirmed exchanges E[W] = I - q (I - W) (algorithms.md section 7). An adapter of another round is
    not what its sender mixes now, and does not count.
    """
    return average(
        _thinned(row, [part for part in row.others if part.confirmed and part.round == row.own.round])
    )


def _thinned(row: MixInput, others: Sequence[Contribution]) -> MixInput:
    """Return the row with these others, which weigh no more than its own did; what they leave goes to self."""
    kept = sum(part.weight for part in others)
    left = row.own.weight + sum(part.weight for part in row.others) - kept
    return row._replace(own=row.own._replace(weight=left), others=others)


def _stateless(
    mix: Callable[[MixInput], AdapterState],
    requires: Requirements | None = None,
    *,
    reweighs: bool = False,
    confirms: bool = False,
) -> Mixer:
    """Lift a plain function to a rule without state, for which the adapter travels as it is."""
    return Mixer(
        init=lambda own: {},
        publish=lambda own, readers, state: (own.flat, state),
        extra=0,
        read=lambda sender, vector, weight, state: (vector, weight, state),
        mix=lambda row, state: (mix(row), state),
        requires=requires or Requirements(),
        reweighs=reweighs,
        confirms=confirms,
    )


def _push_sum() -> Mixer:
    return Mixer(
        init=push_sum.init,
        publish=push_sum.publish,
        extra=push_sum.EXTRA,
        read=push_sum.read,
        mix=push_sum.mix,
        requires=Requirements(static=True, exact_codec=True, linear=True),
        reweighs=True,
    )


# Rules for products (--factors tsvd) go by the weights of W alone: all but `average` would be ignored there.
MIXERS: dict[str, Entry[Mixer]] = {
    "average": Entry(lambda: _stateless(average), "weighted average with the row of W (D-PSGD)"),
    "age": Entry(
        lambda: _stateless(age_weighted, Requirements(linear=True), reweighs=True),
        "row of W times age in local steps, renormalized: newcomers take over what others know",
    ),
    "staleness": Entry(
        staleness,
        "weight times (1 + rounds of delay)^-A, the rest to self",
        (Parameter("A", "exponent, 0 to 1, default 0.5", fraction(zero=True), required=False),),
    ),
    "push-sum": Entry(
        _push_sum,
        "mass travels along and sums are running: the exact mean over one-way links, under any loss",
    ),
    "symmetric-drop": Entry(
        lambda: _stateless(
            symmetric_drop, Requirements(symmetric=True, lock_step=True, linear=True), confirms=True
        ),
        "an exchange counts only if both sides know of it, so that a lost message does not move the mean",
    ),
}
