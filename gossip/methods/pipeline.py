"""The numbers of one peer's rounds: from its trained adapter to bytes, and from its neighbors' bytes to the next start.

optimizer -> mixing rule -> feedback -> codec -> bytes, and back: decode, guard, mix, optimizer. All methods are values
(``method_set.py``); their states are kept here, and go into checkpoints as named tensors. It knows no events and no
time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.errors import RemoteError
from gossip.methods import guards, products
from gossip.methods.contribution import Contribution, MixInput
from gossip.methods.factors import has_factors
from gossip.methods.method_set import MethodSet, merges_products
from gossip.methods.mixing import weighted_sum
from gossip.methods.requirements import State
from gossip.published import PublishedAdapter
from gossip.wire import BASE_BYTES


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came of mixing a row.

    Args:
        state: the adapter to go on with.
        contributions: what was mixed in, after the guards.
        objections: what guards dropped or clipped.
        drift, cross_term: see ``RoundReport``.
    """

    state: AdapterState
    contributions: tuple[Contribution, ...]
    objections: tuple[guards.Objection, ...]
    drift: float
    cross_term: float


class _Replica(NamedTuple):
    """What we think a neighbor's readers know of it, less the origin, and its fingerprint."""

    values: Tensor
    fingerprint: bytes


class Pipeline:
    """The states of a peer's methods.

    Args:
        me: our peer id.
        methods: fitted to our adapter.
        initial: the adapter that all peers began with.
        norm_cap: see ``guards.norm_clip``.
        saved: ``tensors()`` of an earlier life.
    """

    def __init__(
        self, me: str, methods: MethodSet, initial: AdapterState, norm_cap: float, saved: State | None = None
    ) -> None:
        self._me = me
        self._methods = methods
        self._norm_cap = norm_cap
        self._is_exact = methods.codec.relative_error == 0.0
        self._origin = None if self._is_exact else methods.origin(initial)
        own = self._laid_out([initial.part(methods.shared).flat] * methods.optimizer.vectors)
        self._optimizer = methods.optimizer.init(methods.shared.size)
        self._mixer = methods.mixer.init(own)
        self._feedback = methods.feedback.init(methods.travels.size)
        for name, tensor in (saved or {}).items():
            kind, _, rest = name.partition("/")
            {"optimizer": self._optimizer, "mixer": self._mixer, "feedback": self._feedback}[kind][rest] = (
                tensor
            )
        self._replicas: dict[str, _Replica] = {}  # not saved: whoever has lost one reads the whole
        self._base = b""
        self._own = own
        self._begin = own.flat
        self._seen = own.flat

    def tensors(self) -> State:
        """Return all states, for a checkpoint."""
        states = {"optimizer": self._optimizer, "mixer": self._mixer, "feedback": self._feedback}
        return {f"{kind}/{name}": tensor for kind, state in states.items() for name, tensor in state.items()}

    def drift(self) -> Tensor | None:
        """Return what is to be added to the whole adapter after every local step, float32[P], or None."""
        drift = self._methods.optimizer.drift(self._optimizer)
        if drift is None or self._methods.shared == self._methods.spec:
            return drift
        rest = AdapterState(self._methods.spec, torch.zeros(self._methods.spec.size))
        return rest.with_part(AdapterState(self._methods.shared, drift)).flat

    def forget(self, peer: str) -> None:
        """Drop what we know of a peer that has gone."""
        self._replicas.pop(peer, None)

    def replica_of(self, peer: str) -> bytes:
        """Return the fingerprint of the replica that we keep of a peer; empty if none."""
        replica = self._replicas.get(peer)
        return replica.fingerprint if replica else b""

    def likeness(self, parts: Sequence[Contribution]) -> dict[str, float]:
        """Return peer -> cosine between what it has learned since the common beginning and what we have, in [-1, 1]."""
        own = self._own.flat - self._begin
        found = {}
        for part in parts:
            theirs = part.state.flat - self._begin
            scale = float(torch.linalg.vector_norm(own) * torch.linalg.vector_norm(theirs))
            found[part.sender] = float(own @ theirs) / scale if scale else 0.0
        return found

    # -- out

    def publish(
        self, start: AdapterState, trained: AdapterState, *, steps: int, round: int, age: int, readers: int
    ) -> PublishedAdapter:
        """Return this round's adapter: ``trained``, reached from ``start`` in ``steps`` local steps."""
        methods = self._methods
        begun, ended = start.part(methods.shared).flat, trained.part(methods.shared).flat
        self._own = self._laid_out(methods.optimizer.publish(begun, ended, steps, self._optimizer))
        vector, self._mixer = methods.mixer.publish(self._own, readers, self._mixer)
        layout, name = methods.travels, methods.names.codec
        if self._origin is None:
            self._seen = self._own.flat
            return PublishedAdapter(round, age, name, methods.codec.encode(vector, layout, round))
        published, self._feedback = methods.feedback.publish(
            vector - self._origin, methods.codec, layout, round, self._feedback
        )
        self._seen = published.seen + self._origin
        if published.whole is None:
            return PublishedAdapter(round, age, name, published.payload)
        base, self._base = self._base, _fingerprint(published.seen)
        make_whole = published.whole
        if not base:  # the first of this life: whatever replicas readers keep are of another
            return PublishedAdapter(round, age, name, make_whole())
        return PublishedAdapter(
            round,
            age,
            name,
            published.payload,
            base,
            lambda: PublishedAdapter(round, age, name, make_whole()),
        )

    def publish_merge(self, state: AdapterState, *, round: int, age: int) -> PublishedAdapter:
        """Return the adapter of a round of the final merge."""
        methods = self._methods
        self._own = state.part(methods.shared)
        payload = methods.merge_codec.encode(self._own.flat, methods.shared, round)
        self._seen = methods.merge_codec.decode(payload, methods.shared, round)
        return PublishedAdapter(round, age, methods.merge_codec_name, payload)

    # -- in

    def decode(
        self, sender: str, received: PublishedAdapter, weight: float, *, merging: bool
    ) -> Contribution:
        """Return what a neighbor has sent, of this weight in our row; a replica kept of the sender moves on.

        Raises:
            RemoteError: ``"codec"``, ``"shape"``, ``"malformed"`` (the sender's fault), or ``"gap"``: it builds on
                another replica than ours.
        """
        methods = self._methods
        expected = methods.merge_codec_name if merging else methods.names.codec
        if received.codec != expected:
            raise RemoteError("codec", f"{received.codec} came where {expected} was expected")
        formats = methods.merge_formats if merging else methods.formats
        layout = formats.get(len(received.payload))
        if layout is None:
            raise RemoteError("shape", f"{len(received.payload)} bytes do not fit this run's adapters")
        if merging:
            values = methods.merge_codec.decode(received.payload, layout, received.round)
        elif self._origin is None:
            values = methods.codec.decode(received.payload, layout, received.round)
        else:
            values = self._decode_lossy(sender, received, layout, self._origin)
        return Contribution(sender, AdapterState(layout, values), weight, received.age, received.round)

    def _decode_lossy(
        self, sender: str, received: PublishedAdapter, layout: AdapterSpec, origin: Tensor
    ) -> Tensor:
        methods = self._methods
        replica = self._replicas.get(sender)
        if received.base and (replica is None or replica.fingerprint != received.base):
            raise RemoteError("gap", "it builds on another replica than ours")
        values = methods.feedback.read(
            received.payload,
            received.round if received.base else -1,
            methods.codec,
            layout,
            received.round,
            replica.values if replica else None,
        )
        if methods.feedback.keeps_replicas and math.isfinite(float(values.sum())):
            self._replicas[sender] = _Replica(values, _fingerprint(values))
        return values + (origin if values.numel() == origin.numel() else 0.0)

    # -- together

    def mix(
        self,
        start: AdapterState,
        trained: AdapterState,
        contributions: Sequence[Contribution],
        *,
        steps: int,
        round: int,
        age: int,
        neighbor_weight: float,
    ) -> Mixed:
        """Guard and mix what has come, in the order given (sorted by sender); return the adapter to go on with.

        Args:
            neighbor_weight: the share of the row that is not ours; late adapters of other rounds' rows are scaled
                into it.
        """
        methods = self._methods
        others = []
        for arrived in _in_row(contributions, neighbor_weight):
            values, weight, self._mixer = methods.mixer.read(
                arrived.sender, arrived.state.flat, arrived.weight, self._mixer
            )
            layout = methods.mixed if arrived.state.spec.size != values.numel() else arrived.state.spec
            others.append(arrived._replace(state=AdapterState(layout, values), weight=weight))
        own, others, objections = self._guarded(others, round, age)
        if methods.factor_rule.refactors:
            mixed = _mean_product(own, others, reference=own.state)  # our gauge: AdamW's moments go on in it
        else:
            row = MixInput(own, self._seen, others, methods.gamma)
            mixed, self._mixer = methods.mixer.mix(row, self._mixer)
        size = methods.shared.size
        vectors = [mixed.flat[begin : begin + size] for begin in range(0, mixed.flat.numel(), size)]
        begun, ended = start.part(methods.shared).flat, trained.part(methods.shared).flat
        shared, self._optimizer = methods.optimizer.update(begun, ended, vectors, steps, self._optimizer)
        state = trained.with_part(AdapterState(methods.shared, shared))
        return self._outcome(state, trained, own, others, objections)

    def merge(
        self,
        state: AdapterState,
        contributions: Sequence[Contribution],
        *,
        round: int,
        age: int,
        neighbor_weight: float,
    ) -> Mixed:
        """Merge a round of published adapters, ours as our readers see it, so that all get the same."""
        methods = self._methods
        others = _in_row(contributions, neighbor_weight)
        own, others, objections = self._guarded(others, round, age)
        own = own._replace(state=AdapterState(methods.shared, self._seen))
        if merges_products(methods):
            merged = _mean_product(own, others, reference=None)  # no gauge of ours: all get the same bytes
        else:
            parts = sorted((own, *others), key=lambda part: part.sender)  # the same float sum on every peer
            merged = AdapterState(
                methods.shared,
                weighted_sum([part.state.flat for part in parts], [part.weight for part in parts]),
            )
        return self._outcome(state.with_part(merged), state, own, others, objections)

    def _guarded(
        self, others: list[Contribution], round: int, age: int
    ) -> tuple[Contribution, list[Contribution], list[guards.Objection]]:
        own = Contribution(self._me, self._own, 1.0, age, round)
        alike = [part for part in others if part.state.spec == self._own.spec]
        passed, objections = guards.apply_all(own, alike, self._norm_cap)
        if len(alike) < len(others):  # decoded in a layout of this run, hence of another rank
            others = [part for part in others if part.state.spec != self._own.spec]
            more, found = guards.of_another_rank(own, others, self._norm_cap)
            passed = sorted((*passed, *more), key=lambda part: part.sender)
            objections = [*objections, *found]
        return own._replace(weight=1.0 - sum(part.weight for part in passed)), passed, objections

    def _outcome(
        self,
        state: AdapterState,
        before: AdapterState,
        own: Contribution,
        others: Sequence[Contribution],
        objections: Sequence[guards.Objection],
    ) -> Mixed:
        cross_term = math.nan
        shared = self._methods.shared
        if others and has_factors(shared) and all(part.state.spec == own.state.spec for part in others):
            parts = (own, *others)
            adapters = [AdapterState(shared, part.state.flat[: shared.size]) for part in parts]
            cross_term = products.cross_term(adapters, [part.weight for part in parts])
        drift = _relative_distance(state, before) if others else 0.0
        return Mixed(state, tuple(others), tuple(objections), drift, cross_term)

    def _laid_out(self, vectors: Sequence[Tensor]) -> AdapterState:
        return AdapterState(
            self._methods.mixed, vectors[0] if len(vectors) == 1 else torch.cat(list(vectors))
        )


