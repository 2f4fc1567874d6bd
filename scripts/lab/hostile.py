"""Hostile peers as a program of its own: strangers, and members, that flood, fill and shut out.

    python -m scripts.lab.hostile ATTACK ADDRESS [--seconds 10] [--connections 200] [--from-ip 127.0.0.2]

It attacks the one address that it is given, for so many seconds at most, and keeps to none of our own limits. Each
attack is one function; the suite of attacks (``tests/attacks``) and the bench (``scripts/benchmarks/floods.py``) use
the same ones. It needs no secret: what a closed group does to strangers is seen with ``--connections`` that all fail.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cyclopts import App, Parameter

from gossip.errors import LocalError
from peer.network.group import OPEN_GROUP, Group
from peer.network.libp2p import Libp2pTransport, libp2p_transport
from peer.network.libp2p_announcements import PROTOCOL as ANNOUNCEMENTS
from peer.network.limits import Limits
from peer.network.muxed_stream import MuxedStream, StreamBroken
from peer.network.protocol_stream import negotiate
from peer.network.transport import Unreachable
from peer.network.yamux import DATA, HEADER, PING, SYN, WINDOW, Session

NO_LIMITS = Limits(connections_max=1000, stall_s=120.0, newcomer_s=1e6, frames_burst=1e12, streams_burst=1e12)
TOPIC = "test/presence"
TOPIC_ON_THE_WIRE = OPEN_GROUP.name_of(TOPIC)
ED25519_ID = b"\x00\x24\x08\x01\x12\x20"
"""What a peer id has before the public key."""
TOGETHER = 8
"""Identities that connect at the same time."""

app = App(name="python -m scripts.lab.hostile", help=__doc__, default_parameter=Parameter(show_env_var=False))


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to attack.

    Attributes:
        address: full address.
        topic: of its announcements.
        connections: how many to hold.
        protocol: one that it serves.
    """

    address: str
    topic: str = TOPIC_ON_THE_WIRE
    connections: int = 200
    protocol: str = "/test/echo/1"

    @property
    def peer(self) -> str:
        """Its peer id."""
        return self.address.rpartition("/p2p/")[2]


def key_of(number: int) -> bytes:
    """Return the private key of the hostile peer with this number: the same in each run, so that it can be trusted."""
    return hashlib.sha256(b"hostile %d" % number).digest()


@dataclass(frozen=True, slots=True)
class Intruder:
    """A connected hostile peer.

    Attributes:
        transport: its own.
        target: whom it is connected to.
    """

    transport: Libp2pTransport
    target: Target

    @property
    def session(self) -> Session:
        """Its newest connection.

        Raises:
            StreamBroken: it was cut off.
        """
        return self.transport._connections.newest(self.target.peer).session

    async def opened(self, protocol: str = ANNOUNCEMENTS) -> MuxedStream:
        """Return a new stream for a protocol.

        Raises:
            StreamBroken: refused, or cut off.
        """
        stream = self.session.open()
        if not await negotiate(stream, protocol):
            raise StreamBroken(f"does not speak {protocol}")
        return stream

    async def send_frames(self, frames: bytes) -> None:
        """Send bytes as they are, past our own multiplexer, once it has sent what came before.

        Raises:
            StreamBroken: cut off.
        """
        session = self.session
        while session._urgent:
            await trio.sleep(0.001)
            if session.ended.is_set():
                raise StreamBroken(session.reason)
        session._urgent.append(frames)
        session._unsent.unpark_all()
        await trio.sleep(0)


@asynccontextmanager
async def intruder(target: Target, number: int, group: Group = OPEN_GROUP) -> AsyncIterator[Intruder]:
    """Connect a hostile peer.

    Raises:
        Unreachable: it was not let in.
    """
    factory = libp2p_transport(
        private_key=key_of(number), group=group, listen="/ip4/127.0.0.1/tcp/0", limits=NO_LIMITS
    )
    async with factory(
        handlers={}, topic="none", on_announced=lambda *said: None, on_connection=lambda *changed: None
    ) as transport:
        assert isinstance(transport, Libp2pTransport)
        await transport.dial(target.address)
        yield Intruder(transport, target)


