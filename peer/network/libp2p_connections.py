"""Which peers are connected over libp2p, and how many connections and handshakes there may be.

The library's own limits are off (``libp2p_host.py``): they take peers behind one address for one, and count
connections that have ended. Knows peers and connections; nothing of addresses that are dialed, of streams or protocols.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from libp2p.abc import IMuxedConn, INetConn, IRawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr

from peer.network.libp2p_adapters import MuxedConnection
from peer.network.muxed_stream import Credit
from peer.network.transport import ConnectionChanged, Limits

log = logging.getLogger(__name__)

HANDSHAKES_MAX = 64
"""Incoming handshakes under way; above it the oldest of the greediest address goes. Source: guess."""
CONNECTIONS_PER_PEER = 4
"""Two after simultaneous dials, more only while a dead one lingers. Source: guess."""
WINDOW_BYTES_PER_CONNECTION = 64 << 20
"""Bulk receive window granted at once: four streams' worth. Source: guess."""
WINDOW_BYTES = 256 << 20
"""The same for the whole host. Source: guess."""
_LEAVE_S = 1.0  # what the library gets to take note of our connections' end (guess)

Upgrade = Callable[[IRawConnection, Multiaddr], Awaitable[IMuxedConn]]
"""The library's handshake of an incoming connection."""


class Connections:
    """All connections of one host; tells who comes and goes.

    Args:
        limits: ``connections_max`` and ``stall_s`` are kept here.
        on_connection: told once per peer that comes or goes, however many connections there are to it.
    """

    def __init__(self, limits: Limits, on_connection: ConnectionChanged) -> None:
        self._limits = limits
        self._on_connection = on_connection
        self._by_peer: dict[str, list[MuxedConnection]] = {}  # oldest first
        self._credit = Credit(WINDOW_BYTES)
        self._handshakes = Handshakes(HANDSHAKES_MAX)
        self._registered: set[INetConn] = set()  # those the library knows of
        self._all_gone = trio.Event()
        self._stopping = False

    def is_connected(self, peer: str) -> bool:
        """Whether a connection is open as far as we know."""
        return peer in self._by_peer

    def is_full(self) -> bool:
        """Whether there is no room for another connection."""
        return sum(map(len, self._by_peer.values())) >= self._limits.connections_max

    def newest(self, peer: str) -> MuxedConnection:
        """Return the latest connection to a peer that is connected."""
        return self._by_peer[peer][-1]

    def abort(self, peer: str, reason: str) -> None:
        """End all connections to a peer at once."""
        for connection in list(self._by_peer.get(peer, ())):
            connection.session.abort(reason)

    async def end_all(self) -> None:
        """End all connections, take no more, and give the library a moment to take note."""
        with trio.CancelScope(shield=True), trio.move_on_after(_LEAVE_S):
            self._stopping = True
            for peer in list(self._by_peer):
                self.abort(peer, "we are leaving")
            if self._registered:
                await self._all_gone.wait()

    # -- what the library calls -----------------------------------------------------------------------------------

    def make(self, secured: SecureSession, peer_id: ID) -> MuxedConnection:
        """Make a connection, in either direction, of what the handshake has set up."""
        credit = Credit(WINDOW_BYTES_PER_CONNECTION, self._credit)
        return MuxedConnection(secured, peer_id, self._limits.stall_s, credit, self._on_ended)

    async def accept(self, upgrade: Upgrade, raw: IRawConnection, listened: Multiaddr) -> NoReturn:
        """Upgrade an incoming connection and stay until it ends: the library counts us as one of its connections.

        Raises:
            SwarmException: always; it frees the library's slot, which it otherwise holds until the host ends.
        """
        if self.is_full() or self._stopping:
            await raw.close()
            raise SwarmException("no room for another connection")
        remote = raw.get_remote_address()
        scope = self._handshakes.begin(remote[0] if remote else "")
        try:
            with scope:
                connection = await upgrade(raw, listened)
        finally:
            self._handshakes.end(scope)
        if scope.cancelled_caught:
            await raw.close()
            raise SwarmException("handshake dropped in favor of others")
        await muxed(connection).session.ended.wait()
        raise SwarmException("connection ended")

    def on_registered(self, conn: INetConn) -> None:
        """Take note that the library has taken a connection up."""
        self._registered.add(conn)
        connection = muxed(conn.muxed_conn)
        if connection.session.ended.is_set():
            return
        if self._stopping:
            connection.session.abort("we are leaving")
            return
        peer = str(connection.peer_id)
        connections = self._by_peer.setdefault(peer, [])
        connections.append(connection)
        if len(connections) == 1:
            self._tell(peer, True)
        elif len(connections) > CONNECTIONS_PER_PEER:
            connections[0].session.abort("too many connections of one peer: the oldest goes")

    def on_unregistered(self, conn: INetConn) -> None:
        """Take note that the library has let a connection go."""
        self._registered.discard(conn)
        if not self._registered and self._stopping:
            self._all_gone.set()

    def _on_ended(self, connection: MuxedConnection) -> None:
        peer = str(connection.peer_id)
        connections = self._by_peer.get(peer, [])
        if connection in connections:
            connections.remove(connection)
            if not connections:
                del self._by_peer[peer]
                self._tell(peer, False)

    def _tell(self, peer: str, connected: bool) -> None:
        try:
            self._on_connection(peer, connected)
        except Exception:
            log.exception("on_connection raised")  # our own bug, yet no reason to cut the others off


def muxed(connection: IMuxedConn) -> MuxedConnection:
    """Return a connection of the library's as ours, which it is: ``Connections.make`` makes all of them."""
    assert isinstance(connection, MuxedConnection)
    return connection


class Handshakes:
    """Incoming handshakes under way. When there are too many, the oldest of the greediest address has to go (T10).

    An honest handshake takes milliseconds, so what has waited longest is most likely a silent socket.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._scopes: dict[trio.CancelScope, str] = {}  # scope -> IP of the remote, oldest first

    def begin(self, ip: str) -> trio.CancelScope:
        """Return the scope for one more handshake; pass it to ``end`` afterwards."""
        if len(self._scopes) >= self._count_max:
            greediest, _ = Counter(self._scopes.values()).most_common(1)[0]
            oldest = next(scope for scope, owner in self._scopes.items() if owner == greediest)
            oldest.cancel()
            del self._scopes[oldest]
        scope = trio.CancelScope()
        self._scopes[scope] = ip
        return scope

    def end(self, scope: trio.CancelScope) -> None:
        """Forget a handshake that is over."""
        self._scopes.pop(scope, None)
