"""A node's rollouts: what it publishes of its own, asks its row for, and keeps of what comes.

Where weights are shared, too, nobody waits for rollouts: what comes late is of use a round later. What comes is put
into the buffer where a round's training begins, in sorted order: so equal arrivals give equal buffers, in whatever
order they came, and what a checkpoint holds is what the next ``Train`` carries. It knows no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gossip.errors import RemoteError
from gossip.events import Fetch, Fetched, PeerUp, Publish, RolloutReport
from gossip.neighbor import Neighbors
from gossip.published import PublishedAdapter
from gossip.rollouts import CODEC, Buffer, Received, Rollout, add, decode, encode, fresh
from gossip.settings import NodeSettings


class RolloutExchange:
    """One peer's rollouts.

    Args:
        settings: of the node.
        saved: ``snapshot()`` of an earlier life.

    Attributes:
        neighbors: records of those who are asked for rollouts; apart from those of adapters, which come or not by
            themselves.
        buffer: what is kept of others.
    """

    def __init__(self, settings: NodeSettings, saved: Sequence[Sequence[Any]] = ()) -> None:
        self.neighbors = Neighbors()
        self.buffer = Buffer(
            tuple(Received(sender, round, Rollout(*rollout)) for sender, round, *rollout in saved)
        )
        self._is_on = settings.share != "weights"
        self._rounds = settings.rounds
        self._own: tuple[Rollout, ...] = ()
        self._own_bytes = 0
        self._waiting: list[tuple[int, str, tuple[Rollout, ...]]] = []  # round, sender, what it has published
        self._came: Counter[str] = Counter()
        self._usable: Counter[str] = Counter()

    def trained(self, own: tuple[Rollout, ...]) -> None:
        """Take what our local steps have brought; it is published with the next adapter."""
        self._own = own

    def publish(self, round: int, age: int) -> list[Publish]:
        """Return the publication of a round; none where no rollouts are shared.

        Raises:
            LocalError: our trainer has handed out what nobody may publish.
        """
        if not self._is_on:
            return []
        payload = encode(self._own)
        self._own_bytes = len(payload)
        return [Publish(PublishedAdapter(round, age, CODEC, payload, kind="rollouts"))]

    def ask(self, row: Mapping[str, float], round: int, hold_s: float) -> list[Fetch]:
        """Return what to ask the neighbors of a round's row for; nothing where no rollouts are shared."""
        return self.neighbors.ask(row, round, "rollouts", hold_s, lambda peer: b"") if self._is_on else []

    def heard_of(self, said: PeerUp) -> None:
        """Take a peer's word for how far it is."""
        if self._is_on:
            self.neighbors.of(said.peer).heard_of(said)

    def take(self, event: Fetched, round: int) -> None:
        """Keep what a neighbor has published until the next training begins.

        Args:
            event: what came.
            round: ours: nothing counts as newer.

        Raises:
            RemoteError: ``"malformed"``: it is no publication of rollouts.
        """
        published, neighbor = event.published, self.neighbors.of(event.peer)
        if published.codec != CODEC:
            raise RemoteError("malformed", f"rollouts under the codec {published.codec}")
        rollouts = decode(published.payload)
        neighbor.delivered()
        neighbor.mixed_round = max(neighbor.mixed_round, published.round)
        self._waiting.append((min(published.round, round), event.peer, rollouts))
        self._came[event.peer] += len(rollouts)

    def hand_out(self, round: int) -> tuple[Received, ...]:
        """Return what the training of a round is given."""
        for of_round, sender, rollouts in sorted(self._waiting):
            self.buffer = add(self.buffer, sender, of_round, rollouts)
        self._waiting.clear()
        self.buffer = fresh(self.buffer, round)
        usable = self.buffer.usable()
        self._usable = Counter(item.sender for item in usable)
        return usable

    def report(self) -> RolloutReport | None:
        """Return what there is to say since the last report; None where no rollouts are shared."""
        if not self._is_on:
            return None
        came, self._came = self._came, Counter()
        return RolloutReport(
            len(self._own), self._own_bytes, tuple(sorted(came.items())), tuple(sorted(self._usable.items()))
        )

    def snapshot(self) -> list[list[Any]]:
        """Return the buffer as plain JSON values."""
        return [[item.sender, item.round, *item.rollout] for item in self.buffer.items]
