"""Personalization after the run: between what we learned alone last and what all have agreed on, by our own rows.

The interpolation of APFL (arXiv 2003.13461) with five candidates, each measured on our held-out rows. The common
adapter is one of them, so that the choice costs nothing on these rows; it is made on the rows it is reported on, which
flatters it a little.
"""

from __future__ import annotations

from typing import Protocol

import trio

from gossip.adapter import AdapterState
from peer.checkpoints import Home
from peer.journal_events import Personalized
from peer.training.frames import Evaluated, Export

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of our own adapter that are tried. Source: algorithms.md section 6."""


class Evaluator(Protocol):
    """What measures an adapter on our held-out rows."""

    async def evaluate(self, state: AdapterState) -> Evaluated: ...


async def personalize(
    evaluator: Evaluator, own: AdapterState, common: AdapterState, home: Home, export: Export
) -> Personalized:
    """Measure every candidate, write the best to ``HOME/personal``, and return what to tell of it.

    Raises:
        HomeError: the disk refused.
    """
    candidates = {share: between(own, common, share) for share in SHARES}
    losses = {share: (await evaluator.evaluate(state)).own for share, state in candidates.items()}
    best = min(SHARES, key=lambda share: losses[share])
    await trio.to_thread.run_sync(home.export, home.personal, candidates[best], export)
    return Personalized(
        own_share=best,
        loss=losses[best],
        common_loss=losses[0.0],
        own_loss=losses[1.0],
        adapter=home.personal,
    )


def between(own: AdapterState, common: AdapterState, share: float) -> AdapterState:
    """Return ``share`` of our own adapter and the rest of the common one, tensor by tensor."""
    return AdapterState(common.spec, common.flat + share * (own.flat - common.flat))
