"""How fast the network transport is, beside a plain TLS socket and beside libp2p's own default path.

Each figure is measured between two processes on loopback; the three paths take turns in one run, so that a neighbor
on the machine slows all of them. ``python scripts/bench.py transport`` prints them. Run as a module, this file is the
remote end.
"""

from __future__ import annotations

import json
import resource
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from peer.child_python import child_environment, python_module
from peer.network.catalogue import transport_for
from peer.network.limits import Limits
from peer.network.transport import Handler, Stream, Transport
from scripts.benchmarks.certificate import self_signed
from scripts.benchmarks.rows import Row, at_least, at_most, row

if TYPE_CHECKING:
    from libp2p.abc import IHost, INetStream
    from libp2p.peer.id import ID

MB = 1_000_000
CHUNK_BYTES = 256 * 1024
LIBRARY_CHUNK_BYTES = 64 * 1024  # what a user of the library's own streams would write (libp2p.md section 2)
SINK, ECHO = "/bench/sink/1", "/bench/echo/1"
_SIZE = struct.Struct(">Q")
AMONG_MEMBERS = Limits(newcomer_s=3600.0, newcomer_streams_max=64, newcomer_cost=1.0, streams_burst=1e9)
"""Nobody says hello here, and more streams are opened than in any run."""

