"""What a node is run with, and what of it survives a restart."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gossip.methods.method_set import MethodNames
from gossip.methods.requirements import State
from gossip.rollouts import Share
from topology.announced import Announced
from topology.links import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a node is run with; all of it is checked by the configuration before.

    Args:
        topology: who reads whom.
        names: how the run's methods are written.
        rounds: rounds to run, before the final merge.
        collect_s: longest wait for neighbors, seconds; 0 = asynchronous.
        norm_cap: see ``guards.norm_clip``.
        step_cap: F of ``reach.py``: how far others may lie from us, in rounds of local steps; infinity = anywhere.
        check_every: at least each so many rounds our own held-out loss decides whether a mix is kept; 0 = never.
        check_slack: by how much that loss may rise, as a share of what it is without any learning.
        overlap: read neighbors while the local steps run.
        data: what we announce of our data, where the topology asks for it.
        robust: how the rule for a row that may contain liars is written (``methods/robust.py``).
        roster: all peers of the run, sorted, if W is that of a roster whoever is there; empty = that of who is there.
        masked: of a row only the weighted sum is read, which masks let through.
        average_last: over so many rounds the adapter's mean goes into the final merge (``tail_average.py``); 0 = none.
        share: what peers read of one another.
    """

    topology: Topology
    names: MethodNames = field(default_factory=MethodNames)
    rounds: int
    collect_s: float
    norm_cap: float
    step_cap: float = math.inf
    check_every: int = 0
    check_slack: float = 0.25
    overlap: bool = False
    data: Announced | None = None
    robust: str = "none"
    roster: tuple[str, ...] = ()
    masked: bool = False
    average_last: int = 0
    share: Share = "weights"

    @property
    def shares_weights(self) -> bool:
        """Whether adapters are read and mixed."""
        return self.share != "rollouts"


class NodeSnapshot(NamedTuple):
    """All of a node that must survive a restart, besides its adapter: plain JSON values but for ``tensors``.

    Taken at a round boundary. ``losses``: what ``Health`` has measured. ``rollouts``: of others, those with which the
    next training begins.
    """

    round: int
    age: int
    random: list[Any]
    arrivals_s: list[float]
    tensors: State = {}  # noqa: RUF012 - never written
    losses: Sequence[float] = []
    rollouts: Sequence[Sequence[Any]] = []


def restore_random(rng: random.Random, state: list[Any]) -> None:
    """Let a generator go on where another stood, by its ``random_state``."""
    version, internal, gauss = state
    rng.setstate((version, tuple(internal), gauss))


def random_state(rng: random.Random) -> list[Any]:
    """Return where a generator stands, as plain JSON values."""
    version, internal, gauss = rng.getstate()
    return [version, list(internal), gauss]
