"""What strangers can do to a libp2p peer's port, and that it lives on with bounded memory."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.identify import ID as IDENTIFY_ID
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH_ID
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr
from networks import SETUPS, Network, Observer, ask, echo, id_of, pair, run

from gossip.errors import LocalError
from peer.network.catalogue import transport_for
from peer.network.libp2p import Libp2pTransport
from peer.network.transport import Stream, Unreachable, receive_exactly

ECHO = "/test/echo/1"
net = Network(SETUPS["tcp"])


async def lives(server: Libp2pTransport) -> None:
    """A newcomer can still dial and be served."""
    async with net.start(77) as newcomer:
        await newcomer.dial(server.addresses[0])
        assert await ask(await newcomer.open(server.peer_id, ECHO), b"alive") == b"alive"


def endpoint(transport: Libp2pTransport) -> tuple[str, int]:
    _, _, ip, _, port, *_ = transport.addresses[0].split("/")
    return ip, int(port)


@asynccontextmanager
async def stranger(**options: object) -> AsyncIterator[IHost]:
    """A plain host of the library, with all its defaults but ``options``."""
    host = new_host(key_pair=create_new_key_pair(bytes([9]) * 32), **options)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.get_network().retry_config.max_retries = 0
        yield host


# -- the port ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_random_bytes_on_the_port(size: int) -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server:
            for prefix in (b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff"):
                async with await trio.open_tcp_stream(*endpoint(server)) as raw:
                    try:
                        await raw.send_all(prefix + os.urandom(size))
                        await raw.send_eof()
                        while await raw.receive_some(1000):
                            pass
                    except trio.BrokenResourceError:
                        pass  # hung up on us: just as good
            await lives(server)

    run(main)


def test_plaintext_only_dialers_are_refused() -> None:
    async def main() -> None:
        at_server = Observer()
        keys = create_new_key_pair(bytes([9]) * 32)
        plaintext = {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}
        async with net.start(1, {ECHO: echo}, at_server) as server, stranger(sec_opt=plaintext) as host:
            with pytest.raises(SwarmException):
                await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            await lives(server)
            assert id_of(9) not in dict(at_server.changes)

    run(main)


def test_mplex_only_dialers_are_refused() -> None:
    async def main() -> None:
        at_server = Observer()
        async with (
            net.start(1, {ECHO: echo}, at_server) as server,
            stranger(muxer_opt={MPLEX_PROTOCOL_ID: Mplex}) as host,
        ):
            with pytest.raises(SwarmException):
                await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            await lives(server)
            assert id_of(9) not in dict(at_server.changes)

    run(main)


def test_the_library_speaks_with_us_both_ways() -> None:
    """Our multiplexer against the library's own: the same wire format, also for transfers beyond every window."""
    payload = os.urandom(3 << 20)

    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server, stranger() as host:

            async def answer(stream: object) -> None:
                received = b""
                while len(received) < len(payload):
                    received += await stream.read(1 << 16)
                await stream.write(received)
                await stream.close()

            host.set_stream_handler("/theirs/1", answer)
            await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            theirs = await host.new_stream(ID.from_base58(server.peer_id), [ECHO])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(theirs.write, payload)
                echoed = b""
                while len(echoed) < len(payload):
                    echoed += await theirs.read(1 << 16)
            assert echoed == payload
            ours = await server.open(str(host.get_id()), "/theirs/1")
            await ours.send(payload)
            assert await receive_exactly(ours, len(payload), 5.0) == payload

    run(main)


def test_silent_sockets_do_not_lock_newcomers_out() -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server:
            silent = [await trio.open_tcp_stream(*endpoint(server)) for _ in range(150)]
            await lives(server)
            for socket_ in silent:
                await socket_.aclose()

    run(main)


def test_slots_of_past_connections_come_free() -> None:
    async def main() -> None:
        async with (
            net.start(1, {ECHO: echo}, connections_max=2, handshakes_burst=200) as server,
            net.start(2) as client,
        ):
            for _ in range(80):  # more than the library's own slots: 2 and 64 for handshakes
                await client.dial(server.addresses[0])
                await client.drop(server.peer_id)
            await lives(server)

    run(main)


