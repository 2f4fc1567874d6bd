"""Which LoRA factors are trained, travel and are mixed: the catalogue of factor rules.

LoRA learns a change s B A of a matrix, B [d, r], A [r, k]. Averaging both factors is not averaging their product: the
difference is sum_j w_j (B_j - Bbar)(A_j - Abar), which vanishes as soon as either factor is the same everywhere
(algorithms.md section 3.1). The rules differ in how they keep it small. A rule is a value and knows specs only: what
trains is the trainer's business, how vectors are combined the mixing rule's, products are in ``products.py``.
To add a rule: one function and one line in ``FACTORS``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.events import TrainableFactors
from gossip.methods.catalogue import Entry
from gossip.methods.requirements import Requirements
from topology.parameters import Parameter, whole

SWITCHING_INTERVAL_MAX = 10
"""Most rounds that one factor is trained before the other has its turn. Source: algorithms.md section 3.3, whose toy
still gains from it on a ring; longer was not tried."""

FAST_CONTRACTION = 0.5
"""A round of mixing that removes more than this share of the disagreement lets the factors take turns every round.
Source: algorithms.md section 3.3, a heuristic of ours."""


class FactorRule(NamedTuple):
    """What becomes of the two factors of every module.

    Attributes:
        shared: spec of the adapter -> spec of what travels and is mixed, the same in every round; the rest stays
            private. Raises ``LocalError`` for an adapter that the rule cannot be used with.
        trainable: ``(round, interval)`` -> which tensors local steps change in that round. ``interval`` is the rule's
            own, or the measured one where the rule has none.
        interval: rounds until the other factor's turn; ``None`` = measured by the node (``switching_interval``).
        refactors: products are mixed and split into factors anew (``products.average_products``), not factors.
        core_only: the adapter is built so that its tensors are the r x r cores R of B R A.
        requires: what it asks of the run.
        doc: one line.
    """

    shared: Callable[[AdapterSpec], AdapterSpec]
    trainable: Callable[[int, int], TrainableFactors]
    interval: int | None
    refactors: bool
    core_only: bool
    requires: Requirements
    doc: str


class FactorPair(NamedTuple):
    """The two factors of one module, and where they lie in the flat vector.

    Attributes:
        module: name of the module in the model, as in the tensors' names.
        a: place of A in the flat vector; shape [rank, inputs].
        b: place of B; shape [outputs, rank].
    """

    module: str
    a: slice
    b: slice
    outputs: int
    rank: int
    inputs: int


_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.weight)?")
"""A factor as peft names it in an adapter's state dict."""


def factor_of(name: str) -> Literal["a", "b"] | None:
    """Return which factor a tensor is, by its name; ``None`` for any other (DoRA's magnitude, a head, a bias)."""
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    return "a" if match[2] == "A" else "b"


@lru_cache(maxsize=64)
def factor_pairs(spec: AdapterSpec) -> tuple[FactorPair, ...]:
    """Return the modules of a spec that have both factors, in order of their names; none if there is none.

    A pair is two matrices, A [r, k] and B [d, r], called ``<module>.lora_A.weight`` and ``<module>.lora_B.weight``.
    """
    places = {entry[0]: (entry[1], place) for entry, place in spec.places.items()}
    pairs = []
    for name, (shape, place) in sorted(places.items()):
        if factor_of(name) != "a":
            continue
        module, _, ending = name.rpartition(".lora_A")
        b_shape, b_place = places.get(f"{module}.lora_B{ending}", ((), slice(0)))
        if len(shape) == len(b_shape) == 2 and shape[0] == b_shape[1]:
            pairs.append(FactorPair(module, place, b_place, b_shape[0], shape[0], shape[1]))
    return tuple(pairs)


def has_factors(spec: AdapterSpec) -> bool:
    """Return whether a spec has a module with both factors."""
    return bool(factor_pairs(spec))


def switching_interval(contraction: float) -> int:
    """Return for how many rounds one factor is trained before the other, from how fast the peers agree.

    TAD-LoRA (arXiv 2602.00451) asks for longer turns where mixing is slower; the formula is ours (algorithms.md
    section 3.3): 1 if p > 0.5, else 1 / p rounded up, at most ``SWITCHING_INTERVAL_MAX``.

    Args:
        contraction: p, the share of the peers' squared disagreement that one round of mixing removes; 0 or less if it
            grew. NaN, where there was no disagreement to measure, counts as fast.
    """
    if math.isnan(contraction) or contraction > FAST_CONTRACTION:
        return 1
    if contraction * SWITCHING_INTERVAL_MAX <= 1.0:
        return SWITCHING_INTERVAL_MAX
    return math.ceil(1.0 / contraction)


