"""A libp2p host that speaks TCP, Noise and yamux, nothing else: the only caller of ``new_host``.

It takes from the library the handshake, the protocol negotiation and identify; it brings its own multiplexer
(``yamux.py``), its own limits and its own dialing, because the library's stop serving after a fixed number of
connections, remember failed peers for a minute and let one raising handler end the host. Uses what the library does
not promise to keep (pinned: ``libp2p==0.8.1``).
"""

from __future__ import annotations

import logging
from functools import partial, wraps
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetConn, IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH_ID
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.patterns import IPattern, PatternXX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service.api import AsyncFn
from multiaddr import Multiaddr

from peer.network.group import NOT_LISTED, Group
from peer.network.libp2p_adapters import ConnectionNotifee, Upgrader
from peer.network.libp2p_connections import Connections, muxed
from peer.network.libp2p_serving import StreamServer
from peer.network.limits import Limits

log = logging.getLogger(__name__)


def make_host(
    private_key: bytes, group: Group, listen: str, limits: Limits, connections: Connections
) -> IHost:
    """Return a host that is not running yet, whose connections and streams are ours.

    Args:
        private_key: who it is, 32 raw Ed25519 bytes.
        group: who may connect, in either direction.
        listen: where it will listen.
        limits: what to keep to.
        connections: where its connections are made and kept.
    """
    _keep_quiet()
    keys = create_new_key_pair(private_key)
    noise = GroupNoise(keys, create_x25519_key_pair().private_key, group)
    # The library counts handshakes too; the limit that counts is in Connections.accept.
    connections_max = limits.connections_max + limits.handshakes_max
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE_ID: noise},  # the default also offers plaintext to whoever asks (libp2p.md T12)
        muxer_opt={TProtocol(YAMUX_ID): Yamux},
        listen_addrs=[Multiaddr(listen)],
        connection_config=ConnectionConfig(
            max_connections=connections_max,
            high_watermark=connections_max,
            low_watermark=0,
            min_connections=0,
            max_connections_per_peer=limits.connections_per_peer_max,
            inbound_upgrade_timeout=limits.handshake_s,
            outbound_upgrade_timeout=limits.dial_s,
        ),
    )
    # It would ask everybody who connects for all sorts of things, and remember the answers for ever.
    assert isinstance(host, BasicHost), "what new_host makes"
    host._schedule_identify = _identify_nobody  # type: ignore[method-assign] # no option for it
    host.remove_stream_handler(IDENTIFY_PUSH_ID)
    _adapt(swarm_of(host), noise, limits, connections)
    return host


class GroupNoise(NoiseTransport):
    """Noise that only members of a group complete: the group's key is the prologue of the handshake (Noise, 6).

    Both sides mix it into the hash that authenticates every later message, so that the first encrypted message of
    either side fails at whoever has another key. A stranger learns our peer id, which it had to know to dial us. Who
    has the key but is not on our list is let go as soon as its id is proven, before any protocol is offered.
    """

    def __init__(self, keys: KeyPair, noise_key: PrivateKey, group: Group) -> None:
        super().__init__(keys, noise_privkey=noise_key)
        self._group = group

    def get_pattern(self) -> IPattern:
        """Return the handshake of one connection."""
        return PatternXX(self.local_peer, self.libp2p_privkey, self.noise_privkey, prologue=self._group.key)

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Complete the handshake of somebody who dialed us, if it may connect."""
        return self._admitted(await super().secure_inbound(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Complete the handshake with somebody whom we dialed, if it may connect."""
        return self._admitted(await super().secure_outbound(conn, peer_id))

    def _admitted(self, conn: ISecureConn) -> ISecureConn:
        peer = str(conn.get_remote_peer())
        if not self._group.admits(peer):
            log.info("%s has the group's key and is not on our list", peer)
            raise HandshakeFailure(f"{peer} {NOT_LISTED}")  # the library closes the socket
        return conn


def swarm_of(host: IHost) -> Swarm:
    """Return the part of a host that holds its connections."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm), "what new_host makes"
    return swarm


def contain(swarm: Swarm) -> None:
    """Let no exception out of a task of a running swarm: each ends the connection that it belongs to, and no more (T1).

    The library starts a task for every connection, in which it also serves all of its streams; an exception there would
    end the host.
    """
    run_task = swarm.manager.run_task

    def run_contained(task: AsyncFn, *args: Any, **options: Any) -> None:
        @wraps(task)
        async def contained(*args: Any) -> None:
            try:
                await task(*args)
            except Exception as error:
                log.warning("a task of a connection failed", exc_info=error)
                owner = getattr(task, "__self__", None)
                if isinstance(owner, INetConn):
                    muxed(owner.muxed_conn).session.abort(f"serving it failed: {error!r}")

        run_task(contained, *args, **options)

    swarm.manager.run_task = run_contained  # type: ignore[method-assign, assignment] # the library has no seam here


def _forget(peer_id: ID) -> None:
    pass


def _identify_nobody(peer_id: ID, *, reason: str) -> None:
    pass


def _adapt(swarm: Swarm, noise: NoiseTransport, limits: Limits, connections: Connections) -> None:
    # It takes peers behind one address for one; our own limits are in Connections.
    swarm.set_resource_manager(None)
    swarm.retry_config = RetryConfig(max_retries=0)  # who dials decides about trying again
    swarm.upgrader = Upgrader({NOISE_ID: noise}, connections.make)
    # It dials whom it has heard of even with all watermarks at 0 (T11), also those whom we dropped.
    swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint  # type: ignore[method-assign] # no option for it
    swarm.auto_connector.record_disconnect = _forget  # type: ignore[method-assign] # it remembers all for ever
    serve = partial(connections.serve, swarm.upgrade_inbound_raw_conn)
    swarm._handle_inbound_connection = serve  # type: ignore[method-assign] # the library has no seam here
    served = StreamServer(limits, connections.is_member, swarm.common_stream_handler)
    swarm.set_stream_handler(served.serve)
    swarm.register_notifee(ConnectionNotifee(connections.on_registered, connections.on_unregistered))


def _keep_quiet() -> None:
    """Silence the library, which logs errors of strangers as ours, and formats debug lines for every frame."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.CRITICAL)  # sets its own level
