"""The methods of a run, resolved from their names and fitted to an adapter: which stages its numbers pass through.

One value for all rounds; many nodes of a simulation share it. The states that change are kept by ``pipeline.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

from gossip.adapter import AdapterSpec
from gossip.errors import LocalError
from gossip.methods import products
from gossip.methods.budget import LADDER
from gossip.methods.catalogue import find
from gossip.methods.codecs import CODECS, Codec, Encoding
from gossip.methods.factors import FACTORS, FactorRule
from gossip.methods.feedback import Feedback, rule_of
from gossip.methods.merging import MERGES, Merge, ProductMixing
from gossip.methods.mixing import MIXERS, Mixer
from gossip.methods.optimizer_stage import OptimizerStage
from gossip.methods.optimizers import OPTIMIZERS
from gossip.methods.origin import Origin
from gossip.methods.parts import Part, parts_of, whole
from gossip.methods.pipeline import MakeStage, PipelinePlan
from gossip.wire import PAYLOAD_BYTES_MAX

RANKS_MAX = 64
"""Highest LoRA rank that a peer may have where ranks may differ. Source: ours; beyond, adapters are not small, and one
mix of rank 4096 takes hours, because turning factors toward ours needs an SVD of rank x rank for each module."""
MERGE_CODEC = "int8"
"""How adapters travel in the final merge if the run's codec needs several rounds to be accurate (an error memory, a
mixing step below 1): one round must do. Source: int8 loses nothing measurable (docs/results.md)."""


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
        fragments: parts of the adapter, which take turns in travelling (``parts.py``).
    """

    factors: str = "both"
    mixing: str = "average"
    optimizer: str = "none"
    codec: str = "float32"
    feedback: str = "auto"
    gamma: float = 0.0
    merge: str = "none"
    private: tuple[str, ...] = ()
    fragments: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class MethodSet:
    """Methods fitted to an adapter.

    Args:
        names: how they are written.
        spec: of the whole adapter.
        parts: stages of a round's numbers, for each part of the adapter; round t is of part t mod F.
        merge: stages of the final merge's.
        factor_rule, mixer: rules of which the node must know more than their stages.
        gamma: mixing step size.
        merges_as_it_mixes: what is published in the final merge is encoded as all others.
        sends_changes: what travels in rounds is what they have changed.
    """

    names: MethodNames
    spec: AdapterSpec
    parts: tuple[PipelinePlan, ...]
    merge: PipelinePlan
    factor_rule: FactorRule
    mixer: Mixer
    gamma: float
    merges_as_it_mixes: bool
    sends_changes: bool

    @property
    def wire_spec(self) -> AdapterSpec:
        """Of the vectors that travel; of parts, the first, than which none is larger."""
        return self.parts[0].wire_spec

    @property
    def sends_plain_adapters(self) -> bool:
        """What travels is the adapter and nothing else."""
        if len(self.parts) > 1 or self.sends_changes:
            return False
        return self.wire_spec == self.parts[0].shared_spec


@lru_cache(maxsize=8)
def resolve(names: MethodNames, spec: AdapterSpec) -> MethodSet:
    """Return the methods for an adapter of this spec.

    Raises:
        LocalError: an unknown name, a bad parameter, or a rule that needs LoRA's factors where there are none.
    """
    rule = find("factor rule", names.factors, FACTORS)
    codec = find("codec", names.codec, CODECS)
    feedback_name, feedback = rule_of(names.feedback, names.codec)
    shared_spec = rule.shared(spec)
    if names.private:
        shared_spec = shared_spec.only(lambda name: name not in names.private)
    if rule.refactors and feedback.equal_ranks:
        raise LocalError(
            f"--feedback {feedback_name} needs neighbors' adapters of one size, but with --factors {names.factors} "
            "ranks may differ: use --feedback error, or --factors both"
        )
    if rule.refactors and (rank := products.largest_rank(shared_spec)) > RANKS_MAX:
        raise LocalError(
            f"--factors {names.factors} mixes adapters of rank {RANKS_MAX} at most, and this one has rank {rank}: use "
            "a lower --lora-r, or --factors both"
        )
    ranks = range(1, RANKS_MAX + 1) if rule.refactors else ()
    other_ranks = [products.with_rank(shared_spec, rank) for rank in ranks]
    gamma = names.gamma or (1.0 if feedback.changes else codec.gamma)
    one_round_does = codec.gamma == 1.0 and (feedback.changes or feedback_name == "none")
    merge_codec_name = names.codec if one_round_does else MERGE_CODEC
    merge_stages = (
        partial(Merge, find("merge", names.merge, MERGES)),
        partial(Encoding, find("codec", merge_codec_name, CODECS)),
    )
    stages = round_stages(names, rule, codec, feedback, gamma)
    parts = tuple(
        PipelinePlan.of(stages, part, names.codec, other_ranks)
        for part in _parts(shared_spec, names.fragments)
    )
    merge = PipelinePlan.of(merge_stages, whole(shared_spec), merge_codec_name, other_ranks)
    for plan in (parts[0], merge):  # no part is larger than the first
        _refuse_too_large(plan)
    return MethodSet(
        names=names,
        spec=spec,
        parts=parts,
        merge=merge,
        factor_rule=rule,
        mixer=find("mixing rule", names.mixing, MIXERS),
        gamma=gamma,
        merges_as_it_mixes=one_round_does,
        sends_changes=feedback.changes,
    )


def _refuse_too_large(plan: PipelinePlan) -> None:
    """Refuse a codec whose payloads would be longer than any may be.

    Raises:
        LocalError: names codecs whose payloads are not.
    """
    spec = plan.wire_spec
    size = max(size for stage in plan.stages for size in stage.payload_sizes(spec))
    if size <= PAYLOAD_BYTES_MAX:
        return
    known = (find("codec", text, CODECS).payload_bytes(spec) for text in LADDER)
    fits = [text for text, size in zip(LADDER, known, strict=True) if size <= PAYLOAD_BYTES_MAX]
    ways = f"use --codec {' or '.join(fits[:3])}" if fits else "use a smaller model, or --adapter lora"
    raise LocalError(
        f"{spec.size:,} values would travel as {size >> 20} MiB with codec {plan.codec}; at most "
        f"{PAYLOAD_BYTES_MAX >> 20} MiB do: {ways}"
    )


def _parts(spec: AdapterSpec, count: int) -> tuple[Part, ...]:
    """Return the parts that take turns.

    Raises:
        LocalError: there are fewer values than parts.
    """
    if count > spec.size:
        raise LocalError(
            f"--fragments {count} cuts {spec.size} values into more parts than there are: use --fragments 1"
        )
    return parts_of(spec, count)


def round_stages(
    names: MethodNames, rule: FactorRule, codec: Codec, feedback: Feedback, gamma: float
) -> tuple[MakeStage, ...]:
    """Return what a round's numbers pass through between local steps and the wire, in order."""
    mixer = find("mixing rule", names.mixing, MIXERS)
    remembers_losses = codec.relative_error > 0.0
    # Where ranks may differ there is no common origin, and changes have one of their own.
    counts_from_origin = remembers_losses and not rule.refactors and not feedback.changes
    return (
        partial(OptimizerStage, find("optimizer", names.optimizer, OPTIMIZERS)),
        ProductMixing if rule.refactors else partial(mixer.stage, gamma),
        # A stage that changes what leaves this peer, such as privacy, has its place here.
        *((Origin,) if counts_from_origin else ()),
        *((feedback.stage,) if remembers_losses or feedback.changes else ()),
        partial(Encoding, codec),
    )
