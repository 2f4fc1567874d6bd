"""The numbers of one peer's rounds: from its trained adapter to bytes, and from its neighbors' bytes to the next start.

A pipeline takes vectors through the stages of a tuple (``stage.py``) and keeps their states; it knows none of them by
name, and neither events nor time. A node has one for its rounds (or for each part that
takes turns in them, ``parts.py``) and one for the final merge (``method_set.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import LocalError, RemoteError
from gossip.events import NeighborReport
from gossip.methods import products
from gossip.methods.contribution import Contribution, Objection, scaled_to
from gossip.methods.factors import has_factors
from gossip.methods.parts import Part
from gossip.methods.reach import RoundReach
from gossip.methods.requirements import State
from gossip.methods.stage import Combination, Encoded, Incoming, RoundContext, RowRule, Stage
from gossip.published import PublishedAdapter

MakeStage = Callable[[AdapterSpec], Stage]
"""``spec of the vectors that it is given to publish -> stage``."""


@dataclass(frozen=True, slots=True, eq=False)
class PipelinePlan:
    """What a pipeline is made of: one value for all nodes of a run.

    Args:
        part: what of the adapter travels.
        stages: in the order in which they publish; the last one makes bytes.
        codec: how payloads are called in their headers.
        specs: payload bytes -> spec of the vector that a payload of so many is.
    """

    part: Part
    stages: tuple[Stage, ...]
    codec: str
    specs: Mapping[int, AdapterSpec]

    @staticmethod
    def of(
        makers: Iterable[MakeStage], part: Part, codec: str, other_specs: Sequence[AdapterSpec] = ()
    ) -> PipelinePlan:
        """Make stages that fit one after the other.

        Args:
            part: what of the adapter travels.
            codec: how payloads are called.
            other_specs: what neighbors may send besides, such as adapters of other ranks.
        """
        stages, spec = [], part.spec
        for make in makers:
            stages.append(make(spec))
            spec = stages[-1].next_spec
        sizes = {
            size: incoming
            for incoming in (spec, *other_specs)
            for stage in stages
            for size in stage.payload_sizes(incoming)
        }
        return PipelinePlan(part, tuple(stages), codec, sizes)

    @property
    def shared_spec(self) -> AdapterSpec:
        """Of what travels of the adapter."""
        return self.part.spec

    @property
    def wire_spec(self) -> AdapterSpec:
        """Of the vectors that become bytes."""
        return self.stages[-1].spec

    def spec_of(self, published: PublishedAdapter) -> AdapterSpec:
        """Return the spec of what a neighbor has published.

        Raises:
            RemoteError: ``"codec"`` or ``"shape"``: it cannot be of this run.
        """
        if published.codec != self.codec:
            raise RemoteError("codec", f"{published.codec} came where {self.codec} was expected")
        spec = self.specs.get(len(published.payload))
        if spec is None:
            raise RemoteError("shape", f"{len(published.payload)} bytes do not fit this run's adapters")
        return spec


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came of mixing a row.

    Args:
        state: the adapter to go on with.
        own: our contribution as it was mixed; its weight is what the others left of 1.
        others: what was mixed in, after the guards.
        came: what came, before the guards.
        objections: what guards dropped or clipped.
        mixing_change, cross_term, neighbors: see ``RoundReport``.
    """

    state: AdapterState
    own: Contribution
    others: tuple[Contribution, ...]
    came: tuple[Contribution, ...]
    objections: tuple[Objection, ...]
    mixing_change: float
    cross_term: float
    neighbors: tuple[NeighborReport, ...] = ()


