"""Who takes part as far as a node knows, and whom of them it reads in a round.

It knows neither how they are read nor what comes of it.
"""

from __future__ import annotations

import bisect
import random

from gossip.events import ROW
from gossip.final_merge import merge_rounds, merge_topology
from gossip.health import Health
from gossip.neighbor import Neighbors
from gossip.settings import NodeSettings
from topology.links import Links


class Company:
    """The live peers of a run, and the topology among them.

    Args:
        me: our peer id.
        members: peers known to be alive, sorted, us included; may be one object shared by many nodes.
        settings: of the node.
        rng: the node's generator.
        neighbors: what is known of each.
        health: knows whom we leave out.

    Attributes:
        members: peers known to be alive, sorted, us included.
    """

    def __init__(
        self,
        me: str,
        members: tuple[str, ...],
        settings: NodeSettings,
        rng: random.Random,
        neighbors: Neighbors,
        health: Health,
    ) -> None:
        self.members = members
        self._me, self._settings, self._rng = me, settings, rng
        self._neighbors, self._health = neighbors, health
        self.inform()

    def __contains__(self, peer: str) -> bool:
        place = bisect.bisect_left(self.members, peer)
        return place < len(self.members) and self.members[place] == peer

    def join(self, peer: str) -> None:
        """Count a peer among the living."""
        if peer not in self:
            self.members = tuple(sorted((*self.members, peer)))

    def leave(self, peer: str) -> None:
        """Count a peer no longer among the living."""
        self.members = tuple(member for member in self.members if member != peer)

    def inform(self) -> None:
        """Let the topology know all that we and others have announced of our data."""
        announced = self._neighbors.announced(self._me, self._settings.data)
        self._topology = self._settings.topology.knowing(announced)

    @property
    def rounds(self) -> int:
        """All rounds, with those of the final merge as they would be with the present members."""
        merges = self._settings.names.merge != "none"
        return self._settings.rounds + (merge_rounds(len(self._merging)) if merges else 0)

    @property
    def _merging(self) -> tuple[str, ...]:
        """Who takes part in the final merge."""
        roster = self._settings.roster
        return tuple(peer for peer in self.members if peer in roster) if roster else self.members

    def links(self, round: int, *, merging: bool) -> Links:
        """Return our row of W in a round; where it is read as a sum, ``ROW`` stands for all that it reads."""
        topology, members = self._topology, self.members
        if self._settings.masked:
            roster = self._settings.roster
            topology = merge_topology(len(roster)) if merging else topology
            own = topology.links(self._me, roster, round, self._rng).self_weight
            return Links(((ROW, 1.0 - own),), own)
        if merging:
            # Without those we distrust: whoever leaves out the same ones comes to the same adapter.
            members = tuple(peer for peer in self._merging if not self._health.leaves_out(peer, round))
            topology, round = merge_topology(len(members)), round - self._settings.rounds
        elif self._settings.roster:
            return self._links_of_roster(round)
        likeness = self._neighbors.likeness() if topology.sharpness else None
        return topology.links(self._me, members, round, self._rng, likeness)

    def _links_of_roster(self, round: int) -> Links:
        """Return our row of the roster's W; the weight of whoever is away is ours."""
        row = self._topology.links(self._me, self._settings.roster, round, self._rng).read_from
        present = tuple((peer, weight) for peer, weight in row if peer in self)
        return Links(present, 1.0 - sum(weight for _, weight in present))

    def readers(self, round: int) -> int:
        """Return how many read us in a round.

        Raises:
            TopologyError: nobody can know.
        """
        return self._topology.readers(self._me, self._settings.roster or self.members, round)