def test_connections_beyond_the_limit_are_refused() -> None:
    async def main() -> None:
        async with net.start(1, connections_max=1) as server, net.start(2) as first, net.start(3) as second:
            server.trust(first.peer_id)
            await first.dial(server.addresses[0])
            with pytest.raises(Unreachable):
                await second.dial(server.addresses[0])
            assert first.is_connected(server.peer_id)
            assert server.refused == {"no room for another connection": 1}

    run(main)


def test_port_in_use_is_named() -> None:
    async def main() -> None:
        async with net.start(1) as first:
            _, port = endpoint(first)
            factory = transport_for(f"/ip4/127.0.0.1/tcp/{port}", private_key=bytes(32))
            observer = Observer()
            with pytest.raises(LocalError, match=f"port {port} is in use"):
                async with factory(
                    handlers={},
                    topic="t",
                    on_announced=observer.on_announced,
                    on_connection=observer.on_connection,
                ):
                    pytest.fail("two peers share a port")

    run(main)


@pytest.mark.parametrize(
    "listen", ["", "/ip4/0.0.0.0", "/dns4/localhost/tcp/1", "/ip4/0.0.0.0/udp/1", "0.0.0.0:4001"]
)
def test_malformed_listen_address(listen: str) -> None:
    with pytest.raises(LocalError, match="for example"):
        transport_for(listen, private_key=bytes(32))


def test_listening_everywhere_yields_addresses_that_can_be_dialed() -> None:
    async def main() -> None:
        observer = Observer()
        parts = {
            "handlers": {ECHO: echo},
            "topic": "t",
            "on_announced": observer.on_announced,
            "on_connection": observer.on_connection,
        }
        everywhere = transport_for("/ip4/0.0.0.0/tcp/0", private_key=bytes(32))
        async with everywhere(**parts) as server, net.start(2) as client:
            assert not any("/0.0.0.0/" in address for address in server.addresses)
            assert "/127.0.0.1/" in server.addresses[-1]
            await client.dial(server.addresses[0])

    run(main)


def test_names_are_resolved_as_the_system_does() -> None:
    async def main() -> None:
        async with net.start(1) as server, net.start(2) as client:
            _, port = endpoint(server)
            await client.dial(f"/dns4/localhost/tcp/{port}/p2p/{server.peer_id}")
            assert client.is_connected(server.peer_id)
            await client.drop(server.peer_id)
            with pytest.raises(Unreachable, match="cannot be resolved"):
                await client.dial(f"/dns4/no-such-host.invalid/tcp/{port}/p2p/{server.peer_id}")

    run(main)


def test_done_streams_leave_no_trace() -> None:
    async def main() -> None:
        async with pair(net, {ECHO: echo}) as (server, client):
            for _ in range(30):
                await ask(await client.open(server.peer_id, ECHO), b"x")
            for end in (server, client):
                (connections,) = end._connections._by_peer.values()
                assert len(connections[0].session.streams) <= 8, "those of GossipSub and identify, at most"
                assert connections[0].session.credit.free == 64 << 20

    run(main)


# -- authenticated, yet hostile ------------------------------------------------------------------------------------


def test_ignoring_the_receive_window_ends_the_connection() -> None:
    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        at_server = Observer()
        async with net.start(1, {ECHO: echo, "/deaf/1": deaf}, at_server) as server, stranger() as host:
            await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            stream = await host.new_stream(ID.from_base58(server.peer_id), ["/deaf/1"])
            stream.muxed_stream.send_window = 1 << 40
            (connection,) = server._connections._by_peer[str(host.get_id())]

            async def flood() -> None:
                while True:
                    await stream.write(bytes(1 << 20))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await at_server.until(lambda: (str(host.get_id()), False) in at_server.changes)
                nursery.cancel_scope.cancel()
            assert "into a window of" in connection.session.reason
            await lives(server)

    run(main)


@pytest.mark.parametrize(
    "frames",
    [
        struct.pack("!BBHII", 1, 0, 0, 1, 0),  # unknown version
        struct.pack("!BBHII", 0, 9, 0, 1, 0),  # unknown type
        struct.pack("!BBHII", 0, 0, 0, 999, 1 << 31),  # a huge frame for no stream
        struct.pack("!BBHII", 0, 1, 1, 2, 0),  # opens a stream with an id that is ours
        struct.pack("!BBHII", 0, 1, 1, 0, 0),  # opens the connection itself
    ],
    ids=["version", "type", "length", "id", "zero"],
)
def test_bad_frames_end_the_connection_only(frames: bytes) -> None:
    async def main() -> None:
        at_server = Observer()
        async with net.start(1, {ECHO: echo}, at_server) as server, stranger() as host:
            await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            (connection,) = host.get_network().get_connections(ID.from_base58(server.peer_id))
            assert isinstance(connection.muxed_conn, Yamux)
            await at_server.until(lambda: bool(at_server.changes))
            await connection.muxed_conn.secured_conn.write(frames)
            await at_server.until(lambda: (str(host.get_id()), False) in at_server.changes)
            await lives(server)

    run(main)


