"""Adapters by their products B A, which is what LoRA adds to a model, rather than by their factors.

(B R) (R^-1 A) is the same product for every invertible R, so factors can disagree while products agree, and the mean of
factors is not the mean of products. Everything here works on stacked factors, with Gram matrices and QR of a few
columns: no product is ever formed. Modules of equal shape go through one batched call, in float64, because the sums
cancel and it is fast enough (120 modules of rank 8, 4 adapters, one core: cross term 0.02 s, mean 0.07 s). Products are
compared without LoRA's scale alpha / r: adapters of different rank belong together only if their scale is the same.
Source: algorithms.md sections 3.1 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods.factors import FactorPair, factor_of, factor_pairs

BLOCK_VALUES = 1 << 18
"""Values of stacked factors worked on at a time, 2 MiB of float64: keeps memory small for large models, and is a little
faster than larger blocks. Source: ours, measured."""

RANK_TOLERANCE = 1e-6
"""A singular value below this share of the largest counts as zero: it is float32 rounding. Source: 16 float32 ulps."""

WEIGHT_TOLERANCE = 1e-6
"""How far weights may be from summing to 1: rows of W come from float64 arithmetic. Source: guess."""


def cross_term(states: Sequence[AdapterState], weights: Sequence[float]) -> float:
    """Return how far the product of mean factors is from the mean product, relative to the mean product.

    || sum_j w_j B_j A_j - Bbar Abar || / || sum_j w_j B_j A_j ||, Frobenius over all modules together, by way of the
    identity sum_j w_j (B_j - Bbar)(A_j - Abar), which is exactly 0 when one factor is the same everywhere.

    Args:
        states: m >= 1 adapters of one spec.
        weights: m numbers that sum to 1, of any sign.

    Returns:
        At least 0; 0 too where it is undefined: no factors, or a mean product of zero (at the start, when B is 0).

    Raises:
        LocalError: specs differ, or the weights do not sum to 1.
    """
    _check_weights(states, weights)
    if any(state.spec != states[0].spec for state in states):
        raise LocalError("the cross term is of adapters of one spec: their ranks or modules differ")
    excess = whole = 0.0
    for b_s, a_s in _stacks(states):
        rank = b_s[0].shape[2]
        b_mean, b_off = _deviations(b_s, weights)
        a_mean, a_off = _deviations(a_s, weights)
        scaled = [weight * off for weight, off in zip(weights, b_off, strict=True)]
        # The mean product is the product of means plus the cross term: one Gram matrix of each side holds both.
        left = torch.cat([b_mean, *scaled], dim=2)
        right = torch.cat([a_mean, *a_off], dim=1)
        if rank > min(
            b_mean.shape[1], a_mean.shape[2]
        ):  # the products are smaller than Gram matrices would be
            off = left[:, :, rank:] @ right[:, rank:]
            whole += float((b_mean @ a_mean + off).square().sum())
            excess += float(off.square().sum())
            continue
        gram = (left.mT @ left) * (right @ right.mT)
        whole += float(gram.sum())
        excess += float(gram[:, rank:, rank:].sum())
    return math.sqrt(max(excess, 0.0) / whole) if whole > 0.0 else 0.0


def distance(one: AdapterState, other: AdapterState) -> float:
    """Return how far apart two adapters of the same modules are, by their products and all that is not a factor.

    Frobenius, at least 0; their ranks may differ. From sums that cancel: two equal ones come out at about 1e-8 of their
    norm apart.
    """
    squared = sum(
        inner(x, y) * sign for x, y, sign in ((one, one, 1.0), (other, other, 1.0), (one, other, -2.0))
    )
    return math.sqrt(max(squared, 0.0))


def inner(one: AdapterState, other: AdapterState) -> float:
    """Return the inner product of two adapters of the same modules, by their products and all that is not a factor.

    Raises:
        LocalError: they differ in more than rank.
    """
    _demand_same_modules([one.spec, other.spec])
    total = 0.0
    for (b_1, b_2), (a_1, a_2) in _stacks([one, other]):
        total += float(((b_1.mT @ b_2) * (a_1 @ a_2.mT)).sum())
    for entry in _unpaired(one.spec):
        left, right = one.flat[one.spec.places[entry]], other.flat[other.spec.places[entry]]
        total += float(left.double() @ right.double())
    return total


def average_products(
    states: Sequence[AdapterState],
    weights: Sequence[float],
    reference: AdapterState | None = None,
    spec: AdapterSpec | None = None,
) -> AdapterState:
    """Return the best approximation of the weighted mean of products by factors of a rank, per module.

    The mean of products is exact, the cut is not: sums of many rounds drift (DeCAF, arXiv 2505.21382). Singular values
    are split evenly, B = U sqrt(S), A = sqrt(S) V^T. What is not a factor is averaged plainly.

    Args:
        states: m >= 1 adapters of the same modules, finite; their ranks may differ.
        weights: m numbers that sum to 1, of any sign.
        reference: an adapter, our own as a rule. The result is turned, B R and R^T A with R orthogonal, to lie as near
            to it as it can (Procrustes), so that the optimizer's moments and later means of factors keep their sense;
            and directions in which the product is zero take A from it, because one with both factors at zero would
            never learn again. The product stays the same. Without a reference the largest entry of each column of B
            is made positive: the result then depends on ``states`` and ``weights`` alone, as a final merge should.
        spec: of the result, ``with_rank`` of theirs. If not given, the reference's, or else the first adapter's.
            Where its rank exceeds that of the mean product, factors are filled with zeros (but see above).

    Raises:
        LocalError: modules or other tensors differ, the weights do not sum to 1, or the reference has another spec.
    """
    _check_weights(states, weights)
    if spec is None:
        spec = states[0].spec if reference is None else reference.spec
    if reference is not None and reference.spec != spec:
        raise LocalError("the reference of a mean product must have the spec of the result: its rank differs")
    _demand_same_modules([spec, *(state.spec for state in states)])
    result = AdapterState(spec, torch.empty(spec.size))
    _average_others(result, states, weights)
    # The result's spec comes last, and is the reference's: one look-up serves both.
    for pairs in _blocks([*(state.spec for state in states), spec]):
        targets = pairs[-1]
        stacked = [_stack(state, of) for state, of in zip(states, pairs[:-1], strict=True)]
        b, a = _truncate([b for b, _ in stacked], [a for _, a in stacked], weights, targets[0].rank)
        b, a = _sign(b, a) if reference is None else _align(b, a, *_stack(reference, targets))
        for index, pair in enumerate(targets):
            result.flat[pair.b].view(pair.outputs, pair.rank).copy_(b[index])
            result.flat[pair.a].view(pair.rank, pair.inputs).copy_(a[index])
    return result


# -- ranks


def with_rank(spec: AdapterSpec, rank: int) -> AdapterSpec:
    """Return the spec with ``rank`` rows in every A and columns in every B, and all else as it is.

    Raises:
        LocalError: ``rank`` is below 1.
    """
    if rank < 1:
        raise LocalError(f"the rank of an adapter is at least 1, not {rank}")
    modules = {pair.module for pair in factor_pairs(spec)}
    entries = []
    for name, shape in spec.entries:
        factor = factor_of(name)
        if factor and name.rpartition(".lora_")[0] in modules:
            shape = (rank, shape[1]) if factor == "a" else (shape[0], rank)
        entries.append((name, shape))
    return AdapterSpec(tuple(entries))


def largest_rank(spec: AdapterSpec) -> int:
    """Return the rank of the module that has the highest; 0 if there are no factors."""
    return max((pair.rank for pair in factor_pairs(spec)), default=0)


# -- batches of modules


def _blocks(specs: Sequence[AdapterSpec]) -> Iterator[list[list[FactorPair]]]:
    """Yield modules that have the same shapes in every spec, some at a time: for each spec its pairs of them."""
    alike: dict[tuple[tuple[int, int, int], ...], list[tuple[FactorPair, ...]]] = {}
    for row in zip(*(factor_pairs(spec) for spec in specs), strict=True):
        alike.setdefault(tuple((pair.outputs, pair.rank, pair.inputs) for pair in row), []).append(row)
    for shapes, rows in alike.items():
        step = max(1, BLOCK_VALUES // sum(rank * (outputs + inputs) for outputs, rank, inputs in shapes))
        for start in range(0, len(rows), step):
            yield [list(column) for column in zip(*rows[start : start + step], strict=True)]


def _stack(state: AdapterState, pairs: Sequence[FactorPair]) -> tuple[Tensor, Tensor]:
    """Return B float64[M, d, r] and A float64[M, r, k] of M modules of equal shape."""
    first = pairs[0]
    b = torch.cat([state.flat[pair.b] for pair in pairs]).view(-1, first.outputs, first.rank)
    a = torch.cat([state.flat[pair.a] for pair in pairs]).view(-1, first.rank, first.inputs)
    return b.double(), a.double()


def _stacks(states: Sequence[AdapterState]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield for each block of modules every adapter's B float64[M, d, r_j] and A float64[M, r_j, k]."""
    for pairs in _blocks([state.spec for state in states]):
        stacked = [_stack(state, of) for state, of in zip(states, pairs, strict=True)]
        yield [b for b, _ in stacked], [a for _, a in stacked]