# -- what can be said ------------------------------------------------------------------------------------------------


def field(number: int, value: bytes | int) -> bytes:
    """Return one field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return a number as protobuf and GossipSub write it."""
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def framed(rpc: bytes) -> memoryview:
    """Return an RPC behind its length."""
    return memoryview(varint(len(rpc)) + rpc)


def subscription(topic: str) -> bytes:
    """Return an RPC that takes part in a topic."""
    return field(1, field(1, 1) + field(2, topic.encode()))


def pruning(topic: str, peers: bytes = b"") -> bytes:
    """Return an RPC that leaves somebody's mesh, and may name others to dial."""
    return field(3, field(4, field(1, topic.encode()) + (field(2, peers) if peers else b"") + field(3, 3600)))


def announcement(topic: str, number: bytes, author: bytes, signature: bytes, data: bytes = b"x") -> bytes:
    """Return an RPC with one announcement."""
    parts = ((1, author), (2, data), (3, number), (4, topic.encode()), (5, signature))
    return field(2, b"".join(field(place, value) for place, value in parts))


def signed_announcement(topic: str, number: bytes, data: bytes = b"x", key: bytes = key_of(0)) -> bytes:
    """Return the same with the signature that its author makes."""
    signer = Ed25519PrivateKey.from_private_bytes(key)
    author = ED25519_ID + signer.public_key().public_bytes_raw()
    parts = ((1, author), (2, data), (3, number), (4, topic.encode()))
    said = b"libp2p-pubsub:" + b"".join(field(place, value) for place, value in parts)
    return announcement(topic, number, author, signer.sign(said), data)


def naming(topic: str, ids: Sequence[bytes]) -> bytes:
    """Return an RPC that names messages."""
    return field(3, field(1, field(1, topic.encode()) + b"".join(field(2, id) for id in ids)))


# -- attacks ---------------------------------------------------------------------------------------------------------

Attack = Callable[[Target], Awaitable[None]]
"""Attacks until it is cancelled, or there is nothing left to attack with."""


async def prunes(target: Target) -> None:
    """Fill memory: ever new topics with a backoff each."""
    await _rpcs(target, lambda count: pruning(f"{count}".rjust(4000, "x")))


async def numbers(target: Target) -> None:
    """Fill memory: sequence numbers of 240 KB."""
    await _rpcs(target, lambda count: signed_announcement(target.topic, b"%240000d" % count))


async def signatures(target: Target) -> None:
    """Waste time: well formed announcements with forged signatures."""
    await _rpcs(
        target,
        lambda count: announcement(
            target.topic, struct.pack(">Q", count), ED25519_ID + os.urandom(32), bytes(64)
        ),
    )


async def _rpcs(target: Target, make: Callable[[int], bytes]) -> None:
    """Send RPCs without end, as a new peer whenever one is cut off."""
    for number in itertools.count():
        with suppress(Unreachable, StreamBroken):
            async with intruder(target, number) as hostile:
                stream = await hostile.opened()
                await stream.send(framed(subscription(target.topic)))
                for count in itertools.count():
                    await stream.send(framed(make(count)))


async def streams(target: Target) -> None:
    """Shut out: open 256 streams on each connection, at full rate."""
    await _everybody(target, _open_streams)


async def _open_streams(hostile: Intruder) -> None:
    for number in itertools.count():
        ids = range(512 * number + 1001, 512 * number + 1513, 2)
        await hostile.send_frames(b"".join(HEADER.pack(0, WINDOW, SYN, id, 0) for id in ids))


async def pings(target: Target) -> None:
    """Waste time: pings of the multiplexer, at full rate."""

    async def ping(hostile: Intruder) -> None:
        while True:
            await hostile.send_frames(HEADER.pack(0, PING, SYN, 0, 1) * 256)

    await _everybody(target, ping)


async def scraps(target: Target) -> None:
    """Waste time: data of one byte each for no stream, at full rate."""

    async def scrap(hostile: Intruder) -> None:
        while True:
            await hostile.send_frames((HEADER.pack(0, DATA, 0, 999, 1) + b"x") * 256)

    await _everybody(target, scrap)


