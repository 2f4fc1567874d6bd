"""Which peers are connected over libp2p, and how many connections and handshakes there may be.

The library's own limits are off (``libp2p_host.py``): they take peers behind one address for one, and count
connections that have ended. Ours are decided elsewhere (``admission.py``, ``handshakes.py``) and carried out here.
Knows peers and connections; nothing of addresses that are dialed, of streams or protocols.
"""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IMuxedConn, INetConn, IRawConnection
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr

from peer.network.admission import Admission
from peer.network.handshakes import Handshake, Handshakes
from peer.network.libp2p_adapters import MuxedConnection
from peer.network.limits import Limits
from peer.network.muxed_stream import Credit, StreamBroken
from peer.network.pace import Pace
from peer.network.transport import ConnectionChanged

log = logging.getLogger(__name__)

_LEAVE_S = 1.0  # what the library gets to take note of our connections' end (guess)
_SWEEP_S = 1.0  # how often newcomers' time is looked at (guess)

Upgrade = Callable[[IRawConnection, Multiaddr], Awaitable[IMuxedConn]]
"""The library's handshake of an incoming connection."""


class Connections:
    """All connections of one host; tells who comes and goes.

    Args:
        limits: what to keep to.
        on_connection: told once per peer that comes or goes, however many connections there are to it.
    """

    def __init__(self, limits: Limits, on_connection: ConnectionChanged) -> None:
        self.on_member: ConnectionChanged = lambda peer, present: None
        """Told when a connected peer becomes a member, a member connects, or is no longer both."""
        self.refused: Counter[str] = Counter()
        """How often connections were not let in or ended, and peers broke a rule or flooded us, by reason."""
        self._limits = limits
        self._on_connection = on_connection
        self._by_peer: dict[str, list[MuxedConnection]] = {}  # oldest first
        self._admission: Admission[MuxedConnection] = Admission(limits)
        self._handshakes = Handshakes(limits)
        self._credit = Credit(limits.windows_bytes)
        self._registered: set[INetConn] = set()  # those the library knows of
        self._all_gone = trio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Give handshakes their turn and end connections whose time is over, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._handshakes.run)
            while True:
                await trio.sleep(_SWEEP_S)
                for connection in self._admission.overdue(trio.current_time()):
                    self._end(connection, "no member in time")

    # -- who is there

    def is_connected(self, peer: str) -> bool:
        """Whether a connection is open as far as we know."""
        return peer in self._by_peer

    def is_full(self) -> bool:
        """Whether there is no room for another connection."""
        return not self._admission.has_room()

    def is_member(self, peer: str) -> bool:
        """Whether a peer is trusted."""
        return self._admission.is_member(peer)

    def pace(self, peer: str) -> Pace:
        """Return what a peer may do."""
        return self._admission.pace(peer)

    def trust(self, peer: str) -> None:
        """Take a peer for a member."""
        was_member = self.is_member(peer)
        self._admission.trust(peer)
        if not was_member and self.is_connected(peer):
            self.on_member(peer, True)

    def distrust(self, peer: str) -> None:
        """Take a peer for a member no more."""
        was_member = self.is_member(peer)
        self._admission.distrust(peer)
        if was_member and self.is_connected(peer):
            self.on_member(peer, False)

    def broke_a_rule(self, peer: str, reason: str) -> None:
        """Count a fault of a peer; too many of them, and it is shut out for a while."""
        self.refused[reason] += 1
        if self.pace(peer).fault(trio.current_time()):
            self._shut_out(peer, f"broke the rules too often: {reason}")

    def _shut_out(self, peer: str, reason: str) -> None:
        log.info("%s is shut out: %s", peer, reason)
        self._admission.shut_out(peer, trio.current_time())
        self.abort(peer, reason)

    def newest(self, peer: str) -> MuxedConnection:
        """Return the latest connection to a peer.

        Raises:
            StreamBroken: there is none any more; a peer may hang up at any moment.
        """
        if peer not in self._by_peer:
            raise StreamBroken(f"{peer} hung up")
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
        credit = Credit(self._limits.windows_per_connection_bytes, self._credit)
        pace = self.pace(str(peer_id))
        return MuxedConnection(secured, peer_id, self._limits.stall_s, credit, pace, self._on_ended)

    async def serve(self, upgrade: Upgrade, incoming: ReadWriteCloser, listened: Multiaddr) -> None:
        """Take an incoming connection and stay until it ends; instead of the library, which would do much before."""
        raw = RawConnection(incoming, False)
        try:
            await self._accept(upgrade, raw, listened)
        except Exception as error:  # noqa: BLE001 - a handshake that failed, for whatever the other side did
            self.refused["the handshake failed"] += 1
            log.debug("incoming connection: %r", error)
        finally:
            with trio.CancelScope(shield=True):
                await raw.close()

    async def _accept(self, upgrade: Upgrade, raw: RawConnection, listened: Multiaddr) -> None:
        socket = _socket_of(raw)
        if self._stopping:
            return
        if self.is_full() or socket.fileno() >= self._descriptors_max():
            self.refused["no room for another connection"] += 1
            return
        remote = raw.get_remote_address()
        handshake = self._handshakes.begin(remote[0] if remote else "")
        connection = None
        try:
            with handshake.scope:
                connection = await self._upgraded(handshake, socket, upgrade, raw, listened)
        finally:
            self._handshakes.end(handshake)
        if connection is None:  # silent, or dropped in favor of others
            self.refused["no handshake in time"] += 1
            return
        session = muxed(connection).session
        await session.ended.wait()
        if session.is_flood and remote:
            self._handshakes.punish(remote[0])

    async def _upgraded(
        self,
        handshake: Handshake,
        socket: trio.socket.SocketType,
        upgrade: Upgrade,
        raw: IRawConnection,
        listened: Multiaddr,
    ) -> IMuxedConn | None:
        with trio.move_on_after(self._limits.handshake_s) as silence:
            await trio.lowlevel.wait_readable(
                socket.fileno()
            )  # the dialer speaks first: who is silent costs no turn
        if silence.cancelled_caught:
            return None
        await self._handshakes.ask(handshake)
        return await upgrade(raw, listened)

    def _descriptors_max(self) -> int:
        """Return the first file descriptor that incoming connections leave for others; the system gives the lowest."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return allowed - min(self._limits.descriptors_reserve, allowed // 2)

    def on_registered(self, conn: INetConn) -> None:
        """Take note that the library has taken a connection up."""
        connection = muxed(conn.muxed_conn)
        if connection.session.ended.is_set():
            # It hung up while it was taken up: the library has let it go already, and would now keep it for ever.
            assert isinstance(conn, SwarmConn)
            conn.swarm.remove_conn(conn)
            return
        self._registered.add(conn)
        if self._stopping:
            connection.session.abort("we are leaving")
            return
        peer, remote = str(connection.peer_id), connection.get_remote_address()
        going = self._admission.arrived(
            connection,
            peer,
            remote[0] if remote else "",
            trio.current_time(),
            is_incoming=not connection.is_initiator,
        )
        for other, reason in going:
            self._end(other, reason)
        if connection.session.ended.is_set():
            return
        connections = self._by_peer.setdefault(peer, [])
        connections.append(connection)
        if len(connections) == 1:
            self._tell(peer, True)
        elif len(connections) > self._limits.connections_per_peer_max:
            self._end(connections[0], "too many connections of one peer: the oldest goes")

    def _end(self, connection: MuxedConnection, reason: str) -> None:
        self.refused[reason] += 1
        connection.session.abort(reason)

    def on_unregistered(self, conn: INetConn) -> None:
        """Take note that the library has let a connection go."""
        self._registered.discard(conn)
        if not self._registered and self._stopping:
            self._all_gone.set()

    def _on_ended(self, connection: MuxedConnection) -> None:
        peer = str(connection.peer_id)
        self._admission.ended(connection)
        connections = self._by_peer.get(peer, [])
        if connection in connections:
            connections.remove(connection)
            if not connections:
                del self._by_peer[peer]
                self._tell(peer, False)
        if connection.session.is_flood:
            self.refused["flood"] += 1
            self._shut_out(peer, connection.session.reason)

    def _tell(self, peer: str, connected: bool) -> None:
        try:
            if self.is_member(peer):
                self.on_member(peer, connected)
            self._on_connection(peer, connected)
        except Exception:
            log.exception("on_connection raised")  # our own bug, yet no reason to cut the others off


def muxed(connection: IMuxedConn) -> MuxedConnection:
    """Return a connection of the library's as ours, which it is: ``Connections.make`` makes all of them."""
    assert isinstance(connection, MuxedConnection)
    return connection


def _socket_of(raw: RawConnection) -> trio.socket.SocketType:
    """Return the socket of a connection that came in over TCP, which is all that we listen on."""
    tcp = raw.stream
    assert isinstance(tcp, TrioTCPStream)
    return tcp.stream.socket
