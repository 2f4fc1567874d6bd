"""What carries messages in a simulation: one virtual clock, one heap of what is still to happen, and the links.

One generator draws every latency and loss in the order in which messages are sent, so equal seeds give equal histories
in any process. Faults of single ways draw from another one, so that a history without them is what it would be if
there were no such thing. Peers may stand still. It knows neither nodes nor messages.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gossip.errors import LocalError
from gossip.fault_kinds import Link
from gossip.simulated_clocks import Clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """How the simulated network treats a message.

    Args:
        latency_s: mean one-way latency, seconds, exponentially distributed above a third of it. Guess: 0.05, a WAN.
        loss: probability in [0, 1) that a request or an answer vanishes.
        bandwidth_bytes_s: payload bytes per second of one transfer.
        give_up_s: after this long without an answer beyond the agreed wait, a fetch has failed.
        down_notice_s: how long others take to notice that a peer has died.
        uploads: payloads that a peer sends at a time, the others wait; 0 = no limit. In life: 3 (peer/exchange.py).
    """

    latency_s: float = 0.05
    loss: float = 0.0
    bandwidth_bytes_s: float = 2.5e6
    give_up_s: float = 5.0
    down_notice_s: float = 0.5
    uploads: int = 0

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

    Attributes:
        clocks: what each peer's clock shows.
        read_bytes_s: peer -> how fast it reads payloads, where that is slower than the network.
    """

    def __init__(self, links: LinkModel, seed: int) -> None:
        self.now = 0.0
        self.links = links
        self.read_bytes_s: dict[str, float] = {}
        self.clocks = Clocks()
        self._rng = random.Random(seed)
        self._fault_rng = random.Random(f"{seed}/faults")
        self._cut: Counter[tuple[str, str]] = Counter()
        self._bad: dict[tuple[str, str], list[Link]] = {}
        self._still: dict[
            str, list[Callable[[], object]]
        ] = {}  # peers that stand still, and what waits for them
        self._queue: list[tuple[float, int, str, Callable[[], object]]] = []
        self._sequence = 0

    # -- the clock

    def after(self, delay_s: float, happen: Callable[[], object], at: str = "") -> None:
        """Let something happen ``delay_s`` seconds from now; equal times happen in the order of these calls.

        ``at``: the peer at which it happens, later if that stands still then; empty = at none.
        """
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._sequence, at, happen))

    def step(self, until_s: float) -> bool:
        """Let the next thing happen unless the clock would pass ``until_s``; return whether there was one."""
        if not self._queue or self._queue[0][0] > until_s:
            return False
        self.now, _, at, happen = heapq.heappop(self._queue)
        if at in self._still:
            self._still[at].append(happen)
        else:
            happen()
        return True

    def pause(self, peer: str) -> None:
        """Let a peer stand still: what happens at it waits."""
        self._still.setdefault(peer, [])

    def resume(self, peer: str) -> None:
        """Let a peer go on, with all that waited, in order."""
        for happen in self._still.pop(peer, []):
            self.after(0.0, happen, peer)

    # -- the links

    def delay_s(self, payload_bytes: int = 0) -> float:
        """Draw how long a message takes to arrive, seconds."""
        return self.links.delay_s(self._rng, payload_bytes)

    def send(self, sender: str, receiver: str, arrive: Callable[[], object], payload_bytes: int = 0) -> None:
        """Let a message arrive once, or not at all, or, on a bad way, twice or late."""
        if self._rng.random() < self.links.loss or self.is_cut(sender, receiver):
            return
        delay_s = self.delay_s(payload_bytes)
        for more_s in self._copies(sender, receiver, payload_bytes):
            self.after(delay_s + more_s, arrive, receiver)

    def _copies(self, sender: str, receiver: str, payload_bytes: int) -> Iterator[float]:
        """Return how much later than usual each copy of a message arrives, seconds; usually one, and 0."""
        more_s, copies = 0.0, 1
        if receiver in self.read_bytes_s:
            more_s += payload_bytes / self.read_bytes_s[receiver]
        for link in self._bad.get((sender, receiver), ()):
            more_s += self._worse_s(link, payload_bytes)
            copies += self._fault_rng.random() < link.duplication
            copies *= self._fault_rng.random() >= link.loss
        for copy in range(copies):
            yield more_s + copy * self.links.latency_s

    def _worse_s(self, link: Link, payload_bytes: int = 0) -> float:
        late_s = link.delay_s + self._fault_rng.uniform(-link.jitter_s, link.jitter_s)
        if self._fault_rng.random() < link.reordering:
            late_s += link.delay_s + link.jitter_s
        return late_s + (payload_bytes / link.rate_bytes_s if link.rate_bytes_s else 0.0)

    def stream_delay_s(self, sender: str, receiver: str, retransmit_s: float) -> float:
        """Draw how long a piece of a stream takes, seconds: what is lost is sent again ``retransmit_s`` later."""
        delay_s = self.delay_s()
        while self._rng.random() < self.links.loss:
            delay_s += retransmit_s
        for link in self._bad.get((sender, receiver), ()):
            delay_s += self._worse_s(link)
            while link.loss < 1 and self._fault_rng.random() < link.loss:
                delay_s += retransmit_s
        return delay_s

    def garbled(self, sender: str, receiver: str, content: bytes) -> bytes:
        """Return what a message is on arrival: itself, or on a bad way perhaps with one bit flipped."""
        for link in self._bad.get((sender, receiver), ()):
            if content and self._fault_rng.random() < link.corruption:
                place, bit = self._fault_rng.randrange(len(content)), self._fault_rng.randrange(8)
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                content = bytes(flipped)
        return content

    def broken_at(self, sender: str, receiver: str, payload_bytes: int) -> int | None:
        """Draw after how many bytes a transfer breaks off; None = it does not."""
        for link in self._bad.get((sender, receiver), ()):
            if self._fault_rng.random() < link.breaks:
                return self._fault_rng.randrange(payload_bytes) if payload_bytes else 0
        return None

    def is_cut(self, sender: str, receiver: str) -> bool:
        """Whether the way from one peer to another is cut."""
        return self._cut[sender, receiver] > 0

    def cut(self, sender: str, receiver: str) -> None:
        """Let everything that one peer sends to another vanish, from now on, until it has healed as often as cut."""
        self._cut[sender, receiver] += 1

    def heal(self, sender: str, receiver: str) -> None:
        """Let messages from one peer to another arrive again."""
        self._cut[sender, receiver] = max(0, self._cut[sender, receiver] - 1)

    def worsen(self, sender: str, receiver: str, link: Link) -> None:
        """Let a way be bad, besides whatever makes it bad already."""
        self._bad.setdefault((sender, receiver), []).append(link)

    def relieve(self, sender: str, receiver: str, link: Link) -> None:
        """Take back one ``worsen``."""
        bad = self._bad.get((sender, receiver), [])
        if link in bad:
            bad.remove(link)
