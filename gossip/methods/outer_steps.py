"""What a round does with what was mixed besides taking it over: outer steps, larger, remembered or per coordinate.

Each treats the mean displacement of local steps as a server's optimizer treats its gradient. There are two kinds here.

Outer momentum (``noloco``, ``diloco``) goes by d = mixed - start, for which the adapter alone has to travel. Where
peers begin a round apart, d is their disagreement as well as what was learned, and momentum amplifies both: what step
still brings peers together over which W, ``stability.py`` says. Over a few tens of rounds a momentum of .9 costs more
than it brings, on the tiny model 0.3 nats; .5 gained nothing there either.

Steps that are not linear in d (``fedexp``, ``fedadam``) would blow disagreement up without such a bound: it is what is
left of d when little is learned. They take it out: the displacement u = trained - start travels beside the adapter, and

    next start = W start + step(W u),   W start = W trained - W u.

So starts are mixed as they are with ``none`` and contract as fast, whatever the step is, over every W and every codec;
with nothing to learn these are ``none``. Over the complete graph all have one start and one W u, and that is to
rounding what a server does with it. The price is a vector more: twice the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossip.methods.optimizer_stage import Optimizer, Update, empty, one_vector
from gossip.methods.requirements import Requirements, State
from gossip.methods.stability import Outer

BETA_1, BETA_2 = 0.9, 0.99
"""Decay of the moments of ``fedadam`` per round. Source: FedOpt (arXiv 2003.00295), in all its experiments."""
MOMENTUM_FIRST, MOMENTUM_LAST, MOMENTUM_TURNS = 0.5, 0.9, 100
"""Momentum of ``diloco`` in the first outer step, that of the paper (arXiv 2311.08105), and the step from which on that
holds. Source: our bench: over 24 steps 0.9 lost more than training alone gains, at every inner rate, and 0.5 lost
nothing; the paper's runs have 100 steps and more."""
ADAM_STEP_MAX = (1.0 - BETA_1) / ((1.0 - BETA_2) * (1.0 - BETA_1**2 / BETA_2)) ** 0.5
"""``fedadam`` moves no value by more than so many rates in a round, 2.35, whatever neighbors send. Source: Cauchy and
Schwarz over the past rounds: |m| <= ADAM_STEP_MAX sqrt(v)."""


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

    return one_vector(lambda state: None, update, Requirements(linear=True), Outer(mu, gamma))


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

    return one_vector(lambda state: None, update, Requirements(linear=True), Outer(mu, gamma, nesterov=True))


def ramped_nesterov(mu: float | None = None, gamma: float = 0.7) -> Optimizer:
    """``nesterov`` whose momentum, where none is given, grows with the rounds (``momentum_in``)."""
    if mu is not None:
        return nesterov(mu, gamma)
    return nesterov(MOMENTUM_LAST, gamma)._replace(ramp=lambda turn: nesterov(momentum_in(turn), gamma))


def momentum_in(turn: int) -> float:
    """Return the momentum after so many outer steps: a straight line, then ``MOMENTUM_LAST``.

    A step taken with momentum mu goes on for 1 / (1 - mu) steps: what is to gain by it must be that many.
    """
    grown = MOMENTUM_FIRST + (MOMENTUM_LAST - MOMENTUM_FIRST) * turn / MOMENTUM_TURNS
    return min(MOMENTUM_LAST, grown)


def extrapolated(eps: float = 1e-3) -> Optimizer:
    """Mixed displacements, taken farther the less they are alike: FedExP (arXiv 2301.09604) over a row of W.

    step = eta W u with eta = sum_j w_j |u_j|^2 / (2 (|W u|^2 + eps)), but at least 1, and at most 1 / (2 sum_j w_j^2).
    Equal displacements give 1, orthogonal ones of equal length the most, k/2 for k equal weights. Only displacements
    that oppose each other would go beyond, which the paper allows: there it is noise or a liar that asks for more.
    """

    def of_row(weights: Sequence[float], vectors: Sequence[Tensor]) -> State:
        squares = [vector[vector.numel() // 2 :].square().sum() for vector in vectors]
        mean = sum(weight * float(square) for weight, square in zip(weights, squares, strict=True))
        most = 0.5 / sum(weight**2 for weight in weights)
        return {"square": squares[0].new_tensor([mean]), "most": squares[0].new_tensor([max(1.0, most)])}

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        starts, change = mixed[0] - mixed[1], mixed[1]
        if not state:
            return mixed[0], {}
        ratio = state["square"] / (2.0 * (change.square().sum(dim=-1, keepdim=True) + eps))
        return starts + change * torch.minimum(ratio.clamp_min(1.0), state["most"]), {}

    return _two_vectors(update)._replace(of_row=of_row)


def adaptive(lr: float = 0.005, tau: float = 1e-3) -> Optimizer:
    """Adam on mixed displacements: FedAdam (FedOpt, arXiv 2003.00295) over a row of W.

    m' = .9 m + .1 W u, v' = .99 v + .01 (W u)^2 by coordinate, m = 0 and v = tau^2 before the first round; step =
    lr m' / (sqrt(v') + tau). No value moves by more than ``ADAM_STEP_MAX`` lr.
    """

    def update(
        start: Tensor, trained: Tensor, mixed: list[Tensor], steps: int, state: State
    ) -> tuple[Tensor, State]:
        starts, change = mixed[0] - mixed[1], mixed[1]
        m, v = (1.0 - BETA_1) * change, (1.0 - BETA_2) * change.square()
        m = m.add_(state["m"], alpha=BETA_1) if state else m
        v = v.add_(state["v"], alpha=BETA_2) if state else v.add_(BETA_2 * tau**2)
        return starts.add_(m / (v.sqrt() + tau), alpha=lr), {"m": m, "v": v}

    return _two_vectors(update)


def _two_vectors(update: Update) -> Optimizer:
    """Return an optimizer for which the displacement travels beside the adapter."""
    return Optimizer(
        init=empty,
        correction=lambda state: None,
        publish=lambda start, trained, steps, state: [trained, trained - start],
        update=update,
        vectors=2,
        requires=Requirements(linear=True),
    )