async def requests(target: Target) -> None:
    """Waste time: small requests to a protocol that is served, 16 at a time on each connection."""

    async def ask(hostile: Intruder) -> None:
        async def again() -> None:
            with suppress(StreamBroken):
                while True:
                    stream = await hostile.opened(target.protocol)
                    await stream.send(memoryview(b"hello"))
                    await stream.finish()
                    while await stream.receive(1000):
                        pass
                    stream.close()

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(again)

    await _everybody(target, ask)


async def idle(target: Target) -> None:
    """Shut out: hold connections of as many identities and say nothing."""
    await _everybody(target, _hold)


async def silent_streams(target: Target) -> None:
    """Shut out: hold as many streams for announcements as there are to be had, and say nothing on them."""

    async def hold(hostile: Intruder) -> None:
        with suppress(StreamBroken):
            for _ in range(24):
                await hostile.opened()
        await _hold(hostile)

    await _everybody(target, hold)


async def _hold(hostile: Intruder) -> None:
    await hostile.session.ended.wait()


async def hangups(target: Target) -> None:
    """Surprise: hang up right after the handshake, or with a stream half open, as ever new peers."""
    for number in itertools.count():
        with suppress(Unreachable, StreamBroken):
            async with intruder(target, number) as hostile:
                if number % 2:
                    hostile.session.open()
                    await trio.sleep(0)
                hostile.session.abort("hang up")


async def silent_sockets(target: Target) -> None:
    """Shut out: hold sockets open and say nothing."""
    _, _, ip, _, port, *_ = target.address.split("/")

    async def hold() -> None:
        while True:
            with suppress(OSError):
                async with await trio.open_tcp_stream(ip, int(port)) as socket:
                    while await socket.receive_some(1000):
                        pass
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for _ in range(target.connections):
            nursery.start_soon(hold)


async def _everybody(target: Target, act: Callable[[Intruder], Awaitable[None]]) -> None:
    """Let as many peers as there are to be connections act, and each connect again when it is cut off."""
    may_connect = trio.CapacityLimiter(TOGETHER)

    async def one(number: int) -> None:
        while True:
            with suppress(Unreachable, StreamBroken):
                async with AsyncExitStack() as stack:
                    async with may_connect:
                        hostile = await stack.enter_async_context(intruder(target, number))
                    await act(hostile)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for number in range(target.connections):
            nursery.start_soon(one, number)


ATTACKS: dict[str, Attack] = {
    "prunes": prunes,
    "numbers": numbers,
    "signatures": signatures,
    "streams": streams,
    "pings": pings,
    "scraps": scraps,
    "requests": requests,
    "idle": idle,
    "silent-streams": silent_streams,
    "silent-sockets": silent_sockets,
    "hangups": hangups,
}
"""Name of an attack -> the function that does it."""


async def attack(name: str, target: Target, seconds: float) -> None:
    """Attack for so many seconds."""
    with trio.move_on_after(seconds):
        await ATTACKS[name](target)


@app.default
def hostile(
    name: Annotated[str, Parameter(help=f"Of {', '.join(ATTACKS)}.")],
    address: Annotated[str, Parameter(help="Full address of the peer to attack.")],
    *,
    seconds: Annotated[float, Parameter(help="How long.")] = 10.0,
    connections: Annotated[int, Parameter(help="How many to hold.")] = 200,
    topic: Annotated[str, Parameter(help="Of its announcements, as it travels.")] = TOPIC_ON_THE_WIRE,
    protocol: Annotated[str, Parameter(help="That it serves.")] = "/test/echo/1",
    from_ip: Annotated[str, Parameter(help="Address of this machine to come from.")] = "",
) -> None:
    """Attack one peer."""
    if name not in ATTACKS:
        raise LocalError(f"unknown attack {name}; known: {', '.join(ATTACKS)}")
    if from_ip:
        come_from(from_ip)
    trio.run(attack, name, Target(address, topic, connections, protocol), seconds)


def come_from(ip: str) -> None:
    """Let every connection of this process come from one of this machine's addresses."""
    trio.open_tcp_stream = functools.partial(trio.open_tcp_stream, local_address=ip)


if __name__ == "__main__":
    app()