def _deviations(values: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """Return the weighted mean and what each differs from it; taken from the first, so that equals give exactly 0."""
    off = [value - values[0] for value in values]
    shift = torch.zeros_like(values[0])
    for weight, deviation in zip(weights, off, strict=True):
        shift.add_(deviation, alpha=weight)
    return values[0] + shift, [deviation - shift for deviation in off]


# -- the mean of products


def _truncate(
    b_s: Sequence[Tensor], a_s: Sequence[Tensor], weights: Sequence[float], rank: int
) -> tuple[Tensor, Tensor]:
    """Return the best approximation of sum_j w_j B_j A_j of a rank, by QR of stacked factors and SVD of a small core.

    Args:
        b_s, a_s: m tensors float64[M, d, r_j] and [M, r_j, k].

    Returns:
        B float64[M, d, rank] and A [M, rank, k] with the singular values split evenly, zeros where the product's rank
        is smaller.
    """
    roots = [math.sqrt(abs(weight)) for weight in weights]
    signed = [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]
    left = torch.cat([b * scale for b, scale in zip(b_s, signed, strict=True)], dim=2)
    right = torch.cat([a * scale for a, scale in zip(a_s, roots, strict=True)], dim=1)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.mT)
    u, values, v_t = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    count = min(rank, values.shape[1])
    root = torch.where(values > RANK_TOLERANCE * values[:, :1], values, 0.0)[:, :count].sqrt()
    b = left.new_zeros(left.shape[0], left.shape[1], rank)
    a = right.new_zeros(right.shape[0], rank, right.shape[2])
    b[:, :, :count] = q_left @ (u[:, :, :count] * root[:, None, :])
    a[:, :count] = (v_t[:, :count] * root[:, :, None]) @ q_right.mT
    return b, a


