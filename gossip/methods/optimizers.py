"""What a round does around local steps and mixing: the catalogue of optimizers for peers whose data differ.

An optimizer sees vectors only: ``start`` (where the round began), ``trained`` (after ``steps`` local steps), ``mixed``
(what came of mixing what it published). It acts in two places: ``correction`` is added to the adapter after every
local step by the trainer, ``update`` makes the next start of what was mixed. States hold displacements, in the units of
the adapter: learning rates, and whatever a local optimizer makes of gradients, stay the trainer's business. Rules work
in the dtype that they are given, and an empty state stands for zeros. To add one: one function and a line in
``OPTIMIZERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.catalogue import Entry
from gossip.methods.contribution import Contribution
from gossip.methods.requirements import Requirements, State
from gossip.methods.stability import Outer
from gossip.methods.stage import Combination, Encoded, RoundContext, Stage
from topology.parameters import Parameter, Value, positive

STEP_MAX = 4.0
"""Outer steps are below it: 2 (1 + mu) bounds what any W bears (``stability.static_bound``)."""


class Optimizer(NamedTuple):
    """An optimizer. P below is the size of the part of the adapter that travels.

    Attributes:
        init: P -> state.
        correction: state -> float32[P] to add after every local step of the next round, or None.
        publish: ``(start, trained, steps, S)`` -> the K vectors float32[P] that travel, the adapter first.
        update: ``(start, trained, K mixed vectors, steps, S) -> (next start, S)``; steps >= 1.
        vectors: K.
        requires: what it asks of the run.
        outer: its outer momentum, for ``compatibility.py``; None if it has none.
    """

    init: Callable[[int], State]
    correction: Callable[[State], Tensor | None]
    publish: Callable[[Tensor, Tensor, int, State], list[Tensor]]
    update: Callable[[Tensor, Tensor, list[Tensor], int, State], tuple[Tensor, State]]
    vectors: int
    requires: Requirements
    outer: Outer | None = None


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
        vector, state = self.optimizer.update(
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


def plain() -> Optimizer:
    """Mixing alone: D-PSGD (arXiv 1705.09056) with local steps, adapt then combine."""

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        return mixed[0], state

    return _one_vector(lambda state: None, update, Requirements())


def quasi_global(mu: float = 0.9) -> Optimizer:
    """Local momentum along the path of the mixed adapter: QG-DSGDm (arXiv 2102.04761).

    m is the backward displacement per local step: m' = mu m + (1 - mu) (start - mixed) / steps. Correction: -mu m. With
    mu = 0 it is ``none``.
    """

    def correction(state: State) -> Tensor | None:
        return -mu * state["m"] if mu and state else None

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        m = torch.mul(start - mixed[0], (1.0 - mu) / steps)
        return mixed[0], {"m": m.add_(state["m"], alpha=mu) if state else m}

    return _one_vector(correction, update, Requirements(linear=True))


def d2() -> Optimizer:
    """D^2 (arXiv 1803.07068), also exact diffusion: x' = W (x + u + c), c' = x' - x - u, u the local displacement.

    c enters in equal parts, the corrections, after every local step, and one part is kept: c = steps * correction. If
    all take equally many steps, corrections sum to 0, and in the limit each undoes the local step of its peer: all
    stand still at the minimum of the summed losses. An eigenvalue of W of -1/3 or less makes it diverge; we ask for
    lazy weights, which leave a margin for large steps. What a codec loses leaves the sum as it is (``mixing.average``).
    """

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        correction = torch.div(mixed[0] - trained, steps)
        # The tensor's name is older than the word: checkpoints have it.
        return mixed[0], {"drift": correction.add_(state["drift"]) if state else correction}

    requires = Requirements(
        doubly_stochastic=True,
        symmetric=True,
        static=True,
        lock_step=True,
        positive=True,
        linear=True,
        whole_rows=True,
    )
    return _one_vector(lambda state: state.get("drift"), update, requires)


def tracking() -> Optimizer:
    """Gradient tracking over local steps: K-GT (arXiv 2301.01313). Twice the bytes.

    D = (start - trained) / steps travels too; c' = c - D + mixed D, correction -c. Corrections sum to 0 as long as
    mixing keeps the mean, whatever W is in a round: a lossy codec does not hurt that (``mixing.average``), single
    messages that get lost do (but under ``--mixing symmetric-drop``).
    """

    def displacement(start: Tensor, trained: Tensor, steps: int) -> Tensor:
        return torch.div(start - trained, steps)

    def publish(start: Tensor, trained: Tensor, steps: int, state: State) -> list[Tensor]:
        return [trained, displacement(start, trained, steps)]

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        c = mixed[1] - displacement(start, trained, steps)
        return mixed[0], {"c": c.add_(state["c"]) if state else c}

    return Optimizer(
        init=_empty,
        correction=lambda state: -state["c"] if state else None,
        publish=publish,
        update=update,
        vectors=2,
        requires=Requirements(doubly_stochastic=True, lock_step=True, linear=True, whole_rows=True),
    )


def heavy_ball(mu: float = 0.5, gamma: float = 0.7) -> Optimizer:
    """Outer heavy-ball momentum over what was mixed: NoLoCo (arXiv 2506.10911), made for random pairs.

    m' = mu m + gamma (mixed - start), next start = start + m'. The paper has one step size for adapters and one for
    their changes; its values of both are equal, and then only the adapter has to travel.
    """

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        m = torch.mul(mixed[0] - start, gamma)
        m = m.add_(state["m"], alpha=mu) if state else m
        return start + m, {"m": m}

    return _one_vector(lambda state: None, update, Requirements(linear=True), Outer(mu, gamma))


def nesterov(mu: float = 0.9, gamma: float = 0.7) -> Optimizer:
    """Outer Nesterov momentum over what was mixed: DiLoCo (arXiv 2311.08105).

    m' = mu m + d with d = mixed - start; next start = start + LR (d + mu m'), torch's form of it.
    """

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        change = mixed[0] - start
        m = torch.add(change, state["m"], alpha=mu) if state else change
        step = torch.add(change, m, alpha=mu)
        return torch.add(start, step, alpha=gamma), {"m": m}

    return _one_vector(lambda state: None, update, Requirements(linear=True), Outer(mu, gamma, nesterov=True))


def _one_vector(
    correction: Callable[[State], Tensor | None],
    update: Callable[[Tensor, Tensor, list[Tensor], int, State], tuple[Tensor, State]],
    requires: Requirements,
    outer: Outer | None = None,
) -> Optimizer:
    """Return an optimizer for which the adapter alone travels."""
    return Optimizer(
        init=_empty,
        correction=correction,
        publish=lambda start, trained, steps, state: [trained],
        update=update,
        vectors=1,
        requires=requires,
        outer=outer,
    )


def _empty(size: int) -> State:
    return {}


def _momentum(text: str) -> Value:
    valid = "a number from 0 to below 1"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(valid) from None
    if not 0.0 <= value < 1.0:
        raise ValueError(valid)
    return value


def _mu(default: float) -> Parameter:
    return Parameter("MU", f"momentum, 0 to below 1, default {default}", _momentum, required=False)


OPTIMIZERS: dict[str, Entry[Optimizer]] = {
    "none": Entry(plain, "local steps and mixing, nothing else (D-PSGD)"),
    # MU 0.9 is the momentum of the paper's experiments.
    "qg": Entry(quasi_global, "local momentum along the path of the mixed adapter (QG-DSGDm)", (_mu(0.9),)),
    "d2": Entry(d2, "cancels the pull of one's own data, over a fixed graph with lazy weights (D^2)"),
    "k-gt": Entry(
        tracking, "cancels the pull of one's own data by gradient tracking; twice the bytes (K-GT)"
    ),
    # The paper's code has both.
    "noloco": Entry(
        heavy_ball,
        "outer heavy-ball momentum, made for random pairs (NoLoCo)",
        (_mu(0.5), Parameter("GAMMA", "step, above 0 to 4, default 0.7", positive(STEP_MAX), required=False)),
    ),
    # The paper's choice for both.
    "diloco": Entry(
        nesterov,
        "outer Nesterov momentum (DiLoCo)",
        (_mu(0.9), Parameter("LR", "step, above 0 to 4, default 0.7", positive(STEP_MAX), required=False)),
    ),
}
