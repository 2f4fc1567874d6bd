"""What a round does around local steps and mixing: the catalogue of optimizers for peers whose data differ.

What an optimizer is, ``optimizer_stage.py`` says; those that make more of what was mixed than the next start are in
``outer_steps.py``. To add one: one function and a line in ``OPTIMIZERS``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossip.methods.catalogue import Entry
from gossip.methods.optimizer_stage import Optimizer, empty, one_vector
from gossip.methods.outer_steps import (
    MOMENTUM_FIRST,
    MOMENTUM_LAST,
    MOMENTUM_TURNS,
    adaptive,
    extrapolated,
    heavy_ball,
    ramped_nesterov,
)
from gossip.methods.requirements import Requirements, State
from topology.parameters import Parameter, Value, positive

STEP_MAX = 4.0
"""Outer steps are below it: 2 (1 + mu) bounds what any W bears (``stability.static_bound``)."""


def plain() -> Optimizer:
    """Mixing alone: D-PSGD (arXiv 1705.09056) with local steps, adapt then combine."""

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        return mixed[0], state

    return one_vector(lambda state: None, update, Requirements())


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

    return one_vector(correction, update, Requirements(linear=True, all_parts=True))


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
        all_parts=True,
    )
    return one_vector(lambda state: state.get("drift"), update, requires)


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
        init=empty,
        correction=lambda state: -state["c"] if state else None,
        publish=publish,
        update=update,
        vectors=2,
        requires=Requirements(
            doubly_stochastic=True, lock_step=True, linear=True, whole_rows=True, all_parts=True
        ),
    )


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
    # LR: the paper's choice.
    "diloco": Entry(
        ramped_nesterov,
        "outer Nesterov momentum (DiLoCo)",
        (
            Parameter(
                "MU",
                f"momentum, 0 to below 1, default {MOMENTUM_FIRST:g} to {MOMENTUM_LAST:g} in {MOMENTUM_TURNS} rounds",
                _momentum,
                required=False,
            ),
            Parameter("LR", "step, above 0 to 4, default 0.7", positive(STEP_MAX), required=False),
        ),
    ),
    # The paper's smallest, of those it tried.
    "fedexp": Entry(
        extrapolated,
        "steps farther the less displacements are alike; twice the bytes (FedExP)",
        (Parameter("EPS", "added to a square, above 0 to 1, default 0.001", positive(1.0), required=False),),
    ),
    # LR: our bench, tiny model, 20 rounds (0.02 ends 0.05 nats higher); TAU: the paper's choice.
    "fedadam": Entry(
        adaptive,
        "outer Adam on mixed displacements; twice the bytes (FedAdam)",
        (
            Parameter("LR", "step, above 0 to 1, default 0.005", positive(1.0), required=False),
            Parameter("TAU", "least denominator, above 0 to 1, default 0.001", positive(1.0), required=False),
        ),
    ),
}
