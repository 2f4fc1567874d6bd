"""The stage that makes vectors small for lossy codecs: they count from the adapter that all peers began with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gossip.adapter import AdapterSpec
from gossip.methods.requirements import State
from gossip.methods.stage import Encoded, Incoming, RoundContext, Stage


@dataclass(frozen=True, slots=True)
class Origin(Stage):
    """Differences from the initial adapter travel: what nobody has trained yet is zero, and costs a codec little."""

    spec: AdapterSpec
    name: ClassVar[str] = "origin"

    def init(self, initial: Tensor) -> State:
        """Keep the adapter that all began with."""
        return {"origin": initial}

    def saved(self, state: State) -> State:
        """Nothing: whoever restarts is given the initial adapter again."""
        return {}

    def publish(
        self, vector: Tensor, context: RoundContext, encode: Callable[[Tensor], Encoded], state: State
    ) -> tuple[Encoded, State]:
        """Hand on the difference."""
        encoded = encode(vector - state["origin"])
        return encoded._replace(as_decoded=encoded.as_decoded + state["origin"]), state

    def read(
        self, incoming: Incoming, decode: Callable[[Incoming], Tensor], state: State
    ) -> tuple[Tensor, State]:
        """Add the origin again."""
        return decode(incoming) + state["origin"], state
