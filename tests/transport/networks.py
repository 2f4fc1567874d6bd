"""What the conformance suite runs on: the two transports under one face, and an observer of what they report."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import trio

from peer.network.libp2p import libp2p_transport, peer_id_of
from peer.network.memory import MemoryNetwork
from peer.network.transport import Handler, Stream, Transport, Unreachable

TOPIC = "test/presence"
SAFETY_S = 20.0  # no test waits for it; it only turns a hang into a failure


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run an async test body, failing if it hangs."""

    async def limited() -> None:
        with trio.fail_after(SAFETY_S):
            await main()

    trio.run(limited)


class Observer:
    """Collects what a transport reports and lets a test wait for it."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, bytes]] = []
        self.changes: list[tuple[str, bool]] = []
        self._news = trio.lowlevel.ParkingLot()

    def on_announced(self, author: str, frame: bytes) -> None:
        self.announced.append((author, frame))
        self._news.unpark_all()

    def on_connection(self, peer: str, connected: bool) -> None:
        self.changes.append((peer, connected))
        self._news.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.park()


class MemoryFace:
    """The in-memory network."""

    malformed = ("", "alice", "/memory/alice", "/memory/alice/p2p/", "/ip4/127.0.0.1/tcp/1/p2p/alice")

    def __init__(self) -> None:
        self._network = MemoryNetwork()

    def start(
        self,
        seed: int,
        handlers: Mapping[str, Handler] | None = None,
        observer: Observer | None = None,
        **options: float,
    ) -> AbstractAsyncContextManager[Transport]:
        observer = observer or Observer()
        factory = self._network.factory(bytes([seed]) * 32, **options)
        return factory(
            handlers=handlers or {},
            topic=TOPIC,
            on_announced=observer.on_announced,
            on_connection=observer.on_connection,
        )

    def nobody(self) -> str:
        """An address where nobody is."""
        return "/memory/nobody/p2p/nobody"

    def impostor(self, transport: Transport, seed: int) -> str:
        """The place of ``transport``, with another's name on it."""
        return f"/memory/{transport.peer_id}/p2p/{peer_id_of(bytes([seed]) * 32)}"


class Libp2pFace:
    """The real network, on loopback."""

    _tail = "/p2p/" + peer_id_of(bytes(32))
    malformed = (
        "",
        "alice",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/alice",
        "/ip4/1.2.3/tcp/1" + _tail,
        "/ip4/127.0.0.1/tcp/65536" + _tail,
        "/ip4/127.0.0.1/udp/1/quic-v1" + _tail,
    )

    def start(
        self,
        seed: int,
        handlers: Mapping[str, Handler] | None = None,
        observer: Observer | None = None,
        **options: float,
    ) -> AbstractAsyncContextManager[Transport]:
        observer = observer or Observer()
        factory = libp2p_transport(private_key=bytes([seed]) * 32, listen="/ip4/127.0.0.1/tcp/0", **options)
        return factory(
            handlers=handlers or {},
            topic=TOPIC,
            on_announced=observer.on_announced,
            on_connection=observer.on_connection,
        )

    def nobody(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}{self._tail}"

    def impostor(self, transport: Transport, seed: int) -> str:
        place = transport.addresses[0].partition("/p2p/")[0]
        return f"{place}/p2p/{peer_id_of(bytes([seed]) * 32)}"


async def echo(stream: Stream) -> None:
    """A handler that sends everything back."""
    while data := await stream.receive(1 << 20):
        await stream.send(data)
    await stream.finish()


async def drain(stream: Stream) -> None:
    """Receive and forget until the stream ends."""
    while await stream.receive(1000):
        pass


async def ask(stream: Stream, data: bytes) -> bytes:
    """Send ``data`` on a stream and return the whole answer."""
    answer = bytearray()
    failure: Unreachable | None = None
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(Unreachable):  # then receiving fails as well, and says it
                await stream.send(data)
                await stream.finish()

        nursery.start_soon(send)
        try:
            while piece := await stream.receive(1 << 20):
                answer += piece
        except Unreachable as error:
            failure = error
    if failure is not None:
        raise failure
    await stream.close()
    return bytes(answer)


@asynccontextmanager
async def pair(
    net: MemoryFace | Libp2pFace, handlers: Mapping[str, Handler], **options: float
) -> AsyncIterator[tuple[Transport, Transport]]:
    """Yield a serving and an asking transport, the latter connected to the former."""
    async with net.start(1, handlers, **options) as server, net.start(2, **options) as client:
        await client.dial(server.addresses[0])
        yield server, client
