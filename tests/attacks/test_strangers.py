"""What strangers and hostile members do to a peer's network over real libp2p, and that it lives on within bounds.

The attacks are those of ``scripts/lab/hostile.py``, from the same process over loopback. Each test names what was seen
before the attack was closed.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from libp2p.network.connection.swarm_connection import SwarmConn
from networks import SETUPS, Network, Observer, ask, echo, id_of, run
from networks import TOPIC as ANNOUNCED_TOPIC

from peer.network.gossipsub import BACKOFFS_MAX
from peer.network.group import OPEN_GROUP
from peer.network.identity import peer_id
from peer.network.libp2p import Libp2pTransport
from peer.network.muxed_stream import MuxedStream, StreamBroken
from peer.network.transport import Unreachable
from peer.network.yamux import Session
from scripts.lab.hostile import (
    ATTACKS,
    Target,
    announcement,
    field,
    framed,
    intruder,
    key_of,
    naming,
    pruning,
    signed_announcement,
    subscription,
)

ECHO = "/test/echo/1"
TOPIC = OPEN_GROUP.name_of(ANNOUNCED_TOPIC)
net = Network(SETUPS["tcp"])


@asynccontextmanager
async def attacked(
    name: str, connections: int = 8, observer: Observer | None = None, **limits: float
) -> AsyncIterator[Libp2pTransport]:
    """A peer that is under attack until the body ends."""
    async with net.start(1, {ECHO: echo}, observer, **limits) as server, trio.open_nursery() as nursery:
        target = Target(server.addresses[0], TOPIC, connections, ECHO)
        nursery.start_soon(ATTACKS[name], target)
        yield server
        nursery.cancel_scope.cancel()


async def a_member_gets_in(server: Libp2pTransport, seed: int = 77) -> None:
    """A member dials until it is let in, and is served."""
    server.trust(id_of(seed))
    async with net.start(seed) as member:
        while True:
            with suppress(Unreachable):
                await member.dial(server.addresses[0])
                assert await ask(await member.open(server.peer_id, ECHO), b"alive") == b"alive"
                return


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


# -- slots -----------------------------------------------------------------------------------------------------------


def test_idle_connections_of_strangers_hold_no_slot_that_a_member_needs() -> None:
    """64 idle connections held all slots."""

    async def main() -> None:
        async with attacked("idle", 12, connections_max=8, newcomers_max=3) as server:
            await until(lambda: server._connections._handshakes._buckets != {})
            for seed in (71, 72, 73):
                await a_member_gets_in(server, seed)
            assert len(server._connections._admission._newcomers()) <= 3

    run(main)


def test_silent_streams_of_strangers_leave_streams_for_others() -> None:
    """14 strangers with silent streams for announcements held all streams."""

    async def main() -> None:
        async with attacked("silent-streams", 6, streams_max=24) as server:
            for seed in (71, 72):
                await a_member_gets_in(server, seed)

    run(main)


def test_hostile_members_leave_streams_for_other_members() -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}, streams_max=24) as server:
            target = Target(server.addresses[0])
            async with intruder(target, 1) as first, intruder(target, 2) as second:
                for hostile in (first, second):
                    server.trust(hostile.transport.peer_id)
                    with suppress(StreamBroken):
                        for _ in range(24):
                            await hostile.opened()
                await a_member_gets_in(server)

    run(main)


def test_silent_sockets_cost_no_turn() -> None:
    async def main() -> None:
        async with attacked("silent-sockets", 200) as server:
            await until(lambda: len(server._connections._handshakes._under_way) >= 64)
            await a_member_gets_in(server)

    run(main)


def test_who_hangs_up_ends_no_more_than_its_connection() -> None:
    """Opening a stream to a stranger who had just hung up raised KeyError: "this is a bug", exit 1."""

    async def main() -> None:
        failed: list[str] = []
        came = Observer()
        async with attacked("hangups", observer=came) as server, trio.open_nursery() as nursery:

            async def greet(peer: str) -> None:
                try:
                    await server.open(peer, ECHO)
                except Unreachable as error:
                    failed.append(str(error))

            while len(failed) < 20:
                await came.until(lambda: bool(came.changes))
                for peer, connected in came.changes:
                    if connected:
                        nursery.start_soon(greet, peer)
                came.changes.clear()
            nursery.cancel_scope.cancel()

    run(main)


def test_who_hangs_up_while_being_taken_up_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library kept such connections for ever, and let nobody in any more once there were as many as may be."""

    async def accept(session: Session) -> MuxedStream:
        session.abort("hung up")
        raise StreamBroken("hung up")

    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server, net.start(2) as client:
            with monkeypatch.context() as patch:
                patch.setattr(Session, "accept", accept)
                with pytest.raises(Unreachable):
                    await client.dial(server.addresses[0])
                await until(lambda: not server._swarm.connections and not client._swarm.connections)
            await a_member_gets_in(server)

    run(main)


