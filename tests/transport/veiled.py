"""A third transport, as somebody outside would add one: the in-memory network, on which every bit is turned round.

It has a scheme of its own, ``/veiled/NAME``, and knows the seam and the transport that it builds on, nothing else of
the project. ``conftest.py`` plugs it in with one line, and the whole conformance suite runs on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from networks import SETUPS, Setup

from gossip.errors import LocalError
from peer.network import memory
from peer.network.group import Group
from peer.network.limits import Limits
from peer.network.transport import (
    Announced,
    ConnectionChanged,
    Handler,
    Stream,
    Transport,
    TransportFactory,
    TransportKind,
)

EXAMPLE = "/veiled/alice"
_TURNED = bytes(255 - byte for byte in range(256))


def turned(data: bytes | bytearray | memoryview) -> bytes:
    return bytes(data).translate(_TURNED)


def to_memory(address: str) -> str:
    """Return our address as the in-memory network's; its places and ours do not meet."""
    if not address.startswith("/veiled/"):
        raise LocalError(f"malformed address {address!r}; valid is for example {EXAMPLE}/p2p/alice")
    return address.replace("/veiled/", "/memory/veiled-", 1)


def from_memory(address: str) -> str:
    return address.replace("/memory/veiled-", "/veiled/", 1)


class VeiledStream:
    def __init__(self, inner: Stream) -> None:
        self._inner = inner
        self.peer = inner.peer
        self.finish, self.close, self.reset = inner.finish, inner.close, inner.reset

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send(turned(data))

    async def receive(self, bytes_max: int) -> bytes:
        return turned(await self._inner.receive(bytes_max))


class VeiledTransport:
    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.peer_id = inner.peer_id
        self.addresses = tuple(from_memory(address) for address in inner.addresses)
        self.refused = inner.refused
        self.is_connected, self.trust, self.drop = inner.is_connected, inner.trust, inner.drop

    async def dial(self, address: str) -> str:
        peer_of(address)
        return await self._inner.dial(to_memory(address))

    async def probe(self, address: str) -> str:
        peer_of(address)
        return await self._inner.probe(to_memory(address))

    async def open(self, peer: str, protocol: str) -> Stream:
        return VeiledStream(await self._inner.open(peer, protocol))

    async def announce(self, topic: str, frame: bytes) -> None:
        await self._inner.announce(topic, turned(frame))


def peer_of(address: str) -> str:
    try:
        return memory.KIND.peer_of(to_memory(address))
    except LocalError:
        raise LocalError(f"malformed address {address!r}; valid is for example {EXAMPLE}/p2p/alice") from None


def make(
    *, private_key: bytes, group: Group, listen: str, announce: tuple[str, ...], limits: Limits
) -> TransportFactory:
    told = tuple(to_memory(address) for address in announce)
    inner = memory.KIND.make(
        private_key=private_key, group=group, listen=to_memory(listen), announce=told, limits=limits
    )

    def factory(
        *,
        handlers: Mapping[str, Handler],
        topic: str,
        on_announced: Announced,
        on_connection: ConnectionChanged,
    ) -> AbstractAsyncContextManager[Transport]:
        @asynccontextmanager
        async def running() -> AsyncIterator[Transport]:
            async with inner(
                handlers={protocol: unveiled(handler) for protocol, handler in handlers.items()},
                topic=topic,
                on_announced=lambda author, frame: on_announced(author, turned(frame)),
                on_connection=on_connection,
            ) as transport:
                yield VeiledTransport(transport)

        return running()

    return factory


def unveiled(handler: Handler) -> Handler:
    async def serve(stream: Stream) -> None:
        await handler(VeiledStream(stream))

    return serve


KIND = TransportKind(EXAMPLE, to_memory, peer_of, make)
SETUP = Setup(
    listen=lambda seed: f"/veiled/place-{seed}",
    nobody=lambda: "/veiled/nobody/p2p/nobody",
    elsewhere="/veiled/elsewhere",
    malformed=("", "alice", "/veiled/alice", "/veiled/alice/p2p/", *SETUPS["memory"].malformed),
)
