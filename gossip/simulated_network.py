"""What carries messages in a simulation: one virtual clock, one heap of what is still to happen, and the links.

One generator draws every latency and loss in the order in which messages are sent, so equal seeds give equal histories
in any process. It knows neither nodes nor messages.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from gossip.errors import LocalError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """How the simulated network treats a message.

    Args:
        latency_s: mean one-way latency, seconds, exponentially distributed above a third of it. Guess: 0.05, a WAN.
        loss: probability in [0, 1) that a request or an answer vanishes.
        bandwidth_bytes_s: payload bytes per second of one transfer.
        give_up_s: after this long without an answer beyond the agreed wait, a fetch has failed.
        down_notice_s: how long others take to notice that a peer has died.
    """

    latency_s: float = 0.05
    loss: float = 0.0
    bandwidth_bytes_s: float = 2.5e6
    give_up_s: float = 5.0
    down_notice_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise LocalError(f"loss must be at least 0 and below 1, not {self.loss}")
        if self.latency_s < 0 or self.bandwidth_bytes_s <= 0 or self.give_up_s <= 0 or self.down_notice_s < 0:
            raise LocalError(
                f"latencies must not be negative, bandwidth and give_up_s must be positive: {self}"
            )

    def delay_s(self, rng: random.Random, payload_bytes: int = 0) -> float:
        """Draw the delivery time of a message with a payload."""
        third = self.latency_s / 3
        return third + rng.expovariate(1.0) * 2 * third + payload_bytes / self.bandwidth_bytes_s


class SimulatedNetwork:
    """The clock and the links.

    Args:
        links: the network's manners.
        seed: seed of latency and loss.
    """

    def __init__(self, links: LinkModel, seed: int) -> None:
        self.now = 0.0
        self.links = links
        self._rng = random.Random(seed)
        self._cut: set[tuple[str, str]] = set()
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0

    def after(self, delay_s: float, happen: Callable[[], object]) -> None:
        """Let something happen ``delay_s`` seconds from now; equal times happen in the order of these calls."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._sequence, happen))

    def step(self, until_s: float) -> bool:
        """Let the next thing happen unless the clock would pass ``until_s``; return whether there was one."""
        if not self._queue or self._queue[0][0] > until_s:
            return False
        self.now, _, happen = heapq.heappop(self._queue)
        happen()
        return True

    def delay_s(self, payload_bytes: int = 0) -> float:
        """Draw how long a message takes to arrive, seconds."""
        return self.links.delay_s(self._rng, payload_bytes)

    def loses(self, sender: str, receiver: str) -> bool:
        """Draw whether a message vanishes on its way; on a way that is cut all do."""
        return self._rng.random() < self.links.loss or (sender, receiver) in self._cut

    def loses_by_chance(self) -> bool:
        """Draw whether a message vanishes on a way that is not cut."""
        return self._rng.random() < self.links.loss

    def is_cut(self, sender: str, receiver: str) -> bool:
        """Whether the way from one peer to another is cut."""
        return (sender, receiver) in self._cut

    def cut(self, sender: str, receiver: str) -> None:
        """Let everything that one peer sends to another vanish, from now on."""
        self._cut.add((sender, receiver))

    def heal(self, sender: str, receiver: str) -> None:
        """Let messages from one peer to another arrive again."""
        self._cut.discard((sender, receiver))