def test_a_peer_gone_between_the_dial_and_the_stream_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server, net.start(2) as client:

            async def redial(peer: str) -> None:
                await client.dial(server.addresses[0])
                await client.drop(peer)

            monkeypatch.setattr(client._dialer, "redial", redial)
            with pytest.raises(Unreachable):
                await client.open(server.peer_id, ECHO)

    run(main)


def test_an_exception_in_a_task_of_the_library_ends_its_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever raised there ended the host: "this is a bug", exit 1."""

    async def raises(connection: SwarmConn, stream: object) -> None:
        raise KeyError("provoked")

    async def main() -> None:
        at_server = Observer()
        async with net.start(1, {ECHO: echo}, at_server) as server, net.start(2) as client:
            with monkeypatch.context() as patch:
                patch.setattr(SwarmConn, "_handle_muxed_stream", raises)
                await client.dial(server.addresses[0])
                with pytest.raises(Unreachable):
                    await client.open(server.peer_id, ECHO)
                await at_server.until(lambda: (id_of(2), False) in at_server.changes)
            await a_member_gets_in(server)

    run(main)
    assert "a task of a connection failed" in caplog.text


def test_a_dial_without_descriptors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with net.start(1) as server, net.start(2) as client:

            async def no_socket(*where: object, **options: object) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            monkeypatch.setattr(trio, "open_tcp_stream", no_socket)
            with pytest.raises(Unreachable, match="ulimit -n"):
                await client.dial(server.addresses[0])

    run(main)


# -- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["streams", "pings", "scraps"])
def test_who_floods_is_shut_out(name: str) -> None:
    async def main() -> None:
        async with attacked(name, 3) as server:
            await until(lambda: server._connections.refused["flood"] >= 3)
            await a_member_gets_in(server)

    run(main)


def test_a_member_that_asks_too_often_waits_and_stays() -> None:
    async def main() -> None:
        async with attacked("requests", 1, streams_per_s=20.0, streams_burst=20.0) as server:
            hostile = peer_id(key_of(0))
            server.trust(hostile)
            await until(lambda: server._connections.pace(hostile).pause_s(trio.current_time()) > 0.0)
            await a_member_gets_in(server)
            assert server.is_connected(hostile)
            assert not server._connections.refused

    run(main)


# -- announcements ---------------------------------------------------------------------------------------------------

AUTHOR = b"\x00\x24\x08\x01\x12\x20" + bytes(range(32))
NUMBER = struct.pack(">Q", 1)
FORBIDDEN = {
    "another topic": subscription("another"),
    "a backoff for another topic": pruning("another"),  # +820 MiB in 25 s
    "peers to dial": pruning(TOPIC, field(1, AUTHOR)),
    "a long number": signed_announcement(TOPIC, b"%10000d" % 1),  # +690 MiB
    "no number": signed_announcement(TOPIC, b""),
    "another topic's": signed_announcement("another", NUMBER),
    "a forged signature": announcement(TOPIC, NUMBER, AUTHOR, bytes(64)),
    "a long signature": announcement(TOPIC, NUMBER, AUTHOR, bytes(1000)),
    "no author": announcement(TOPIC, NUMBER, b"", bytes(64)),
    "a long announcement": signed_announcement(TOPIC, NUMBER, bytes(16 * 1024 + 1)),
    "a long id": naming(TOPIC, [bytes(100)]),
    "many ids": naming(TOPIC, [bytes(46)] * 1000),
    "no protobuf": b"\xff" * 100,
    "too long": bytes(1 << 17),
}
"""What no honest neighbor says."""


@pytest.mark.parametrize("rpc", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_who_keeps_breaking_the_rules_of_announcements_is_shut_out(rpc: bytes) -> None:
    async def main() -> None:
        heard = Observer()
        async with net.start(1, {ECHO: echo}, heard) as server:
            async with intruder(Target(server.addresses[0]), 1) as hostile:
                server.trust(hostile.transport.peer_id)
                while server.is_connected(hostile.transport.peer_id):
                    with suppress(StreamBroken):
                        stream = await hostile.opened()
                        await stream.send(framed(subscription(TOPIC) + rpc))
                        while await stream.receive(1000):
                            pass
            assert server._connections.refused["announcement"] == 4
            assert heard.announced == []
            await a_member_gets_in(server)

    run(main)


def test_a_newcomer_s_announcements_are_not_read() -> None:
    async def main() -> None:
        heard = Observer()
        async with (
            net.start(1, {ECHO: echo}, heard) as server,
            intruder(Target(server.addresses[0]), 1) as hostile,
        ):
            stream = await hostile.opened()
            await stream.send(framed(subscription(TOPIC) + signed_announcement(TOPIC, NUMBER, key=key_of(1))))
            assert await ask(await hostile.transport.open(server.peer_id, ECHO), b"x") == b"x"
            assert heard.announced == []
            server.trust(hostile.transport.peer_id)
            await heard.until(lambda: heard.announced == [(peer_id(key_of(1)), b"x")])

    run(main)


def test_ever_new_members_leave_bounded_tables() -> None:
    """The library remembered every identity that ever came: keys, backoffs, times of departure."""

    async def main() -> None:
        came = Observer()
        async with net.start(1, {ECHO: echo}, came, handshakes_burst=1000.0) as server:
            for number in range(25):
                server.trust(peer_id(key_of(number)))
                async with intruder(Target(server.addresses[0]), number) as hostile:
                    stream = await hostile.opened()
                    said = (
                        subscription(TOPIC),
                        pruning(TOPIC),
                        signed_announcement(TOPIC, NUMBER, key=key_of(number)),
                    )
                    await stream.send(framed(b"".join(said)))
                    await came.until(lambda: bool(came.announced))
                    came.announced.clear()
            await came.until(lambda: len(came.changes) == 50)
            gossip = server._announcements._gossip
            assert not gossip._neighbors
            assert not server._announcements._queues
            assert len(gossip._backoffs) <= min(25, BACKOFFS_MAX)
            assert not server._connections._by_peer
            swarm = server._swarm
            assert len(swarm.peerstore.peer_ids()) <= 1
            assert not swarm.auto_connector._recent_disconnects

    run(main)


@pytest.mark.parametrize("seed", range(4))
def test_no_bytes_of_a_member_end_the_host(seed: int) -> None:
    """Random and mutated bytes on streams for announcements and for ourselves: each ends its stream at most."""
    draw = random.Random(seed)
    honest = subscription(TOPIC) + naming(TOPIC, [bytes(46)]) + signed_announcement(TOPIC, NUMBER)

    def mutated() -> bytes:
        data = bytearray(honest)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return draw.choice((bytes(framed(bytes(data))), bytes(data), draw.randbytes(draw.randrange(1, 300))))

    async def main() -> None:
        async with net.start(1, {ECHO: echo}, faults_burst=1e6) as server:
            async with intruder(Target(server.addresses[0]), 1) as hostile:
                server.trust(hostile.transport.peer_id)
                for number in range(60):
                    with suppress(StreamBroken):
                        raw = hostile.session.open()
                        if number % 3:
                            raw = await hostile.opened()
                        for _ in range(5):
                            await raw.send(memoryview(mutated()))
                        await raw.finish()
            await a_member_gets_in(server)

    run(main)
