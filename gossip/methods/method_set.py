"""The methods of a run, resolved from their names and fitted to an adapter: what travels, in which layout and size.

One value for all rounds; many nodes of a simulation share it. The numbers that change stand in ``pipeline.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError
from gossip.methods import products
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS, Codec
from gossip.methods.factors import FACTORS, FactorRule, has_factors
from gossip.methods.feedback import FEEDBACKS, Feedback, default_feedback
from gossip.methods.mixing import MIXERS, Mixer
from gossip.methods.optimizers import OPTIMIZERS, Optimizer

RANKS_MAX = 64
"""Highest LoRA rank that a neighbor may have where ranks may differ. Source: ours; beyond, adapters are not small."""
MERGE_CODEC = "int8"
"""How adapters travel in the final merge if the run's codec needs several rounds to be accurate (an error memory, a
mixing step below 1): one round must do. Source: int8 loses nothing measurable (docs/results.md)."""
MERGES = {
    "product": "each LoRA module's mean product B A, cut back to its rank; whatever has no factors is averaged",
    "average": "the mean of the adapters",
    "none": "no final merge",
}
"""How the peers' adapters become one after the last round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodNames:
    """How a run's methods are written; each names an entry of its catalogue.

    Args:
        factors: which of LoRA's factors are trained, travel and are mixed (``FACTORS``).
        mixing: how a row of contributions is combined (``MIXERS``).
        optimizer: what a round does around that (``OPTIMIZERS``).
        codec: how a vector becomes bytes (``CODECS``).
        feedback: what sender and readers remember of what a codec lost (``FEEDBACKS``); auto = what fits the codec.
        gamma: mixing step size in (0, 1]; 0 = the codec's own.
        merge: how adapters become one at the end (``MERGES``).
        private: names of tensors that never travel, such as a classification's head.
    """

    factors: str = "both"
    mixing: str = "average"
    optimizer: str = "none"
    codec: str = "float32"
    feedback: str = "auto"
    gamma: float = 0.0
    merge: str = "none"
    private: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MethodSet:
    """Methods fitted to an adapter.

    Args:
        names: how they are written.
        spec: layout of the whole adapter.
        shared: layout of the part of it that travels.
        mixed: layout of what is mixed: ``shared``, once for every vector that the optimizer sends.
        travels: layout of what we send: ``mixed`` and what the mixing rule adds.
        formats: payload bytes -> layout of what may come: ``travels``, of every rank allowed.
        merge_formats: the same for the final merge.
        factor_rule, mixer, optimizer, codec, feedback, merge_codec: the methods.
        gamma: mixing step size.
    """

    names: MethodNames
    spec: AdapterSpec
    shared: AdapterSpec
    mixed: AdapterSpec
    travels: AdapterSpec
    formats: dict[int, AdapterSpec]
    merge_formats: dict[int, AdapterSpec]
    factor_rule: FactorRule
    mixer: Mixer
    optimizer: Optimizer
    codec: Codec
    feedback: Feedback
    merge_codec: Codec
    merge_codec_name: str
    gamma: float

    @property
    def lengths(self) -> frozenset[int]:
        """Payload sizes in bytes that any round may bring."""
        return frozenset((*self.formats, *self.merge_formats))

    @property
    def sends_plain_adapters(self) -> bool:
        """What travels is the adapter and nothing else."""
        return self.travels is self.shared

    @property
    def merges_as_it_mixes(self) -> bool:
        """What is published in the final merge is encoded as all others."""
        return self.merge_codec is self.codec

    def origin(self, initial: AdapterState) -> Tensor:
        """Return what codecs count from, float32[travelling size]: the adapter that all peers began with.

        Where ranks may differ there is no common one, and codecs count from 0.
        """
        size = self.travels.size
        if self.factor_rule.refactors:
            return torch.zeros(size)
        begin = initial.part(self.shared).flat
        return torch.nn.functional.pad(begin, (0, size - begin.numel()))


@lru_cache(maxsize=8)
def resolve(names: MethodNames, spec: AdapterSpec) -> MethodSet:
    """Return the methods for an adapter of this layout.

    Raises:
        LocalError: an unknown name, a bad parameter, or a rule that needs LoRA's factors where there are none.
    """
    rule = find("factor rule", names.factors, FACTORS)
    mixer = find("mixing rule", names.mixing, MIXERS)
    optimizer = find("optimizer", names.optimizer, OPTIMIZERS)
    codec = find("codec", names.codec, CODECS)
    feedback_name = default_feedback(names.codec) if names.feedback == "auto" else names.feedback
    feedback = find("feedback", feedback_name, FEEDBACKS)
    if names.merge not in MERGES:
        raise LocalError(f"unknown --merge {names.merge!r}; known: {', '.join(MERGES)}")
    shared = rule.shared(spec)
    if names.private:
        shared = shared.only(lambda name: name not in names.private)
    mixed = _repeated(shared, optimizer.vectors)
    travels = _extended(mixed, mixer.extra)
    if rule.refactors and feedback.keeps_replicas:
        raise LocalError(
            f"--feedback {feedback_name} needs neighbors' adapters of one size, but with --factors {names.factors} "
            "ranks may differ: use --feedback error, or --factors both"
        )
    one_round_does = codec.gamma == 1.0 and feedback_name == "none"
    merge_codec_name = names.codec if one_round_does else MERGE_CODEC
    merge_codec = codec if one_round_does else find("codec", MERGE_CODEC, CODECS)
    ranks = range(1, RANKS_MAX + 1) if rule.refactors else ()
    layouts = [products.relayout(shared, rank) for rank in ranks] if ranks else [travels]
    formats = {codec.payload_bytes(layout): layout for layout in layouts}
    if feedback.keeps_replicas:
        formats[4 * travels.size] = travels
    merge_layouts = layouts if ranks else [shared]
    return MethodSet(
        names=names,
        spec=spec,
        shared=shared,
        mixed=mixed,
        travels=travels,
        formats=formats,
        merge_formats={merge_codec.payload_bytes(layout): layout for layout in merge_layouts},
        factor_rule=rule,
        mixer=mixer,
        optimizer=optimizer,
        codec=codec,
        feedback=feedback,
        merge_codec=merge_codec,
        merge_codec_name=merge_codec_name,
        gamma=names.gamma or codec.gamma,
    )


def merges_products(methods: MethodSet) -> bool:
    """Tell whether the final merge averages products: asked for, and there are whole pairs of factors."""
    return methods.names.merge == "product" and has_factors(methods.shared)


def _repeated(layout: AdapterSpec, vectors: int) -> AdapterSpec:
    if vectors == 1:
        return layout
    return AdapterSpec(
        tuple((f"{index}/{name}", shape) for index in range(vectors) for name, shape in layout.entries)
    )


def _extended(layout: AdapterSpec, extra: int) -> AdapterSpec:
    return AdapterSpec((*layout.entries, ("extra", (extra,)))) if extra else layout