Send = Callable[[bytes | memoryview], Awaitable[None]]
Receive = Callable[[int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        bulk_bytes: of a large transfer.
        turns: how often the three paths take turns.
        memory_bytes: of the transfer whose memory is looked at.
        parallel_bytes: of each of 8 transfers at once.
        requests: small ones on an idle connection; beside bulk transfers, at least a tenth as many.
        bulks: transfers beside small requests, at least.
    """

    bulk_bytes: int = 64 * MB
    turns: int = 5
    memory_bytes: int = 100 * MB
    parallel_bytes: int = 16 * MB
    requests: int = 200
    bulks: int = 6


FULL = Size()
QUICK = Size(MB // 4, turns=1, memory_bytes=MB, parallel_bytes=MB // 16, requests=20, bulks=1)


async def receive_all(receive: Receive) -> bytes:
    """Receive one payload into a buffer made beforehand; return the answer: this process's peak memory in KiB."""
    (count,) = _SIZE.unpack(await receive_count(receive, _SIZE.size))
    buffer = memoryview(bytearray(count))
    filled = 0
    while filled < count:
        piece = await receive(1 << 20)
        if not piece:
            raise EOFError(f"{filled} of {count} bytes")
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    return _SIZE.pack(peak_memory_kib())


def peak_memory_kib() -> int:
    """Return this process's peak resident memory; ``ru_maxrss`` would begin with its parent's at the fork."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


async def receive_count(receive: Receive, count: int) -> bytes:
    """Receive exactly ``count`` bytes."""
    data = b""
    while len(data) < count:
        piece = await receive(count - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += piece
    return data


async def transfer(send: Send, receive: Receive, payload: memoryview, chunk_bytes: int) -> tuple[float, int]:
    """Send a payload and wait for the answer; return seconds and the receiver's peak memory in KiB."""
    begun = time.perf_counter()
    await send(_SIZE.pack(len(payload)))
    for start in range(0, len(payload), chunk_bytes):
        await send(payload[start : start + chunk_bytes])
    (peak,) = _SIZE.unpack(await receive_count(receive, _SIZE.size))
    return time.perf_counter() - begun, peak


# -- the remote process ----------------------------------------------------------------------------------------------


def say(**facts: object) -> None:
    """Tell the parent process where we are."""
    print(json.dumps(facts), flush=True)


def memory_now_kib() -> int:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() // 1024


async def wait_for_parent() -> None:
    """Return when the parent closes our stdin."""
    await trio.to_thread.run_sync(
        sys.stdin.read,
        abandon_on_cancel=True,  # type: ignore[call-arg] # libp2p brings trio_typing, whose stubs are older than trio
    )


@asynccontextmanager
async def our_transport(seed: int, **handlers: Handler) -> AsyncIterator[Transport]:
    """Our transport on loopback."""
    factory = transport_for("/ip4/127.0.0.1/tcp/0", private_key=bytes([seed]) * 32, limits=AMONG_MEMBERS)
    async with factory(
        handlers=handlers, topic="bench", on_announced=lambda *_: None, on_connection=lambda *_: None
    ) as transport:
        yield transport


async def serve_ours() -> None:
    """A sink and an echo on our transport."""

    async def sink(stream: Stream) -> None:
        await stream.send(await receive_all(stream.receive))

    async def echo(stream: Stream) -> None:
        while data := await stream.receive(1000):
            await stream.send(data)

    async with our_transport(1, **{SINK: sink, ECHO: echo}) as transport:
        say(address=transport.addresses[0], memory_kib=memory_now_kib())
        await wait_for_parent()


async def serve_library() -> None:
    """A sink on the library's default host."""
    from libp2p import new_host
    from libp2p.custom_types import TProtocol
    from multiaddr import Multiaddr

    host = new_host()

    async def sink(stream: INetStream) -> None:
        async def receive(count: int) -> bytes:
            return await stream.read(min(count, LIBRARY_CHUNK_BYTES))

        await stream.write(await receive_all(receive))
        await stream.close()

    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(TProtocol(SINK), sink)
        address = str(host.get_addrs()[0])
        full = address if "/p2p/" in address else f"{address}/p2p/{host.get_id()}"
        say(address=full, memory_kib=memory_now_kib())
        await wait_for_parent()


async def serve_tls(certificate: str) -> None:
    """A sink on a trio TLS socket."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def sink(stream: trio.SSLStream) -> None:
        try:
            while True:
                await stream.send_all(await receive_all(stream.receive_some))
        except (EOFError, trio.BrokenResourceError):
            pass  # the parent has what it wanted

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_ssl_over_tcp(
                sink, 0, context, host="127.0.0.1", task_status=task_status
            )
        )
        say(port=listeners[0].transport_listener.socket.getsockname()[1], memory_kib=memory_now_kib())
        await wait_for_parent()
        nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class Child:
    """What the remote end said once it was ready."""

    memory_kib: int
    address: str = ""
    port: int = 0


@contextmanager
def child(kind: str, *arguments: str) -> Iterator[Child]:
    """Run this file as the remote end; yield what it said first."""
    command = python_module("scripts.benchmarks.transport", kind, *arguments)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    ) as process:
        assert process.stdout is not None
        try:
            yield Child(**json.loads(process.stdout.readline()))
        finally:
            process.kill()


# -- this process ----------------------------------------------------------------------------------------------------


async def send_ours(transport: Transport, peer: str, payload: memoryview) -> tuple[float, int]:
    """One transfer on a new stream of ours."""
    stream = await transport.open(peer, SINK)
    result = await transfer(stream.send, stream.receive, payload, CHUNK_BYTES)
    await stream.close()
    return result


async def send_library(host: IHost, peer: ID, payload: memoryview) -> tuple[float, int]:
    """One transfer on a new stream of the library's."""
    from libp2p.custom_types import TProtocol

    stream = await host.new_stream(peer, [TProtocol(SINK)])

    async def send(data: bytes | memoryview) -> None:
        await stream.write(bytes(data))

    result = await transfer(send, stream.read, payload, LIBRARY_CHUNK_BYTES)
    await stream.close()
    return result


async def compare_paths(size: Size) -> list[Row]:
    """Rows for 64 MB over our stream, a TLS socket and the library's default stream, taking turns."""
    from libp2p import new_host
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    payload = memoryview(bytes(size.bulk_bytes))
    host = new_host()
    with (
        tempfile.TemporaryDirectory() as folder,
        child("ours") as ours,
        child("library") as library,
        child("tls", certificate := self_signed(folder)) as tls,
    ):
        context = ssl.create_default_context(cafile=certificate)
        async with (
            our_transport(2) as transport,
            host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
            await trio.open_ssl_over_tcp_stream("127.0.0.1", tls.port, ssl_context=context) as plain,
        ):
            peer = await transport.dial(ours.address)
            there = info_from_p2p_addr(Multiaddr(library.address))
            await host.connect(there)
            taken: dict[str, list[float]] = {"ours": [], "TLS": [], "library": []}
            for _ in range(size.turns):
                taken["ours"].append((await send_ours(transport, peer, payload))[0])
                seconds, _ = await transfer(plain.send_all, plain.receive_some, payload, CHUNK_BYTES)
                taken["TLS"].append(seconds)
                taken["library"].append((await send_library(host, there.peer_id, payload))[0])
    speed = {path: size.bulk_bytes / MB / statistics.median(times) for path, times in taken.items()}
    return [
        *(row(f"transport: 64 MB, {path}", value, "MB/s") for path, value in speed.items()),
        at_least("transport: 64 MB, ours / TLS", speed["ours"] / speed["TLS"], "x", 0.55),
        at_least("transport: 64 MB, ours / library", speed["ours"] / speed["library"], "x", 1.5),
    ]


async def measure_memory(size: Size) -> list[Row]:
    """A row for what 100 MB cost the receiver."""
    with child("ours") as ours:
        async with our_transport(2) as transport:
            peer = await transport.dial(ours.address)
            _, peak_kib = await send_ours(transport, peer, memoryview(bytes(size.memory_bytes)))
    growth = (peak_kib - ours.memory_kib) * 1024 / MB
    limit = 1.3 * size.memory_bytes / MB + 32
    return [at_most("transport: receiver's memory for 100 MB", growth, "MB", limit)]


async def measure_many(size: Size) -> list[Row]:
    """A row for 8 transfers at once."""
    payload = memoryview(bytes(size.parallel_bytes))
    with child("ours") as ours:
        async with our_transport(2) as transport:
            peer = await transport.dial(ours.address)
            begun = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(send_ours, transport, peer, payload)
            seconds = time.perf_counter() - begun
    return [row("transport: 8 x 16 MB at once, total", 8 * len(payload) / MB / seconds, "MB/s")]


async def measure_small_beside_bulk(size: Size) -> list[Row]:
    """Rows for 32-byte requests, alone and beside bulk transfers."""
    with child("ours") as ours:
        async with our_transport(2) as transport:
            peer = await transport.dial(ours.address)
            stream = await transport.open(peer, ECHO)
            alone = [await ask_ms(stream) for _ in range(size.requests)]
            beside = await _ask_beside_bulk(transport, peer, stream, size)
    figures = []
    for name, times in (("alone", alone), ("beside 64 MB", beside)):
        twentieths = statistics.quantiles(times, n=20)
        figures.append(row(f"transport: 32 bytes and back {name}, median", statistics.median(times), "ms"))
        figures.append(at_most(f"transport: 32 bytes and back {name}, 95 %", twentieths[18], "ms", 100.0))
    return figures


async def ask_ms(stream: Stream) -> float:
    """Return how long a small request takes, milliseconds."""
    begun = time.perf_counter()
    await stream.send(bytes(32))
    await receive_count(stream.receive, 32)
    return (time.perf_counter() - begun) * 1000


async def _ask_beside_bulk(transport: Transport, peer: str, stream: Stream, size: Size) -> list[float]:
    """Return how long small requests take while large transfers to the same peer are under way, milliseconds."""
    payload = memoryview(bytes(size.bulk_bytes))
    times: list[float] = []
    async with trio.open_nursery() as nursery:

        async def send_bulk() -> None:
            sent = 0
            while sent < size.bulks or len(times) < size.requests // 10:
                await send_ours(transport, peer, payload)
                sent += 1
            nursery.cancel_scope.cancel()

        nursery.start_soon(send_bulk)
        while True:
            times.append(await ask_ms(stream))
            await trio.sleep(0.005)
    return times


def rows(quick: bool = False) -> Iterator[Row]:
    """Measure everything (about half a minute)."""
    for measure in (compare_paths, measure_memory, measure_many, measure_small_beside_bulk):
        yield from trio.run(measure, QUICK if quick else FULL)


if __name__ == "__main__":
    ENDS: dict[str, Callable[..., Awaitable[None]]] = {
        "ours": serve_ours,
        "library": serve_library,
        "tls": serve_tls,
    }
    trio.run(ENDS[sys.argv[1]], *sys.argv[2:])
