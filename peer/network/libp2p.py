"""The real network: a libp2p host (TCP, Noise, yamux, nothing else) behind the seam of ``transport.py``.

The only file that imports libp2p, and the only caller of ``new_host``. It takes from the library the handshake, the
protocol negotiation, identify and GossipSub; it brings its own multiplexer (``yamux.py``), its own limits and its own
dialing, because the library's stop serving after a fixed number of connections, remember failed peers for a minute
and let one raising handler end the host. It knows bytes, peers and addresses; nothing of adapters, rounds or runs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio
from libp2p import new_host
from libp2p.abc import INetConn, INetStream, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from gossip.errors import LocalError
from peer.network.addresses import (
    WILDCARDS,
    interface_ips,
    listen_endpoint,
    peer_of,
    require_free_port,
    resolved,
    with_peer,
)
from peer.network.libp2p_adapters import (
    ConnectionNotifee,
    Handshakes,
    MuxedConnection,
    Presence,
    Router,
    Upgrader,
    explain_dial,
)
from peer.network.muxed_stream import Credit, MuxedStream, StreamBroken
from peer.network.protocol_stream import ProtocolStream, negotiate
from peer.network.transport import (
    Announced,
    ConnectionChanged,
    Handler,
    Stream,
    TransportFactory,
    Unreachable,
)

log = logging.getLogger(__name__)

FRAME_BYTES_MAX = 16 * 1024
END_S = 2.0  # the seam's promise for close, reset and drop
LEAVE_S = 4.0  # the library's own ending is cut off here
HANDSHAKE_S = 3.0  # silent sockets are dropped after it (ux-reliability B7)
PENDING_MAX = 64  # handshakes under way; above it the oldest of the greediest address goes (guess)
CONNECTIONS_PER_PEER = 4  # two after simultaneous dials, more only while a dead one lingers (guess)
SYSTEM_STREAMS = 4  # GossipSub and identify, beside the streams that we serve
WINDOW_BYTES_PER_CONNECTION = 64 << 20  # of bulk receive window granted at once: four streams' worth (guess)
WINDOW_BYTES = 256 << 20  # the same for the whole host (guess)


def peer_id_of(private_key: bytes) -> str:
    """Return the peer id (base58) of 32 raw Ed25519 private key bytes."""
    return str(ID.from_pubkey(create_new_key_pair(private_key).public_key))


@dataclass(frozen=True, slots=True)
class _Options:
    private_key: bytes
    listen: str
    announce: tuple[str, ...]
    stall_s: float
    dial_s: float
    open_s: float
    connections_max: int
    streams_per_peer_max: int
    streams_max: int


def libp2p_transport(
    *,
    private_key: bytes,
    listen: str = "/ip4/0.0.0.0/tcp/0",
    announce: tuple[str, ...] = (),
    stall_s: float = 30.0,
    dial_s: float = 15.0,
    open_s: float = 15.0,
    connections_max: int = 64,
    streams_per_peer_max: int = 16,
    streams_max: int = 256,
) -> TransportFactory:
    """Return a factory of libp2p transports with this identity.

    Args:
        private_key: 32 raw Ed25519 bytes.
        listen: multiaddr ``/ip4|ip6/<address>/tcp/<port>``; port 0 lets the system choose.
        announce: addresses to tell others instead of the ones we listen on (behind a router).
        stall_s: seconds without any progress after which a connection is closed (guess).
        dial_s: time limit of a dial in seconds (libp2p.md T7).
        open_s: time limit of opening a stream in seconds, redial included (libp2p.md T7).
        connections_max: connections in all, both directions (ux-reliability B7).
        streams_per_peer_max: streams of one peer that are served at the same time; more are reset (guess).
        streams_max: the same over all peers (guess).

    Raises:
        LocalError: ``listen`` or ``announce`` is malformed.
    """
    # The library logs errors of strangers as ours, and formats debug lines for every frame.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.CRITICAL)  # sets its own level
    limits = (stall_s, dial_s, open_s, connections_max, streams_per_peer_max, streams_max)
    options = _Options(private_key, listen, announce, *limits)
    listen_endpoint(listen)
    for address in announce:
        with_peer(address, peer_id_of(private_key))

    def factory(
        *,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> AbstractAsyncContextManager[Libp2pTransport]:
        return _running(options, handlers, topic, on_announced, on_connection)

    return factory


@asynccontextmanager
async def _running(
    options: _Options,
    handlers: Mapping[str, Handler],
    topic: str,
    on_announced: Announced,
    on_connection: ConnectionChanged,
) -> AsyncIterator[Libp2pTransport]:
    require_free_port(options.listen)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            transport = Libp2pTransport(options, on_connection, nursery)
            async with AsyncExitStack() as stack:
                try:
                    await transport.start(stack, handlers, topic, on_announced)
                    yield transport
                except Exception as error:  # noqa: BLE001 - raised again below, without the library's groups round it
                    failure = error
                finally:
                    await transport.stop()
                    nursery.cancel_scope.deadline = trio.current_time() + LEAVE_S
            nursery.cancel_scope.cancel()
    except* Exception as group:
        if failure is None:
            failure = LocalError(f"the network host failed: {group.exceptions[0]!r}")
            failure.__cause__ = group
        else:
            log.info("the network host failed while ending", exc_info=group)
    if failure is not None:
        raise failure


class _Dial:
    """One attempt to dial a peer, shared by all who want it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.done = trio.Event()
        self.error = ""  # what to tell the user; empty if it succeeded


