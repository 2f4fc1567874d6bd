"""What an optimizer is, and the stage that runs one: the first of a round's, next to local steps.

An optimizer sees vectors only: ``start`` (where the round began), ``trained`` (after ``steps`` local steps), ``mixed``
(what came of mixing what it published). It acts in two places: ``correction`` is added to the adapter after every
local step by the trainer, ``update`` makes the next start of what was mixed. States hold displacements, in the units of
the adapter: learning rates, and whatever a local optimizer makes of gradients, stay the trainer's business. Rules work
in the dtype that they are given, and an empty state stands for what a run begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.contribution import Contribution
from gossip.methods.requirements import Requirements, State
from gossip.methods.stability import Outer
from gossip.methods.stage import Combination, Encoded, RoundContext, Stage

Update = Callable[[Tensor, Tensor, list[Tensor], int, State], tuple[Tensor, State]]
"""``(start, trained, K mixed vectors, steps, S) -> (next start, S)``; steps >= 1."""


class Optimizer(NamedTuple):
    """An optimizer. P below is the size of the part of the adapter that travels.

    Attributes:
        init: P -> state.
        correction: state -> float32[P] to add after every local step of the next round, or None.
        publish: ``(start, trained, steps, S)`` -> the K vectors float32[P] that travel, the adapter first.
        update: see ``Update``.
        vectors: K.
        requires: what it asks of the run.
        outer: its outer momentum, for ``compatibility.py``; None if it has none.
        of_row: ``(weights, all K vectors of each, one after the other) -> S``, ours first, the weights those of W and
            1 together: what of single contributions ``update`` finds in its state; None if it needs no more than what
            was mixed, which is all there is of a row under masks.
        ramp: turn (``RoundContext.turn``) -> the optimizer as it is then, where it changes; ``requires``, ``outer`` and
            ``vectors`` are those of all its turns.
    """

    init: Callable[[int], State]
    correction: Callable[[State], Tensor | None]
    publish: Callable[[Tensor, Tensor, int, State], list[Tensor]]
    update: Update
    vectors: int
    requires: Requirements
    outer: Outer | None = None
    of_row: Callable[[Sequence[float], Sequence[Tensor]], State] | None = None
    ramp: Callable[[int], Optimizer] | None = None


@dataclass(frozen=True, slots=True)
class OptimizerStage(Stage):
    """The first stage: what an optimizer sends goes on as one vector, and what was mixed comes back to it."""

    optimizer: Optimizer
    spec: AdapterSpec
    name: ClassVar[str] = "optimizer"

    @property
    def next_spec(self) -> AdapterSpec:
        """The adapter's, once for every vector that travels."""
        if self.optimizer.vectors == 1:
            return self.spec
        copies = range(self.optimizer.vectors)
        return AdapterSpec(
            tuple((f"{copy}/{name}", shape) for copy in copies for name, shape in self.spec.entries)
        )

    def init(self, initial: Tensor) -> State:
        """The optimizer's."""
        return self.optimizer.init(self.spec.size)

    def correction(self, state: State) -> Tensor | None:
        """The optimizer's."""
        return self.optimizer.correction(state)

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Hand on all its vectors, one after the other."""
        vectors = self.optimizer.publish(context.start.flat, vector, context.steps, state)
        return encode(vectors[0] if len(vectors) == 1 else torch.cat(vectors)), state

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Make the next start of what was mixed; of the others, adapters are left."""
        context, size = row.context, self.spec.size
        mixed = [row.vector[begin : begin + size] for begin in range(0, row.vector.numel(), size)]
        if self.optimizer.of_row:
            own = torch.cat(
                self.optimizer.publish(context.start.flat, context.trained.flat, context.steps, state)
            )
            weights = [row.own.weight, *(one.weight for one in row.others)]
            vectors = [own, *(one.state.flat for one in row.others)]
            state = state | self.optimizer.of_row(weights, vectors)
        optimizer = self.optimizer.ramp(context.turn) if self.optimizer.ramp else self.optimizer
        vector, state = optimizer.update(
            context.start.flat, context.trained.flat, mixed, context.steps, state
        )
        if self.optimizer.vectors > 1:
            row = row._replace(others=self._adapters(row.others), came=self._adapters(row.came))
        return row._replace(vector=vector), state

    def _adapters(self, contributions: Sequence[Contribution]) -> tuple[Contribution, ...]:
        """Leave of contributions of several vectors the first, which is the adapter."""
        return tuple(
            one._replace(state=AdapterState(self.spec, one.state.flat[: self.spec.size]))
            for one in contributions
        )


def one_vector(
    correction: Callable[[State], Tensor | None],
    update: Update,
    requires: Requirements,
    outer: Outer | None = None,
) -> Optimizer:
    """Return an optimizer for which the adapter alone travels."""
    return Optimizer(
        init=empty,
        correction=correction,
        publish=lambda start, trained, steps, state: [trained],
        update=update,
        vectors=1,
        requires=requires,
        outer=outer,
    )


def empty(size: int) -> State:
    """Return the state of an optimizer that begins with none."""
    return {}
