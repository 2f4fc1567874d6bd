"""The seam of the pipeline: what a stage between local steps and the wire is.

When an adapter is published, its vector goes through a tuple of stages in order::

    optimizer -> mixing -> origin -> feedback -> codec -> bytes

What comes from a neighbor goes through them in the reverse order when it arrives (``read``), and the row of all that
has come does so once more when it is mixed (``combine``), until it is the adapter to go on with. A stage is a value
that all nodes of a simulation share; its state is named tensors, which a pipeline keeps for its node. Stages know no
events, no time and no other stage.

To add a stage: a class that says what differs from the defaults below, in a file of its own, and one line in
``method_set.round_stages``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.methods.contribution import Contribution, Guarded, Objection
from gossip.methods.reach import RoundReach
from gossip.methods.requirements import State
from gossip.published import PublishedAdapter

RowRule = Callable[[Contribution, Sequence[Contribution]], Guarded]
"""A robust rule for a row: ``(own, others) -> (others as they are to be mixed, objections)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What a peer's numbers depend on in a round, besides what came.

    Args:
        round: number of the round, from 0.
        age: local steps that went into our adapter so far.
        steps: local steps of the round.
        start: our adapter where the round began; where parts of it take turns, each as it was when it had travelled
            last.
        trained: our adapter as it is published; stages get of both only what travels.
        readers: how many peers read us in this round; raises ``TopologyError`` where nobody can know.
        parts: how many parts of the adapter take turns (``parts.py``).
    """

    round: int
    age: int
    steps: int
    start: AdapterState
    trained: AdapterState
    readers: Callable[[], int]
    parts: int = 1

    @property
    def turn(self) -> int:
        """How often what travels in this round has travelled before."""
        return self.round // self.parts


class Encoded(NamedTuple):
    """A vector as it travels.

    Attributes:
        payload: the bytes.
        as_decoded: what readers make of them, bit for bit; the very tensor that was encoded if nothing is lost.
        base: fingerprint of what readers must have of us to use ``payload`` (``Offer.base``); empty = nothing.
        whole: makes the payload for readers who do not have that; None = all can use ``payload``.
    """

    payload: bytes
    as_decoded: Tensor
    base: bytes = b""
    whole: Callable[[], bytes] | None = None


class Incoming(NamedTuple):
    """What has come from a neighbor, its length and base known to be right.

    Attributes:
        sender: peer id.
        published: payload and header.
        spec: of the vector that the payload is.
    """

    sender: str
    published: PublishedAdapter
    spec: AdapterSpec


class Combination(NamedTuple):
    """A round's row of W on its way through the stages: from what has come to the adapter to go on with.

    Args:
        context: the round.
        own: our own contribution, as the stage that looks at it was given it to publish.
        own_as_decoded: the same as readers decode it; the very tensor of ``own`` if it travels unchanged.
        others: what has come, in sorted order of senders; from the mixing stage on, what was mixed.
        vector: the adapter so far: ours as published, then what came of mixing, at the end where the next round begins.
        norm_cap: how far others may lie from us, see ``guards.norm_clip``.
        objections: what guards dropped or clipped.
        reach: how far others may lie from us besides, see ``reach.py``; None = anywhere.
        excluded: senders whose contributions are read, but not mixed.
        came: all that has come, as it was before guards; the mixing stage writes it down.
        robust: the rule for the row as a whole (``robust.py``); None = there is none.
        own_is_as_sent: ``own`` is what readers see of us, also for the stages still to come.
    """

    context: RoundContext
    own: Contribution
    own_as_decoded: Tensor
    others: tuple[Contribution, ...]
    vector: Tensor
    norm_cap: float
    objections: tuple[Objection, ...] = ()
    reach: RoundReach | None = None
    excluded: frozenset[str] = frozenset()
    came: tuple[Contribution, ...] = ()
    robust: RowRule | None = None
    own_is_as_sent: bool = False


class Stage(Protocol):
    """One step between local steps and the wire. States are never written in place.

    Attributes:
        name: under which its tensors stand in checkpoints.
        spec: of the vectors that it is given to publish.
    """

    name: ClassVar[str]
    spec: AdapterSpec

    @property
    def next_spec(self) -> AdapterSpec:
        """Of the vectors that it hands on; the same unless it adds values."""
        return self.spec

    def init(self, initial: Tensor) -> State:
        """Return the state at the start.

        Args:
            initial: float32[spec.size], the adapter that all peers began with, then zeros for what other stages add.
        """
        return {}

    def saved(self, state: State) -> State:
        """Return what of its state belongs into a checkpoint."""
        return state

    def correction(self, state: State) -> Tensor | None:
        """Return float32[P] to add to what travels of the adapter after every local step, or None."""
        return None

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Take our vector of this round, and hand on what should travel.

        Args:
            vector: float32[spec.size].
            encode: what the stages after this one make of a vector float32[next_spec.size].
        """
        return encode(vector), state

    def read(
        self, incoming: Incoming, decode: Callable[[Incoming], Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Return the values that a neighbor published, float32[incoming.spec.size]; called as soon as they are here.

        Args:
            decode: what the stages after this one make of what came.

        Raises:
            RemoteError: no honest peer sends such a thing; the state stays as it was.
        """
        return decode(incoming), state

    def combine(self, row: Combination, state: State) -> tuple[Combination, State]:
        """Do our part in mixing a round's row; called once a round, after ``publish``."""
        return row, state

    def base_of(self, peer: str, state: State) -> bytes:
        """Return the fingerprint of what we keep of a peer that its next payload may build on; empty = nothing."""
        return b""

    def forget(self, peer: str, state: State) -> State:
        """Return the state without what is of no use once a peer has gone."""
        return state

    def payload_sizes(self, spec: AdapterSpec) -> tuple[int, ...]:
        """Return how many bytes a payload that this stage makes of a vector of this spec can have."""
        return ()
