"""How a peer combines its own adapter with those it has read: the catalogue of mixing rules.

A rule is a pure function of the row. Contributions come in sorted order of senders, because float sums must not depend
on arrival; their weights and our own add up to 1 (a row of W, with the weight of whatever did not come returned to
self). Rules act on the flat vector: averaging LoRA factors is not averaging their product (error bounded by the
factors' disagreement, algorithms.md section 3.1), which stays small under a common start and frequent mixing. To add a
rule: one function and one line in ``MIXERS``. A rule that remembers something, or sends something besides the adapter,
is a stage of its own, as push-sum is (``push_sum.py``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods import guards
from gossip.methods.catalogue import Entry
from gossip.methods.contribution import Contribution, MixInput, reweighed
from gossip.methods.push_sum import PushSum
from gossip.methods.requirements import Requirements, State
from gossip.methods.stage import Combination, Stage
from topology.parameters import Parameter, fraction

MIX_BLOCK = 256 * 1024
"""Values mixed at a time, 1 MiB of float32: the sum stays in the cache while the contributions stream by.
Source: our bench (scripts/bench.py mixing)."""

AGE_RATIO_MAX = 4.0
"""An age is a claim: no contribution counts as more than this many times our own age. Source: guess."""

STALENESS_EXPONENT = 0.5
"""How fast a weight falls with rounds of delay. Source: FedAsync (arXiv 1903.03934), polynomial staleness."""


class Mixer(NamedTuple):
    """A mixing rule, and what the run must know of it.

    Attributes:
        stage: ``(mixing step size in (0, 1], spec of what is mixed)`` -> the stage that mixes with it.
        requires: what it asks of the run.
        reweighs: contributions count otherwise than W says, even if all of them come in time.
        confirms: only exchanges that both sides know of count: the node waits for word that its own adapter has come.
        newest_only: an adapter older than the last one mixed of its sender must not be mixed.
    """

    stage: Callable[[float, AdapterSpec], Stage]
    requires: Requirements
    reweighs: bool = False
    confirms: bool = False
    newest_only: bool = False


@dataclass(frozen=True, slots=True)
class Mixing(Stage):
    """The stage of a rule that remembers nothing; the adapter travels as it is.

    Args:
        rule: row -> adapter.
        gamma: mixing step size in (0, 1].
    """

    rule: Callable[[MixInput], AdapterState]
    gamma: float
    spec: AdapterSpec
    name: ClassVar[str] = "mixer"

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Let the rule mix what the guards let pass."""
        row = guards.guarded(row)
        mixed = self.rule(MixInput(row.own, row.own_as_decoded, row.others, self.gamma))
        return row._replace(vector=mixed.flat), state


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

    x + gamma sum_j w_j (y_j - y), y = own as decoded. Counting from what readers see of us, not from x, keeps the mean
    whatever a codec loses, if W is doubly stochastic (CHOCO, arXiv 1902.00340; DeepSqueeze).
    """
    if not row.others:
        return row.own.state
    own, others_weights = row.own.state.flat, [contribution.weight for contribution in row.others]
    if row.own_as_decoded is own:
        own_weight = row.own.weight if row.gamma == 1.0 else 1.0 - row.gamma * sum(others_weights)
        vectors, weights = [own], [own_weight]
    else:
        vectors, weights = [own, row.own_as_decoded], [1.0, -row.gamma * sum(others_weights)]
    vectors += [contribution.state.flat for contribution in row.others]
    weights += [row.gamma * weight for weight in others_weights]
    return replace(row.own.state, flat=weighted_sum(vectors, weights))


def age_weighted(row: MixInput) -> AdapterState:
    """Row of W times age, renormalized: the MergeUpdate of gossip learning (Ormandi et al. 2013) on a row.

    A newcomer (age 0) takes over its neighbors' adapter; between equals it is ``average``. Ages above
    ``AGE_RATIO_MAX`` times our own are cut to that, so that a lie does not replace us. A newcomer has no
    age, and takes the lower median of the others' in its place: half of them may lie.
    """
    claims = [contribution.age for contribution in row.others]
    cap = AGE_RATIO_MAX * (row.own.age or (statistics.median_low(claims) if claims else 0))
    masses = [contribution.weight * min(contribution.age, cap) for contribution in (row.own, *row.others)]
    total = sum(masses)
    if total == 0:  # everybody is new
        return average(row)
    own = row.own._replace(weight=masses[0] / total)
    others = reweighed(row.others, [mass / total for mass in masses[1:]])
    return average(row._replace(own=own, others=others))


def staleness(exponent: float = STALENESS_EXPONENT) -> Mixer:
    """Weight times (1 + rounds of delay)^-A, the rest to self (FedAsync, arXiv 1903.03934, on a row of W)."""

    def mix(row: MixInput) -> AdapterState:
        delays = [max(0, row.own.round - contribution.round) for contribution in row.others]
        if not any(delays):
            return average(row)
        factors = [(1 + delay) ** -exponent for delay in delays]
        weights = [
            contribution.weight * factor for contribution, factor in zip(row.others, factors, strict=True)
        ]
        others = reweighed(row.others, weights)
        return average(_thinned(row, others))

    return of_rule(mix, Requirements(linear=True))


def symmetric_drop(row: MixInput) -> AdapterState:
    """An exchange counts only if both sides have it, else its weight goes to self: loss does not move the mean.

    As far as both decide alike: word that comes after one side's deadline is known to the other alone, and with many
    losses the mean then drifts as without the rule. Push-sum is exact under any loss.

    With a share q of confirmed exchanges E[W] = I - q (I - W) (algorithms.md section 7). An adapter of another round is
    not what its sender mixes now, and does not count.
    """
    mutual = [
        contribution
        for contribution in row.others
        if contribution.confirmed and contribution.round == row.own.round
    ]
    return average(_thinned(row, mutual))


def _thinned(row: MixInput, others: Sequence[Contribution]) -> MixInput:
    """Return the row with these others, which weigh no more than its own did; what they leave goes to self."""
    others_weight = sum(contribution.weight for contribution in others)
    own_weight = row.own.weight + sum(contribution.weight for contribution in row.others) - others_weight
    return row._replace(own=row.own._replace(weight=own_weight), others=others)


def of_rule(
    rule: Callable[[MixInput], AdapterState],
    requires: Requirements | None = None,
    *,
    reweighs: bool = False,
    confirms: bool = False,
) -> Mixer:
    """Return the mixer of a rule that remembers nothing."""
    return Mixer(partial(Mixing, rule), requires or Requirements(), reweighs, confirms)


def _push_sum() -> Mixer:
    return Mixer(
        lambda gamma, spec: PushSum(spec),  # masses say how far to go
        Requirements(static=True, exact_codec=True, linear=True, whole_rows=True, all_parts=True),
        reweighs=True,
        newest_only=True,  # an older running sum would look like one of a sender that began anew
    )


# Rules for products (--factors tsvd) go by the weights of W alone: all but `average` would be ignored there.
MIXERS: dict[str, Entry[Mixer]] = {
    "average": Entry(lambda: of_rule(average), "weighted average with the row of W (D-PSGD)"),
    "age": Entry(
        lambda: of_rule(age_weighted, Requirements(linear=True), reweighs=True),
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
        lambda: of_rule(
            symmetric_drop,
            Requirements(symmetric=True, lock_step=True, linear=True, whole_rows=True),
            confirms=True,
        ),
        "an exchange counts only if both sides know of it, so that a lost message does not move the mean",
    ),
}