class Pipeline:
    """Stages with the states that they have at one peer.

    Args:
        me: our peer id.
        plan: the stages.
        initial: the adapter that all peers began with.
        norm_cap: see ``guards.norm_clip``.
        saved: ``tensors()`` of an earlier life.
    """

    def __init__(
        self,
        me: str,
        plan: PipelinePlan,
        initial: AdapterState,
        norm_cap: float,
        saved: State | None = None,
    ) -> None:
        self._me = me
        self._plan = plan
        self._norm_cap = norm_cap
        self._initial = plan.part.of(initial)
        self._states = [
            {**stage.init(_padded(self._initial.flat, stage.spec.size)), **_of_stage(stage, saved or {})}
            for stage in plan.stages
        ]
        self._tried = self._states  # as the last trial left them
        self._given: dict[int, Tensor] = {}  # stage's place -> what it was given to publish in this round
        self._as_decoded = self._initial.flat

    def tensors(self) -> State:
        """Return what a checkpoint keeps of all states."""
        return {
            f"{stage.name}/{name}": tensor
            for stage, state in zip(self._plan.stages, self._states, strict=True)
            for name, tensor in stage.saved(state).items()
        }

    def correction(self, spec: AdapterSpec) -> Tensor | None:
        """Return float32[P] to add after every local step to an adapter of this spec, or None."""
        per_stage = (
            stage.correction(state) for stage, state in zip(self._plan.stages, self._states, strict=True)
        )
        corrections = [correction for correction in per_stage if correction is not None]
        if not corrections:
            return None
        total = sum(corrections[1:], corrections[0])
        nothing = AdapterState(spec, torch.zeros(spec.size))
        return self._plan.part.into(nothing, AdapterState(self._plan.shared_spec, total)).flat

    def base_of(self, peer: str) -> bytes:
        """Return the fingerprint of what we keep of a peer that its next payload may build on; empty = nothing."""
        pairs = zip(self._plan.stages, self._states, strict=True)
        return next((base for stage, state in pairs if (base := stage.base_of(peer, state))), b"")

    def forget(self, peer: str) -> None:
        """Drop what is of no use once a peer has gone."""
        pairs = zip(self._plan.stages, self._states, strict=True)
        self._states = [stage.forget(peer, state) for stage, state in pairs]

    def likeness(self, mixed: Mixed) -> dict[str, float]:
        """Return peer -> cosine between what it has learned since the common beginning and what we have, in [-1, 1]."""
        return {other.sender: self._cosine(mixed.own.state, other.state) for other in mixed.others}

    def _cosine(self, own: AdapterState, other: AdapterState) -> float:
        """Return the cosine of what two adapters have learned; of unequal ranks by their products, which begin at 0."""
        if own.spec == other.spec:
            learned, theirs = own.flat - self._initial.flat, other.flat - self._initial.flat
            scale = float(torch.linalg.vector_norm(learned) * torch.linalg.vector_norm(theirs))
            return float(learned @ theirs) / scale if scale else 0.0
        scale = math.sqrt(products.inner(own, own) * products.inner(other, other))
        return products.inner(own, other) / scale if scale else 0.0

    # -- out

    def publish(self, context: RoundContext) -> PublishedAdapter:
        """Return this round's adapter: ``context.trained``, on its way through the stages."""
        self._given = {}
        context = self._narrowed(context)
        encoded = self._encode(0, context, context.trained.flat)
        self._as_decoded = encoded.as_decoded
        make = partial(PublishedAdapter, context.round, context.age, self._plan.codec)
        make_whole = encoded.whole
        if make_whole is None:
            return make(encoded.payload)
        return make(encoded.payload, encoded.base, lambda: make(make_whole()))

    def _encode(self, place: int, context: RoundContext, vector: Tensor) -> Encoded:
        """Return what becomes of a vector from the stage at this place on."""
        if place == len(self._plan.stages):
            raise LocalError("the last stage of a pipeline must make bytes, as a codec does")
        self._given[place] = vector
        encode = partial(self._encode, place + 1, context)
        encoded, self._states[place] = self._plan.stages[place].publish(
            vector, context, encode, self._states[place]
        )
        return encoded

    # -- in

    def read(self, sender: str, published: PublishedAdapter, weight: float) -> Contribution:
        """Return what a neighbor has published, of this weight in our row; what we remember of it moves on.

        Raises:
            RemoteError: ``"codec"``, ``"shape"``, ``"malformed"`` (the sender's fault), or ``"gap"``: it builds on
                something that we do not have.
        """
        spec = self._plan.spec_of(published)
        if published.base and published.base != self.base_of(sender):
            raise RemoteError("gap", "it builds on another replica than ours")
        values = self._decode(0, Incoming(sender, published, spec))
        return Contribution(sender, AdapterState(spec, values), weight, published.age, published.round)

    def _decode(self, place: int, incoming: Incoming) -> Tensor:
        """Return what the stages from this place on make of what came, the last one first."""
        if place == len(self._plan.stages):
            raise LocalError("the last stage of a pipeline must read bytes, as a codec does")
        decode = partial(self._decode, place + 1)
        values, self._states[place] = self._plan.stages[place].read(incoming, decode, self._states[place])
        return values

    # -- together

    def mix(
        self,
        context: RoundContext,
        contributions: Sequence[Contribution],
        neighbor_weight: float,
        reach: RoundReach | None = None,
        excluded: frozenset[str] = frozenset(),
        robust: RowRule | None = None,
    ) -> Mixed:
        """Guard and mix what has come, in the order given (sorted by sender); return the adapter to go on with.

        Args:
            context: of the round; its ``trained`` is what was published.
            neighbor_weight: the share of the row of W that is not ours.
            reach: how far others may lie from us.
            excluded: senders whose contributions are read, but not mixed.
            robust: see ``Combination``.
        """
        narrowed = self._narrowed(context)
        row = Combination(
            context=narrowed,
            own=Contribution(self._me, narrowed.trained, 1.0, context.age, context.round),
            own_as_decoded=self._as_decoded,
            others=tuple(scaled_to(neighbor_weight, contributions)),
            vector=narrowed.trained.flat,
            norm_cap=self._norm_cap,
            reach=reach,
            excluded=excluded,
            robust=robust,
        )
        for place, stage in reversed(list(enumerate(self._plan.stages))):
            if place in self._given and not row.own_is_as_sent:  # a stage may pass by those after it
                own = row.own._replace(state=AdapterState(stage.spec, self._given[place]))
                row = row._replace(own=own)
            row, self._states[place] = stage.combine(row, self._states[place])
        shared = AdapterState(self._plan.shared_spec, row.vector)
        state = self._plan.part.into(context.trained, shared)
        return Mixed(
            state=state,
            own=row.own,
            others=row.others,
            came=row.came,
            objections=row.objections,
            mixing_change=_relative_distance(state, context.trained) if row.others else 0.0,
            cross_term=self._cross_term(row),
        )

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Let what is mixed meanwhile leave no trace, unless it is adopted at once."""
        states = list(self._states)
        try:
            yield
        finally:
            self._tried, self._states = self._states, states

    def adopt_trial(self) -> None:
        """Keep what was mixed in the last trial. Nothing may have been published, read or mixed since."""
        self._states = self._tried

    def reset(self) -> None:
        """Forget all that the stages remember: of an adapter that is given up they remember what is wrong."""
        self._states = [
            stage.init(_padded(self._initial.flat, stage.spec.size)) for stage in self._plan.stages
        ]

    def _narrowed(self, context: RoundContext) -> RoundContext:
        """Leave of the adapters what travels."""
        part = self._plan.part
        if context.trained.spec == part.spec:
            return context
        return replace(context, start=part.of(context.start), trained=part.of(context.trained))

    def _cross_term(self, row: Combination) -> float:
        """Return what averaging factors loses here; NaN where there are none, or none was mixed."""
        shared, contributions = self._plan.shared_spec, (row.own, *row.others)
        ranks_differ = any(contribution.state.spec != shared for contribution in row.others)
        if not row.others or not has_factors(shared) or ranks_differ:
            return math.nan
        adapters = [contribution.state for contribution in contributions]
        return products.cross_term(adapters, [contribution.weight for contribution in contributions])


def _of_stage(stage: Stage, saved: State) -> State:
    """Return the tensors that stand under a stage's name."""
    prefix = f"{stage.name}/"
    return {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}


def _padded(values: Tensor, size: int) -> Tensor:
    """Return float32[size]: values, then zeros."""
    missing = size - values.numel()
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _relative_distance(a: AdapterState, b: AdapterState) -> float:
    """Return |a - b| / |b|; 0 if both are zero."""
    scale = float(torch.linalg.vector_norm(b.flat))
    distance = float(torch.linalg.vector_norm(a.flat - b.flat))
    return distance / scale if scale else distance