# -- the rules


def both() -> FactorRule:
    """Train, send and average all tensors (Dec-LoRA, arXiv 2501.15361); fits every kind of adapter."""
    return _rule(both)


def ffa() -> FactorRule:
    """A stays as it began, the same everywhere; B is trained and averaged (FFA-LoRA, arXiv 2403.12313): exact."""
    return _rule(ffa, shared=_without("a", "ffa"), trainable="b")


def alternate(interval: int | None = None) -> FactorRule:
    """Train B for T rounds, then A, average both (ADF-LoRA, arXiv 2511.18291); T is measured if not given."""

    # B first: it begins at zero, and while it is zero the gradient of A is zero too.
    def trainable(round: int, interval: int) -> TrainableFactors:
        return "a" if round // interval % 2 else "b"

    rule = _rule(alternate, shared=_all_of("alternate"))
    return rule._replace(trainable=trainable, interval=interval, requires=Requirements(all_parts=True))


def share_a() -> FactorRule:
    """Train both, share A alone: B stays private, each peer its own model (FedSA-LoRA, arXiv 2410.01463)."""
    return _rule(share_a, shared=_without("b", "share-a"))


def r_only() -> FactorRule:
    """Train and average only r x r cores between two frozen factors (Fed-SB, arXiv 2502.15436): exact and tiny."""

    def shared(spec: AdapterSpec) -> AdapterSpec:
        if factor_pairs(spec):
            raise LocalError(
                "factors 'r-only' mixes the r x r cores of B R A, but this adapter was built with factors A and B of "
                f"its own, such as those of {factor_pairs(spec)[0].module}. Build it with cores, or take factors: "
                f"{', '.join(name for name in FACTORS if name != 'r-only')}"
            )
        return spec

    return _rule(r_only, shared=shared)._replace(core_only=True)


def tsvd() -> FactorRule:
    """Average the products, cut back to rank r by SVD (DeCAF, arXiv 2505.21382); peers may differ in rank."""
    rule = _rule(tsvd, shared=_all_of("tsvd"))
    return rule._replace(refactors=True, requires=Requirements(all_parts=True))


def _rule(
    make: Callable[..., FactorRule],
    shared: Callable[[AdapterSpec], AdapterSpec] = lambda spec: spec,
    trainable: TrainableFactors = "all",
) -> FactorRule:
    """Return a rule that does the same in every round, with its maker's first line as description."""
    return FactorRule(
        shared=shared,
        trainable=lambda round, interval: trainable,
        interval=1,
        refactors=False,
        core_only=False,
        requires=Requirements(),
        doc=_first_line(make),
    )


def _all_of(rule: str) -> Callable[[AdapterSpec], AdapterSpec]:
    """Return ``shared`` of a rule that shares everything but needs both factors."""
    return lambda spec: _with_factors(spec, rule)


def _without(factor: Literal["a", "b"], rule: str) -> Callable[[AdapterSpec], AdapterSpec]:
    """Return ``shared`` of a rule that keeps one factor at home and needs both."""
    return lambda spec: _with_factors(spec, rule).only(lambda name: factor_of(name) != factor)


def _with_factors(spec: AdapterSpec, rule: str) -> AdapterSpec:
    """Return ``spec`` if it has pairs of factors.

    Raises:
        LocalError: it has none.
    """
    if not has_factors(spec):
        has = spec.entries[0][0] if spec.entries else "nothing"
        raise LocalError(
            f"factors {rule!r} needs an adapter with LoRA factors A and B, but this one has none (its first tensor is "
            f"{has}). Take factors 'both', or adapter lora, rslora or dora"
        )
    return spec


def _first_line(make: Callable[..., FactorRule]) -> str:
    return (make.__doc__ or "").split("\n")[0]


FACTORS: dict[str, Entry[FactorRule]] = {
    "both": Entry(both, _first_line(both)),
    "ffa": Entry(ffa, _first_line(ffa)),
    "alternate": Entry(
        alternate,
        _first_line(alternate),
        (Parameter("T", "rounds until the other factor's turn, at least 1", whole(1), required=False),),
    ),
    "share-a": Entry(share_a, _first_line(share_a)),
    "r-only": Entry(r_only, _first_line(r_only)),
    "tsvd": Entry(tsvd, _first_line(tsvd)),
}