def _in_row(contributions: Sequence[Contribution], neighbor_weight: float) -> list[Contribution]:
    """Scale weights down if late adapters of other rounds' rows make them exceed this round's share of neighbors."""
    weights = [contribution.weight for contribution in contributions]
    total, allowed = sum(weights), max([neighbor_weight, *weights])
    if total <= allowed + 1e-9:
        return list(contributions)
    return [
        contribution._replace(weight=contribution.weight * allowed / total) for contribution in contributions
    ]


def _mean_product(
    own: Contribution, others: Sequence[Contribution], *, reference: AdapterState | None
) -> AdapterState:
    """Return the mean product in our layout; parts are summed in order of senders, the same on every peer."""
    if not others:
        return own.state
    parts = sorted((own, *others), key=lambda part: part.sender)
    states, weights = [part.state for part in parts], [part.weight for part in parts]
    return products.average_products(states, weights, reference, own.state.spec)


def _fingerprint(values: Tensor) -> bytes:
    return hashlib.sha256(values.numpy().data).digest()[:BASE_BYTES]


def _relative_distance(a: AdapterState, b: AdapterState) -> float:
    """Return |a - b| / |b|; 0 if both are zero."""
    scale = float(torch.linalg.vector_norm(b.flat))
    distance = float(torch.linalg.vector_norm(a.flat - b.flat))
    return distance / scale if scale else distance
