"""The node's whole contract with the world: what may happen to it, and what it may ask for.

The shell (``peer/runtime.py``) and the simulator both turn the world into events and carry actions out, in the order
in which they are returned. Every ``Fetch`` ends in exactly one ``Fetched`` or ``FetchFailed``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from gossip.adapter import AdapterState
from gossip.messages import Kind
from gossip.published import PublishedAdapter
from gossip.rollouts import Received, Rollout
from topology.announced import Announced

ROW = "row"
"""Stands for the sender of a sum: nobody in particular."""

TrainableFactors = Literal["all", "a", "b"]
"""Which tensors local steps change: everything, LoRA's A alone, or all but A (B, and what goes with it)."""

# -- events


@dataclass(frozen=True, slots=True)
class Start:
    """Begin (or, with a restored node, go on)."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Local steps are done.

    ``loss``: mean training loss over them, nats per token. ``rollouts``: answers of our own for others.
    """

    state: AdapterState
    steps: int
    loss: float
    rollouts: tuple[Rollout, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A neighbor's adapter is here, or its rollouts; the digest has been verified, the content has not.

    ``weight``: of what came in our row, where it is a sum that ``FetchSum`` asked for; None = as it was asked for.
    """

    peer: str
    published: PublishedAdapter
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A fetch ended without what was asked for.

    ``reason``: stable word, ``"nothing"`` = the peer has nothing newer. ``kind``: what was asked for.
    """

    peer: str
    reason: str
    kind: Kind = field(default="round", repr=False)


@dataclass(frozen=True, slots=True)
class Served:
    """A peer has got our adapter of ``round``, as far as the transport can tell."""

    peer: str
    round: int


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A peer of this run is alive and has completed ``round`` rounds, by its own word. May repeat.

    ``data``: what it has announced of its data, if anything; a topology may go by it. ``incarnation``: number of its
    life, higher after a restart.
    """

    peer: str
    round: int
    data: Announced | None = field(default=None, repr=False)
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class PeerDown:
    """A peer left or was found dead."""

    peer: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer set for ``round`` has run out."""

    round: int


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """Local steps have come to nothing: the loss was no number any more. ``reason``: what the training process said."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to ``Check`` of that round: the candidate's loss on our own held-out rows, perhaps not finite."""

    round: int
    loss: float


@dataclass(frozen=True, slots=True)
class Stop:
    """The user wants to end now; what was mixed last is kept."""


Event = (
    Start
    | Trained
    | TrainingFailed
    | Fetched
    | FetchFailed
    | Served
    | PeerUp
    | PeerDown
    | TimerFired
    | Checked
    | Stop
)

# -- actions


@dataclass(frozen=True, slots=True)
class Train:
    """Run local steps from this state; answer with ``Trained``, or ``TrainingFailed``.

    Args:
        state: where to begin.
        round: number of the round, from 0.
        trainable: which tensors to change: all, or A or B of LoRA's factors (gossip/methods/factors.py).
        correction: float32[P] to add to the adapter after every local step, or None (gossip/methods/optimizers.py).
        rollouts: of others, of the last rounds, no two the same, for trainers that learn from them.
    """

    state: AdapterState
    round: int
    trainable: TrainableFactors = "all"
    correction: Tensor | None = field(default=None, repr=False)
    rollouts: tuple[Received, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Publish:
    """Let others read this adapter, or these rollouts; they never change."""

    published: PublishedAdapter


@dataclass(frozen=True, slots=True)
class Fetch:
    """Pull from a peer: ``round`` wanted (None = newest), news after ``newer_than``, held up to ``wait_s`` there.

    ``base``: fingerprint of the replica that we keep of it, empty if none. ``kind``: what is wanted, nothing else.
    """

    peer: str
    round: int | None
    newer_than: int
    wait_s: float
    base: bytes = b""
    kind: Kind = "round"


@dataclass(frozen=True, slots=True)
class FetchSum:
    """Read the weighted sum of our row of this round, and no single adapter of it, within ``wait_s`` seconds.

    Ends as a ``Fetch`` does; its peer is ``ROW``.
    """

    round: int
    wait_s: float
    kind: Kind = "round"


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Post ``TimerFired(round)`` after ``delay_s`` seconds."""

    round: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Penalize:
    """A peer sent what no honest peer sends."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """Measure an adapter on a few of our own held-out rows; answer with ``Checked``."""

    round: int
    candidate: AdapterState = field(repr=False)


@dataclass(frozen=True, slots=True)
class Distrust:
    """A neighbor's adapter would have harmed ours: it is left out for so many ``rounds``, beginning with the next.

    ``loss``: of our own held-out rows with the mix in which it was, where up to ``limit`` is in order.
    """

    peer: str
    round: int
    loss: float
    limit: float
    rounds: int


class NeighborReport(NamedTuple):
    """What was seen of a neighbor whose adapter came (``sightings.py``); counts begin with the process.

    Attributes:
        peer: its id.
        distance: of its adapter from ours, Euclidean, or of their products where those are mixed; not finite if
            its values were not.
        ratio: the same relative to the lower median of the row; NaN where that is 0.
        cosine: of what it has learned since the common beginning with what we have, in [-1, 1], estimated; NaN where
            one has learned nothing yet, or their ranks differ.
        drift: distance of its adapter from its last one that came, estimated; NaN at first.
        rounds: how often an adapter of it came.
        trimmed: in how many of these rounds the robust rule left it out.
        objections: in how many of them a guard objected to it.
    """

    peer: str
    distance: float
    ratio: float
    cosine: float
    drift: float
    rounds: int
    trimmed: int
    objections: int


class RolloutReport(NamedTuple):
    """What a round has shared of rollouts.

    Attributes:
        published: how many of ours.
        bytes: length of their publication.
        came: ``(peer, how many)`` of every publication that has come since the last report.
        usable: ``(peer, how many)`` of those that the round's training was given.
    """

    published: int
    bytes: int
    came: tuple[tuple[str, int], ...]
    usable: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round was: the record that journal, table and checkpoints are made of.

    Args:
        round: number of the round, from 0.
        merging: a round of the final merge, in which nobody trains.
        loss: mean training loss of its local steps, nats per token; NaN when merging.
        age: local steps that went into our adapter so far, by our own count.
        mixed: ``(peer, its round, weight)`` of every contribution mixed in.
        failed: ``(peer, reason)`` of every neighbor of this round that did not come.
        objections: ``(peer, reason)`` of what guards and robust rule dropped or clipped.
        neighbors: what was seen of each neighbor whose adapter came.
        payload_bytes: bytes of the publications that came.
        mixing_change: ``|mixed - own| / |own|``, how far the neighbors pulled us (0 when alone).
        cross_term: what averaging LoRA's factors loses against averaging their products, relative to the latter, for
            this row (gossip/methods/products.py); NaN where there are no factors, or none was mixed.
        collect_s: seconds between publishing and mixing.
        deadline_s: seconds that we would have waited at most.
        held_out: loss of ``state`` on a few of our own held-out rows; NaN if it was not measured.
        measurements: how many mixes were tried on these rows before one was kept.
        went_back: ``state`` is the last adapter whose loss was in order, as that of this round was not.
        state: the adapter after mixing.
        received: ``(peer, its adapter)`` of all that came and could be mixed, as it came.
        rollouts: what was shared of rollouts; None where none are.
    """

    round: int
    merging: bool
    loss: float
    age: int
    mixed: tuple[tuple[str, int, float], ...]
    failed: tuple[tuple[str, str], ...]
    objections: tuple[tuple[str, str], ...]
    neighbors: tuple[NeighborReport, ...]
    payload_bytes: int
    mixing_change: float
    cross_term: float
    collect_s: float
    deadline_s: float
    held_out: float
    measurements: int
    went_back: bool
    state: AdapterState = field(repr=False)
    received: tuple[tuple[str, AdapterState], ...] = field(repr=False, default=())
    rollouts: RolloutReport | None = None

    @property
    def is_healthy(self) -> bool:
        """The adapter is known to be in order."""
        return self.went_back or not math.isnan(self.held_out)


@dataclass(frozen=True, slots=True)
class Report:
    """A round is complete: write it down, make a checkpoint.

    ``whole``: to be published for those who come late: the adapter that the next round begins with; None = it is not.
    """

    report: RoundReport
    whole: PublishedAdapter | None = field(repr=False, compare=False, default=None)


@dataclass(frozen=True, slots=True)
class Finish:
    """All rounds are done, or we were stopped."""


Action = Train | Publish | Fetch | FetchSum | SetTimer | Check | Penalize | Distrust | Report | Finish
