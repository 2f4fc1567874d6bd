"""Which connections stay when there are too many, and who is let in at all: a pure decision about peers and addresses.

Members are those whom the shell trusts; all others are newcomers, who share a few slots and little time. Knows
connections as mere keys; has no clock and no socket.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from peer.network.limits import Limits
from peer.network.pace import Pace

PEERS_REMEMBERED_MAX = 1024
"""Peers whose standing is remembered while they are away. Source: ``gossip/membership_limits.py``, PEERS_MAX."""

Connection = TypeVar("Connection", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Arrival:
    peer: str
    place: str
    at: float
    is_incoming: bool


class Admission(Generic[Connection]):
    """The connections of one host, and the standing of peers.

    Args:
        limits: ``connections_max``, ``newcomers_max``, ``newcomer_s``, ``shut_out_s`` and all rates are kept here.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._arrivals: dict[Connection, _Arrival] = {}  # oldest first
        self._members: OrderedDict[str, None] = OrderedDict()
        self._paces: OrderedDict[str, Pace] = OrderedDict()
        self._shut_out: OrderedDict[str, float] = OrderedDict()  # peer id -> until when

    # -- standing

    def trust(self, peer: str) -> None:
        """Take a peer for a member."""
        _remember(self._members, peer, None)
        self.pace(peer).use(is_member=True)

    def distrust(self, peer: str) -> None:
        """Take it for one no more."""
        self._members.pop(peer, None)
        self.pace(peer).use(is_member=False)

    def is_member(self, peer: str) -> bool:
        """Whether a peer is trusted."""
        return peer in self._members

    def pace(self, peer: str) -> Pace:
        """Return what a peer may do; reconnecting does not begin it anew."""
        pace = self._paces.get(peer)
        if pace is None:
            pace = Pace(self._limits)
            pace.use(is_member=self.is_member(peer))
        _remember(self._paces, peer, pace)
        return pace

    def shut_out(self, peer: str, now: float) -> None:
        """Let a peer not in for a while."""
        _remember(self._shut_out, peer, now + self._limits.shut_out_s)

    # -- connections

    def has_room(self) -> bool:
        """Whether another connection may stay, if need be in the place of a newcomer's."""
        return len(self._arrivals) - len(self._newcomers()) < self._limits.connections_max

    def arrived(
        self, connection: Connection, peer: str, ip: str, now: float, *, is_incoming: bool
    ) -> list[tuple[Connection, str]]:
        """Take note of a new connection; return which to end, with the reason. It may be one of them."""
        if self._shut_out.get(peer, now) > now:
            return [(connection, "shut out for a while")]
        self._arrivals[connection] = _Arrival(peer, place_of(ip), now, is_incoming)
        newcomers = self._newcomers()
        if len(newcomers) > self._limits.newcomers_max:
            return [(_oldest_of_greediest(newcomers), "too many newcomers")]
        if len(self._arrivals) > self._limits.connections_max:
            going = _oldest_of_greediest(newcomers) if newcomers else connection
            return [(going, "no room for another connection")]
        return []

    def ended(self, connection: Connection) -> None:
        """Take note that a connection has ended."""
        self._arrivals.pop(connection, None)

    def overdue(self, now: float) -> list[Connection]:
        """Return connections of peers that should have become members by now, in either direction."""
        return [
            connection
            for connection, arrival in self._arrivals.items()
            if now - arrival.at >= self._limits.newcomer_s and not self.is_member(arrival.peer)
        ]

    def _newcomers(self) -> dict[Connection, str]:
        """Return the place of each connection that others opened and that is not a member's, oldest first."""
        return {
            connection: arrival.place
            for connection, arrival in self._arrivals.items()
            if arrival.is_incoming and not self.is_member(arrival.peer)
        }


def place_of(ip: str) -> str:
    """Return what counts as one address: of IPv6, a whole /64, for whoever has one address of it has all of them."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv4Address):
        return ip
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _oldest_of_greediest(places: dict[Connection, str]) -> Connection:
    greediest, _ = Counter(places.values()).most_common(1)[0]
    return next(connection for connection, place in places.items() if place == greediest)


def _remember(table: OrderedDict[str, Value], peer: str, value: Value) -> None:
    table[peer] = value
    table.move_to_end(peer)
    if len(table) > PEERS_REMEMBERED_MAX:
        table.popitem(last=False)
