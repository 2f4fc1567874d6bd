"""How the nodes of a simulation come to know who is up: an oracle tells them, or their memberships find out.

The second is ``simulated_membership.py``. It knows nothing of rounds and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gossip.events import Event, PeerDown, PeerUp, RoundReport, Start
from gossip.membership import Membership
from gossip.simulated_network import SimulatedNetwork
from gossip.simulated_pulls import SimulatedHost


class Liveness(Protocol):
    """How nodes come to know who is up: whatever befalls a peer is told to it, and it posts to the nodes."""

    def start(self, peer: str) -> None: ...

    def kill(self, peer: str) -> None: ...

    def leave(self, peer: str) -> None: ...

    def revive(self, peer: str, membership: Membership | None, joins: Sequence[str]) -> None: ...

    def disconnect(self, peer: str, other: str) -> None: ...

    def reconnect(self, peer: str, other: str) -> None: ...

    def reported(self, peer: str, report: RoundReport) -> None: ...

    def penalized(self, peer: str, culprit: str, reason: str) -> None: ...

    def refuses(self, peer: str, other: str) -> bool: ...


class Oracle:
    """Knows who is up, and tells all nodes of it a little later."""

    def __init__(
        self,
        network: SimulatedNetwork,
        hosts: Mapping[str, SimulatedHost],
        post: Callable[[str, Event, float], None],
    ) -> None:
        self._network = network
        self._hosts = hosts
        self._post = post

    def start(self, peer: str) -> None:
        self._post(peer, Start(), 0.0)

    def kill(self, peer: str) -> None:
        for other in self._hosts:
            if other != peer:
                self._post(other, PeerDown(peer), self._network.links.down_notice_s)

    def leave(self, peer: str) -> None:
        for other in self._hosts:
            if other != peer:
                self._post(other, PeerDown(peer), self._network.delay_s())

    def revive(self, peer: str, membership: Membership | None, joins: Sequence[str]) -> None:
        round, life = self._hosts[peer].node.round, self._hosts[peer].life
        for other, other_host in self._hosts.items():
            if other == peer or not other_host.alive:
                continue
            if not self._network.is_cut(peer, other):
                self._post(peer, PeerUp(other, other_host.node.round), 0.0)
            if not self._network.is_cut(other, peer):
                self._post(other, PeerUp(peer, round, incarnation=life), self._network.delay_s())
        self._post(peer, Start(), 0.0)

    def disconnect(self, peer: str, other: str) -> None:
        self._post(peer, PeerDown(other), self._network.links.down_notice_s)

    def reconnect(self, peer: str, other: str) -> None:
        if self._hosts[other].alive and not self._network.is_cut(peer, other):
            self._post(peer, PeerUp(other, self._hosts[other].node.round), self._network.delay_s())

    def reported(self, peer: str, report: RoundReport) -> None:
        pass  # it sees everything anyway

    def penalized(self, peer: str, culprit: str, reason: str) -> None:
        pass  # it cuts nobody off

    def refuses(self, peer: str, other: str) -> bool:
        return False