class Libp2pTransport:
    """A libp2p host with one identity; see ``transport.Transport`` for the contract of the public methods."""

    def __init__(self, options: _Options, on_connection: ConnectionChanged, nursery: trio.Nursery) -> None:
        self._options = options
        self._on_connection = on_connection
        self._nursery = nursery
        self._credit = Credit(WINDOW_BYTES)
        self._connections: dict[str, list[MuxedConnection]] = {}
        self._known: dict[str, list[str]] = {}  # peer -> addresses that dialed well, best first
        self._dials: dict[str, _Dial] = {}
        self._handshakes = Handshakes(PENDING_MAX)
        self._served: Counter[str] = Counter()
        self._registered: set[INetConn] = set()
        self._all_gone = trio.Event()
        self._addresses: tuple[str, ...] = ()
        self._stopping = False
        keys = create_new_key_pair(options.private_key)
        self._peer_id = str(ID.from_pubkey(keys.public_key))
        noise = NoiseTransport(keys, noise_privkey=create_x25519_key_pair().private_key)
        most = options.connections_max + PENDING_MAX  # the library counts handshakes too; ours is in _accept
        self._host = new_host(
            key_pair=keys,
            sec_opt={NOISE_ID: noise},  # the default also offers plaintext to whoever asks (libp2p.md T12)
            muxer_opt={TProtocol(YAMUX_ID): Yamux},
            listen_addrs=[Multiaddr(options.listen)],
            connection_config=ConnectionConfig(
                max_connections=most,
                high_watermark=most,
                low_watermark=0,
                min_connections=0,
                max_connections_per_peer=CONNECTIONS_PER_PEER,
                inbound_upgrade_timeout=HANDSHAKE_S,
                outbound_upgrade_timeout=options.dial_s,
            ),
        )
        self._swarm = self._host.get_network()
        self._adapt_swarm(noise)

    def _adapt_swarm(self, noise: NoiseTransport) -> None:
        swarm = self._swarm
        swarm.set_resource_manager(None)  # takes peers behind one address for one; our own limits are below
        swarm.retry_config = RetryConfig(max_retries=0)  # who dials decides about trying again
        swarm.upgrader = Upgrader({NOISE_ID: noise}, self._make_connection)
        # It dials whom it has heard of even with all watermarks at 0 (T11), also those whom we dropped.
        swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint
        self._library_accept = swarm.upgrade_inbound_raw_conn
        swarm.upgrade_inbound_raw_conn = self._accept
        self._library_serve = swarm.common_stream_handler
        swarm.set_stream_handler(self._serve_any)
        swarm.register_notifee(ConnectionNotifee(self._on_registered, self._on_unregistered))

    async def start(
        self, stack: AsyncExitStack, handlers: Mapping[str, Handler], topic: str, on_announced: Announced
    ) -> None:
        """Listen, join the topic and serve; everything is undone by ``stack``.

        Raises:
            LocalError: the address cannot be listened on.
        """
        for protocol, handler in handlers.items():
            self._host.set_stream_handler(TProtocol(protocol), self._serving(protocol, handler))
        listen = Multiaddr(self._options.listen)
        await stack.enter_async_context(self._host.run(listen_addrs=[listen]))
        listeners = list(self._swarm.listeners.values())
        if not listeners:
            raise LocalError(f"cannot listen on {self._options.listen}")
        port = int(listeners[0].get_addrs()[0].value_for_protocol("tcp"))
        self._addresses = self._own_addresses(port)
        router = Router()
        self._presence = Presence(self._host, router, topic, FRAME_BYTES_MAX, on_announced)
        await stack.enter_async_context(background_trio_service(router))
        await stack.enter_async_context(background_trio_service(self._presence))
        await self._presence.wait_until_ready()
        await self._presence.subscribe(topic)

    async def stop(self) -> None:
        """Close all connections and give the library a moment to take note."""
        with trio.CancelScope(shield=True), trio.move_on_after(1.0):
            self._stopping = True
            for peer in list(self._connections):
                self._abort(peer, "we are leaving")
            if self._registered:
                await self._all_gone.wait()

    # -- the seam ---------------------------------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        """Our own peer id (base58)."""
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs for others to dial, loopback last."""
        return self._addresses

    def is_connected(self, peer: str) -> bool:
        """Whether a connection is open as far as we know."""
        return peer in self._connections

    async def dial(self, address: str) -> str:
        """Connect; see ``Transport.dial``. Concurrent dials of one peer share one attempt."""
        peer = peer_of(address)
        if peer == self._peer_id:
            raise LocalError(f"{address} is this peer's own address: dial somebody else's")
        while not self.is_connected(peer):
            attempt = self._dials.get(peer)
            if attempt is None:
                attempt = self._dials[peer] = _Dial(address)
                self._nursery.start_soon(self._run_dial, peer, attempt)
            await attempt.done.wait()
            if attempt.error and attempt.address == address and not self.is_connected(peer):
                raise Unreachable(attempt.error)
        self._remember(peer, address)
        await trio.lowlevel.checkpoint()
        return peer

    async def open(self, peer: str, protocol: str) -> Stream:
        """Open a stream, redialing if need be; see ``Transport.open``."""
        try:
            with trio.fail_after(self._options.open_s):
                try:
                    return await self._open_once(peer, protocol)
                except StreamBroken as error:  # a connection that died just now, or was about to: once more
                    log.debug("opening %s to %s again: %s", protocol, peer, error)
                    return await self._open_once(peer, protocol)
        except StreamBroken as error:
            raise Unreachable(
                f"{peer} refused {protocol} (too many streams, or it broke): {error}"
            ) from error
        except trio.TooSlowError:
            raise Unreachable(f"{peer} did not open {protocol} within {self._options.open_s:g} s") from None

    async def announce(self, topic: str, frame: bytes) -> None:
        """Publish to the topic, best effort; see ``Transport.announce``."""
        if len(frame) > FRAME_BYTES_MAX:
            raise LocalError(f"an announcement of {len(frame)} bytes: at most {FRAME_BYTES_MAX}")
        try:
            with trio.move_on_after(END_S):
                await self._presence.publish(topic, frame)
        except Exception as error:  # noqa: BLE001 - announcements are best effort: the network's failures are nobody's
            log.info("announcement not sent: %r", error)

    async def drop(self, peer: str) -> None:
        """Close all connections to ``peer`` now."""
        self._abort(peer, "we dropped the connection")
        await trio.lowlevel.checkpoint()

    async def _open_once(self, peer: str, protocol: str) -> Stream:
        if not self.is_connected(peer):
            await self._redial(peer)
        stream = self._connections[peer][-1].session.open()
        try:
            accepted = await negotiate(stream, protocol)
        except BaseException:
            stream.reset()
            raise
        if not accepted:
            stream.close()
            raise Unreachable(f"{peer} does not speak {protocol}: an older version, or another program")
        return ProtocolStream(peer, stream)

    async def _redial(self, peer: str) -> None:
        failure = Unreachable(f"not connected to {peer}, and no address of it is known")
        for address in list(self._known.get(peer, ())):
            try:
                await self.dial(address)
                return
            except Unreachable as error:
                failure = error
        raise failure

    async def _run_dial(self, peer: str, attempt: _Dial) -> None:
        """Make one attempt in the transport's own nursery, so that an impatient caller does not end it for others."""
        try:
            if sum(map(len, self._connections.values())) >= self._options.connections_max:
                attempt.error = f"we have {self._options.connections_max} connections, no more are allowed"
                return
            with trio.fail_after(self._options.dial_s):
                await self._dial_first(await resolved(attempt.address), ID.from_base58(peer))
            if not self.is_connected(peer):
                attempt.error = f"{attempt.address} closed the connection at once"
        except trio.TooSlowError:
            attempt.error = f"no answer from {attempt.address} within {self._options.dial_s:g} s"
        except Exception as error:
            attempt.error = explain_dial(error, attempt.address, peer)
            log.debug("dial: %s", attempt.error, exc_info=error)
        finally:
            del self._dials[peer]
            attempt.done.set()

    async def _dial_first(self, addresses: list[str], peer_id: ID) -> None:
        for address in addresses[:-1]:
            try:
                await self._swarm.dial_addr(Multiaddr(address), peer_id)
                return
            except SwarmException as error:
                log.debug("dial %s, one of several: %r", address, error)
        await self._swarm.dial_addr(Multiaddr(addresses[-1]), peer_id)

    def _remember(self, peer: str, address: str) -> None:
        known = self._known.setdefault(peer, [])
        if address in known:
            known.remove(address)
        known.insert(0, address)
        del known[4:]  # per peer id (ux-reliability B7)

    # -- connections --------------------------------------------------------------------------------------------

    def _make_connection(self, conn: object, peer_id: ID) -> MuxedConnection:
        credit = Credit(WINDOW_BYTES_PER_CONNECTION, self._credit)
        return MuxedConnection(conn, peer_id, self._options.stall_s, credit, self._on_ended)

    async def _accept(self, raw: IRawConnection, listened: Multiaddr) -> None:
        """Upgrade an incoming connection and stay until it ends: the library counts us as one of its connections."""
        if sum(map(len, self._connections.values())) >= self._options.connections_max or self._stopping:
            await raw.close()
            raise SwarmException("no room for another connection")
        remote = raw.get_remote_address()
        scope = self._handshakes.begin(remote[0] if remote else "")
        try:
            with scope:
                connection = await self._library_accept(raw, listened)
        finally:
            self._handshakes.end(scope)
        if scope.cancelled_caught:
            await raw.close()
            raise SwarmException("handshake dropped in favor of others")
        await connection.session.ended.wait()
        # Frees the library's slot, which it otherwise holds until the host ends.
        raise SwarmException("connection ended")

    def _on_registered(self, conn: INetConn) -> None:
        """Called when the swarm has taken a connection up."""
        self._registered.add(conn)
        connection: MuxedConnection = conn.muxed_conn
        if connection.session.ended.is_set():
            return
        if self._stopping:
            connection.session.abort("we are leaving")
            return
        peer = str(connection.peer_id)
        connections = self._connections.setdefault(peer, [])
        connections.append(connection)
        if len(connections) == 1:
            self._tell(peer, True)
        elif len(connections) > CONNECTIONS_PER_PEER:
            connections[0].session.abort("too many connections of one peer: the oldest goes")

    def _on_unregistered(self, conn: INetConn) -> None:
        """Called when the swarm has let a connection go."""
        self._registered.discard(conn)
        if not self._registered and self._stopping:
            self._all_gone.set()

    def _on_ended(self, connection: MuxedConnection) -> None:
        peer = str(connection.peer_id)
        connections = self._connections.get(peer, [])
        if connection in connections:
            connections.remove(connection)
            if not connections:
                del self._connections[peer]
                self._tell(peer, False)

    def _tell(self, peer: str, connected: bool) -> None:
        try:
            self._on_connection(peer, connected)
        except Exception:
            log.exception("on_connection raised")  # our own bug, yet no reason to cut the others off

    def _abort(self, peer: str, reason: str) -> None:
        for connection in list(self._connections.get(peer, ())):
            connection.session.abort(reason)

    # -- serving ------------------------------------------------------------------------------------------------

    async def _serve_any(self, net_stream: INetStream) -> None:
        """Serve any incoming stream, also the library's own protocols: the one place where exceptions must end (T1)."""
        peer = str(net_stream.muxed_conn.peer_id)
        stream: MuxedStream = net_stream.muxed_stream.stream
        per_peer = self._options.streams_per_peer_max + SYSTEM_STREAMS
        if self._served[peer] >= per_peer or self._served.total() >= self._options.streams_max:
            log.info("refused a stream of %s: too many are being served", peer)
            stream.reset()
            return
        self._served[peer] += 1
        try:
            await self._library_serve(net_stream)
        except Exception as error:  # noqa: BLE001 - a stranger's bytes provoked it, so it ends that stream only
            log.info("stream of %s ended: %r", peer, error)
            stream.reset()
        finally:
            self._served[peer] -= 1
            if not self._served[peer]:
                del self._served[peer]
            stream.close()  # a stream left open would stay in both ends' tables (T9)

    def _serving(self, protocol: str, handler: Handler) -> Callable[[INetStream], Awaitable[None]]:
        async def serve(net_stream: INetStream) -> None:
            stream = ProtocolStream(str(net_stream.muxed_conn.peer_id), net_stream.muxed_stream.stream)
            try:
                await handler(stream)
            except Exception as error:
                known = isinstance(error, Unreachable)
                log.info(
                    "%s of %s ended: %r", protocol, stream.peer, error, exc_info=None if known else error
                )
                await stream.reset()

        return serve

    def _own_addresses(self, port: int) -> tuple[str, ...]:
        if self._options.announce:
            return tuple(with_peer(address, self._peer_id) for address in self._options.announce)
        family, ip, _ = listen_endpoint(self._options.listen)
        ips = interface_ips(family) if ip in WILDCARDS else [ip]
        return tuple(f"/{family}/{each}/tcp/{port}/p2p/{self._peer_id}" for each in ips)
