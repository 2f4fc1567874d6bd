"""What the conformance suite runs on: every kind of transport under one face, and an observer of what they report."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import permutations

import trio

from peer.network.catalogue import transport_for
from peer.network.group import OPEN_GROUP, Group
from peer.network.identity import peer_id
from peer.network.limits import Limits
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


def key_of(seed: int) -> bytes:
    """The private key of a peer of these tests."""
    return bytes([seed]) * 32


def id_of(seed: int) -> str:
    """Its peer id."""
    return peer_id(key_of(seed))


@dataclass(frozen=True)
class Setup:
    """How the suite runs a kind of transport."""

    listen: Callable[[int], str]
    """Seed of a peer -> an address where it can listen."""
    nobody: Callable[[], str]
    """Makes a full address where nobody is."""
    elsewhere: str
    """An address that somebody behind a router might announce."""
    malformed: tuple[str, ...]
    """What is refused as an address to dial."""


class Network:
    """A kind of transport under test: starts peers by seeds, through the catalogue."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def start(
        self,
        seed: int,
        handlers: Mapping[str, Handler] | None = None,
        observer: Observer | None = None,
        *,
        announce: tuple[str, ...] = (),
        group: Group = OPEN_GROUP,
        **limits: float,
    ) -> AbstractAsyncContextManager[Transport]:
        observer = observer or Observer()
        factory = transport_for(
            self.setup.listen(seed),
            private_key=key_of(seed),
            group=group,
            announce=announce,
            limits=Limits(**limits),
        )
        return factory(
            handlers=handlers or {},
            topic=TOPIC,
            on_announced=observer.on_announced,
            on_connection=observer.on_connection,
        )

    def impostor(self, transport: Transport, seed: int) -> str:
        """The place of ``transport``, with another's name on it."""
        place, _, _ = transport.addresses[0].partition("/p2p/")
        return f"{place}/p2p/{id_of(seed)}"


def _free_tcp_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}/p2p/{id_of(0)}"


SETUPS = {
    "tcp": Setup(
        listen=lambda seed: "/ip4/127.0.0.1/tcp/0",
        nobody=_free_tcp_address,
        elsewhere="/dns4/example.org/tcp/9",
        malformed=(
            "",
            "alice",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/127.0.0.1/tcp/1/p2p/alice",
            f"/ip4/1.2.3/tcp/1/p2p/{id_of(0)}",
            f"/ip4/127.0.0.1/tcp/65536/p2p/{id_of(0)}",
            f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{id_of(0)}",
        ),
    ),
    "memory": Setup(
        listen=lambda seed: f"/memory/place-{seed}",
        nobody=lambda: "/memory/nobody/p2p/nobody",
        elsewhere="/memory/elsewhere",
        malformed=(
            "",
            "alice",
            "/memory/alice",
            "/memory/alice/p2p/",
            "/ip4/127.0.0.1/tcp/1/p2p/alice",
        ),
    ),
}
"""Scheme -> how the suite runs its transport; every transport of the catalogue is here."""


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


def befriend(*transports: Transport) -> None:
    """Let all transports take each other for members."""
    for one, other in permutations(transports, 2):
        one.trust(other.peer_id)


@asynccontextmanager
async def pair(
    net: Network, handlers: Mapping[str, Handler], **limits: float
) -> AsyncIterator[tuple[Transport, Transport]]:
    """Yield a serving and an asking transport, members to each other, the latter connected to the former."""
    async with net.start(1, handlers, **limits) as server, net.start(2, **limits) as client:
        befriend(server, client)
        await client.dial(server.addresses[0])
        yield server, client
