"""The real network: libp2p over TCP behind the seam of ``transport.py``.

Puts together the host, its connections, dialing and announcements, each of which has a file of its own. It knows bytes,
peers and addresses; nothing of adapters, rounds or runs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from gossip.errors import LocalError
from peer.network.addresses import listen_endpoint, reachable_addresses, require_free_port
from peer.network.dialing import ConnectFailed, Dialer
from peer.network.group import OPEN_GROUP, Group
from peer.network.identity import peer_id
from peer.network.libp2p_announcements import PROTOCOL as ANNOUNCEMENTS
from peer.network.libp2p_announcements import Announcements
from peer.network.libp2p_connections import Connections
from peer.network.libp2p_host import contain, make_host, swarm_of
from peer.network.libp2p_probe import shake_hands
from peer.network.libp2p_serving import library_handler
from peer.network.limits import DEFAULT_LIMITS, Limits
from peer.network.muxed_stream import StreamBroken
from peer.network.protocol_stream import ProtocolStream, negotiate
from peer.network.transport import (
    Announced,
    ConnectionChanged,
    Handler,
    Stream,
    Transport,
    TransportFactory,
    Unreachable,
)

log = logging.getLogger(__name__)

LEAVE_S = 4.0
"""The library's own ending is cut off after it. Source: guess."""


@dataclass(frozen=True, slots=True)
class _Options:
    private_key: bytes
    group: Group
    listen: str
    announce: tuple[str, ...]
    limits: Limits


def libp2p_transport(
    *,
    private_key: bytes,
    listen: str,
    group: Group = OPEN_GROUP,
    announce: tuple[str, ...] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> TransportFactory:
    """Return a factory of libp2p transports with this identity; see ``transport.MakeTransport``.

    Args:
        private_key: 32 raw Ed25519 bytes.
        group: who may connect.
        listen: multiaddr ``/ip4|ip6/<address>/tcp/<port>``; port 0 lets the system choose.
        announce: full addresses to tell others instead of the ones we listen on.
        limits: what to keep to.

    Raises:
        LocalError: ``listen`` is malformed.
    """
    listen_endpoint(listen)
    options = _Options(private_key, group, listen, announce, limits)

    def factory(
        *,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> AbstractAsyncContextManager[Transport]:
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
    """Run a host; raise what the body raises as it is, and the host's own failure as a ``LocalError``."""
    require_free_port(options.listen)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            connections = Connections(options.limits, on_connection)
            async with AsyncExitStack() as stack:
                try:
                    yield await stack.enter_async_context(
                        _listening(options, connections, nursery, handlers, topic, on_announced)
                    )
                except Exception as error:  # noqa: BLE001 - raised again below, without the library's groups round it
                    failure = error
                finally:
                    await connections.end_all()
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


@asynccontextmanager
async def _listening(
    options: _Options,
    connections: Connections,
    nursery: trio.Nursery,
    handlers: Mapping[str, Handler],
    topic: str,
    on_announced: Announced,
) -> AsyncIterator[Libp2pTransport]:
    """Listen, join the topic and serve.

    Raises:
        LocalError: the address cannot be listened on.
    """
    host = make_host(options.private_key, options.group, options.listen, options.limits, connections)
    key = create_new_key_pair(options.private_key).private_key
    name = options.group.name_of(topic)
    announcements = Announcements(key, peer_id(options.private_key), connections, name, on_announced)
    for protocol, handler in {**handlers, ANNOUNCEMENTS: announcements.serve}.items():
        host.set_stream_handler(TProtocol(protocol), library_handler(protocol, handler))
    swarm = swarm_of(host)
    async with host.run(listen_addrs=[Multiaddr(options.listen)]):
        contain(swarm)
        listeners = list(swarm.listeners.values())
        if not listeners:
            raise LocalError(f"cannot listen on {options.listen}")
        port = int(listeners[0].get_addrs()[0].value_for_protocol("tcp"))
        nursery.start_soon(connections.run)
        nursery.start_soon(announcements.run)
        yield Libp2pTransport(options, port, swarm, connections, announcements, nursery)


class Libp2pTransport:
    """One peer on the network; see ``transport.Transport`` for the contract of the public methods.

    Args:
        options: who it is and what it keeps to.
        port: where it listens.
        swarm: the part of the library's host that dials.
        connections: those of the host.
        announcements: the topic that it takes part in.
        nursery: runs dials.
    """

    def __init__(
        self,
        options: _Options,
        port: int,
        swarm: Swarm,
        connections: Connections,
        announcements: Announcements,
        nursery: trio.Nursery,
    ) -> None:
        self._peer_id = peer_id(options.private_key)
        self._addresses = options.announce or reachable_addresses(options.listen, port, self._peer_id)
        self._open_s = options.limits.open_s
        self._group = options.group
        self._swarm = swarm
        self._connections = connections
        self._announcements = announcements
        self._dialer = Dialer(
            self._peer_id,
            options.limits,
            connect=self._connect,
            probe=partial(shake_hands, self._swarm),
            is_connected=connections.is_connected,
            is_full=connections.is_full,
            nursery=nursery,
        )

    @property
    def peer_id(self) -> str:
        """Our own peer id (base58)."""
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Full multiaddrs for others to dial, loopback last."""
        return self._addresses

    @property
    def refused(self) -> Mapping[str, int]:
        """Reason -> how often others were refused for it; see ``Transport.refused``."""
        return self._connections.refused

    def is_connected(self, peer: str) -> bool:
        """Whether a connection is open as far as we know."""
        return self._connections.is_connected(peer)

    async def dial(self, address: str) -> str:
        """Connect; see ``Transport.dial``. Concurrent dials of one peer share one attempt."""
        return await self._dialer.dial(address)

    async def probe(self, address: str) -> str:
        """See who is there, beside any connection; see ``Transport.probe``."""
        return await self._dialer.probe(address)

    async def _connect(self, address: str, peer: str) -> None:
        try:
            await self._swarm.dial_addr(Multiaddr(address), ID.from_base58(peer))
        except SwarmException as error:
            raise ConnectFailed(str(error)) from error

    async def open(self, peer: str, protocol: str) -> Stream:
        """Open a stream, redialing if need be; see ``Transport.open``."""
        try:
            with trio.fail_after(self._open_s):
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
            raise Unreachable(f"{peer} did not open {protocol} within {self._open_s:g} s") from None

    async def _open_once(self, peer: str, protocol: str) -> Stream:
        if not self.is_connected(peer):
            await self._dialer.redial(peer)
        stream = self._connections.newest(peer).session.open()
        try:
            accepted = await negotiate(stream, protocol)
        except BaseException:
            stream.reset()
            raise
        if not accepted:
            stream.close()
            raise Unreachable(f"{peer} does not speak {protocol}: an older version, or another program")
        return ProtocolStream(peer, stream)

    async def announce(self, topic: str, frame: bytes) -> None:
        """Publish to the topic, best effort; see ``Transport.announce``."""
        self._announcements.announce(self._group.name_of(topic), frame)
        await trio.lowlevel.checkpoint()

    def trust(self, peer: str) -> None:
        """Take ``peer`` for a member; see ``Transport.trust``."""
        self._connections.trust(peer)

    async def drop(self, peer: str) -> None:
        """Close all connections to ``peer`` now."""
        self._connections.distrust(peer)
        self._connections.abort(peer, "we dropped the connection")
        await trio.lowlevel.checkpoint()