def test_a_stranger_cannot_hold_many_streams() -> None:
    async def main() -> None:
        async with net.start(1, {ECHO: echo}) as server, stranger() as host:
            await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            (connection,) = host.get_network().get_connections(ID.from_base58(server.peer_id))
            for _ in range(200):
                await connection.muxed_conn.open_stream()
            (mine,) = server._connections._by_peer[str(host.get_id())]
            await lives(server)  # round trips enough for all of them to have been seen
            assert len(mine.session.streams) <= 64 + 8

    run(main)


def test_strangers_are_asked_nothing_and_tell_us_nothing_of_themselves() -> None:
    """Whatever an identify answer or push contains is never read: the library would keep it for ever."""

    async def main() -> None:
        asked = trio.Event()

        async def answer(stream: object) -> None:
            asked.set()

        at_server = Observer()
        async with net.start(1, {ECHO: echo}, at_server) as server, stranger() as host:
            host.set_stream_handler(IDENTIFY_ID, answer)
            await host.connect(info_from_p2p_addr(Multiaddr(server.addresses[0])))
            await at_server.until(lambda: bool(at_server.changes))
            with pytest.raises(StreamFailure):
                await host.new_stream(ID.from_base58(server.peer_id), [IDENTIFY_PUSH_ID])
            await host.new_stream(ID.from_base58(server.peer_id), [IDENTIFY_ID])
            await lives(server)
            assert not asked.is_set()
            assert host.get_id() not in server._swarm.peerstore.peer_ids()

    run(main)


# -- processes that stop or die ------------------------------------------------------------------------------------


@contextmanager
def remote_peer(seed: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    here = Path(__file__).parent
    path = os.pathsep.join((str(here.parents[1]), str(here)))
    with subprocess.Popen(
        [sys.executable, str(here / "remote_peer.py"), str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_killed_peer_is_noticed_at_once() -> None:
    async def main() -> None:
        observer = Observer()
        with remote_peer(5) as (process, address):
            async with net.start(1, {}, observer) as transport:
                peer = await transport.dial(address)
                stream = await transport.open(peer, ECHO)
                await stream.send(b"x")
                assert await stream.receive(1) == b"x"
                process.kill()
                killed = trio.current_time()
                with pytest.raises(Unreachable):
                    await stream.receive(1)
                await observer.until(lambda: observer.changes == [(peer, True), (peer, False)])
                assert trio.current_time() - killed < 1.0

    run(main)


def test_a_stopped_peer_is_cut_off_after_the_stall_limit() -> None:
    async def main() -> None:
        observer = Observer()
        with remote_peer(6) as (process, address):
            async with net.start(1, {}, observer, stall_s=0.6, open_s=0.3) as transport:
                peer = await transport.dial(address)
                stream = await transport.open(peer, ECHO)
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(Unreachable, match=r"within 0\.3 s"):
                    await transport.open(peer, ECHO)
                with pytest.raises(Unreachable, match=r"0\.6 s"):
                    await stream.send(bytes(64 << 20))
                assert observer.changes == [(peer, True), (peer, False)]
                process.send_signal(signal.SIGCONT)
                await transport.dial(address)
                assert await ask(await transport.open(peer, ECHO), b"awake") == b"awake"

    run(main)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    async def bad(stream: Stream) -> None:
        raise ValueError("a bug of ours")

    async def main() -> None:
        async with pair(net, {"/bad/1": bad}) as (server, client):
            with pytest.raises(Unreachable):
                await (await client.open(server.peer_id, "/bad/1")).receive(1)
            with pytest.raises(Unreachable):
                await client.open(server.peer_id, "/none/1")
            with socket.create_connection(endpoint(server)) as raw:
                raw.sendall(b"garbage" * 100)
            with pytest.raises(Unreachable):
                await client.dial(net.setup.nobody())

    run(main)
    out, err = capfd.readouterr()
    assert out + err == ""