def _align(b: Tensor, a: Tensor, b_reference: Tensor, a_reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return B R and R^T A nearest to the reference with orthogonal R; null directions take the reference's A."""
    u, _, v_t = torch.linalg.svd(a @ a_reference.mT + b.mT @ b_reference)
    turn = u @ v_t
    empty = (a.abs().amax(dim=2) == 0.0).double()[:, :, None]
    # Rows of A where B has a zero column do not touch the product; this is the choice nearest to the reference.
    a = a + empty * (turn @ a_reference)
    return b @ turn, turn.mT @ a


def _sign(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return B and A with the signs that make the largest entry of each column of B positive."""
    largest = b.gather(1, b.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0.0, -1.0, 1.0).to(b.dtype)
    return b * sign, a * sign.mT


def _average_others(result: AdapterState, states: Sequence[AdapterState], weights: Sequence[float]) -> None:
    """Write into ``result``, which is ours and new, the weighted mean of every tensor that is not in a pair."""
    for entry in _unpaired(result.spec):
        target = result.flat[result.spec.places[entry]].zero_()
        for state, weight in zip(states, weights, strict=True):
            target.add_(state.flat[state.spec.places[entry]], alpha=weight)


# -- checks


def _check_weights(states: Sequence[AdapterState], weights: Sequence[float]) -> None:
    """Refuse no adapters, or weights that are not one each or do not sum to 1."""
    if not states or len(states) != len(weights) or not abs(sum(weights) - 1.0) <= WEIGHT_TOLERANCE:
        raise LocalError(
            f"a mean of products needs one weight per adapter and a sum of 1: {len(states)} adapters, "
            f"{len(weights)} weights that sum to {sum(weights):.6g}"
        )


def _demand_same_modules(specs: Sequence[AdapterSpec]) -> None:
    """Refuse specs that differ in more than the rank of their factors."""
    if all(spec == specs[0] for spec in specs):
        return
    shapes = {_rankless(spec) for spec in specs}
    if len(shapes) > 1:
        raise LocalError(
            "adapters can be averaged by their products only if they differ in nothing but rank: these have other "
            "modules, or other tensors besides the factors"
        )


def _rankless(spec: AdapterSpec) -> tuple[object, ...]:
    """Return what a spec is without the ranks of its factors."""
    return tuple((pair.module, pair.outputs, pair.inputs) for pair in factor_pairs(spec)), _unpaired(spec)


def _unpaired(spec: AdapterSpec) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the entries of a spec that are not factors of a pair."""
    paired = {(place.start, place.stop) for pair in factor_pairs(spec) for place in (pair.a, pair.b)}
    return tuple(entry for entry, place in spec.places.items() if (place.start, place.stop) not in paired)
