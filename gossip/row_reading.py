"""Whom a round asks, for what, and for whom of them it waits. What comes of that is ``node.py``'s."""

from __future__ import annotations

from gossip.events import Action
from gossip.health import Health
from gossip.messages import Kind
from gossip.neighbor import Neighbors
from gossip.pipelines import Pipelines
from gossip.rollout_exchange import RolloutExchange
from gossip.round import Round
from gossip.settings import NodeSettings

HOLD_SHARE = 0.9
"""A neighbor is asked to hold our request for this share of the deadline: its answer must still reach us in time."""


class RowReading:
    """Asks the neighbors of a row.

    Args:
        settings: of the node.
        pipelines: know what its adapters are called, and what the next payload of a peer may build on.
        neighbors: records of those who are asked for adapters.
        rollouts: asks for rollouts, and has records of its own.
        health: knows who is left out.
    """

    def __init__(
        self,
        settings: NodeSettings,
        pipelines: Pipelines,
        neighbors: Neighbors,
        rollouts: RolloutExchange,
        health: Health,
    ) -> None:
        self._settings, self._pipelines, self._neighbors = settings, pipelines, neighbors
        self._rollouts, self._health = rollouts, health

    def asked_for(self, kind: Kind) -> Neighbors:
        """Return the records of those who are asked for something of a kind."""
        return self._rollouts.neighbors if kind == "rollouts" else self._neighbors

    @property
    def waited_for(self) -> Neighbors:
        """Records of those for whom a round waits: of adapters where they are read, and else of rollouts."""
        return self._neighbors if self._settings.shares_weights else self._rollouts.neighbors

    def ask(self, current: Round, round: int, collect_s: float) -> list[Action]:
        """Return what to ask the neighbors of a round's row for; the round notes for whom it waits.

        Args:
            current: the round, whose row and deadline are known.
            round: its number.
            collect_s: the user's bound; 0 = nobody is waited for.
        """
        row = {}
        for peer, weight in current.links.read_from:
            if self._health.leaves_out(peer, round):
                current.failed.append((peer, "left out"))
            else:
                row[peer] = weight
        hold_s = HOLD_SHARE * current.deadline_s
        merging = self._pipelines.is_merging(round)
        actions: list[Action] = [] if merging else [*self._rollouts.ask(row, round, hold_s)]
        if self._settings.masked:
            kind = self._pipelines.kind_of(round)
            actions += self._neighbors.ask_for_sum(sum(row.values()), round, kind, hold_s) if row else []
            current.waiting_for = set(row)
            return actions
        if self._settings.shares_weights:
            kind, base_of = self._pipelines.kind_of(round), self._pipelines.base_of
            actions = [*self._neighbors.ask(row, round, kind, hold_s, base_of), *actions]
        if collect_s > 0:
            # Waited for even if a late adapter of it is here: a neighbor late once would stay a round late for ever.
            current.waiting_for = {peer for peer in row if self.waited_for.of(peer).is_waited_for}
        return actions
