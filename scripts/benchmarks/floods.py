"""What strangers and members can take away by flooding: exchanges, memory, and the way in for others.

A peer serves, a member of its group reads an adapter of 4 MB from it 20 times a second, and hostile peers
(``scripts/lab/hostile.py``) attack it from another address of this machine and on the last of its cores. Each share is
measured against the calm before it. ``python scripts/bench.py floods`` prints them. Run as a module, this file is the
peer that serves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import psutil
import trio

from peer.child_python import child_environment, python_module
from peer.network.catalogue import transport_for
from peer.network.identity import peer_id
from peer.network.transport import Stream, Transport, Unreachable
from scripts.benchmarks.rows import Row, at_least, at_most, row
from scripts.lab.hostile import TOPIC, key_of

ADAPTER, PING = "/bench/adapter/1", "/bench/ping/1"
PAYLOAD = bytes(4_000_000)
MEMBERS = 8
"""Members that the serving peer trusts: one exchanges, the others come anew."""
FLOODS = (
    ("streams", 200),
    ("requests", 64),
    ("requests", 1),
    ("pings", 64),
    ("signatures", 1),
    ("silent-sockets", 1000),
    ("hangups", 1),
)
"""Attacks, each with how many connections it holds; the first of its peers is a member."""
EXCHANGES_PER_S = 20.0
"""As often the member reads, if it can: 80 MB a second, below the rate of streams that a member has."""
EXCHANGES_SHARE_MIN = 80.0
CORE_SHARE_MAX = 20.0
"""What an attack may cost the serving peer beyond its exchanges: it depends less than they do on who else is busy."""
CONNECT_S_MAX = 2.0
MEMORY_MB_MAX = 256.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        calm_s: before each attack, and what an attack gets to begin.
        flood_s: of each attack.
        newcomers: members that come anew meanwhile.
        connections_max: that an attack holds.
    """

    calm_s: float = 3.0
    flood_s: float = 15.0
    newcomers: int = 5
    connections_max: int = 1000


FULL, QUICK = Size(), Size(calm_s=0.2, flood_s=0.4, newcomers=1, connections_max=10)


def member_key(number: int) -> bytes:
    """Return the private key of a member of the group."""
    return bytes([number]) * 32


async def give(stream: Stream) -> None:
    """Answer a request with an adapter."""
    while await stream.receive(1000):
        pass
    await stream.send(PAYLOAD)


async def pong(stream: Stream) -> None:
    """Send a small question back."""
    while said := await stream.receive(1000):
        await stream.send(said)


async def serve() -> None:
    """Be the peer that is attacked, until the parent closes our standard input; then say how much memory it took."""
    async with _transport(member_key(0)) as transport:
        for number in range(1, MEMBERS):
            transport.trust(peer_id(member_key(number)))
        transport.trust(peer_id(key_of(0)))
        print(transport.addresses[0], flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            print(json.dumps(_memory_mb(line.strip())), flush=True)


def _memory_mb(which: str) -> float:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{which}:")) / 1e3


def _transport(key: bytes) -> AbstractAsyncContextManager[Transport]:
    factory = transport_for("/ip4/127.0.0.1/tcp/0", private_key=key)
    return factory(
        handlers={ADAPTER: give, PING: pong},
        topic=TOPIC,
        on_announced=lambda *_: None,
        on_connection=lambda *_: None,
    )


def rows(quick: bool = False) -> Iterator[Row]:
    """Attack in turn and yield the figures."""
    size = QUICK if quick else FULL
    for name, connections in FLOODS[:2] if quick else FLOODS:
        yield from trio.run(_measure, name, min(connections, size.connections_max), size)


async def _measure(name: str, connections: int, size: Size) -> list[Row]:
    with _serving() as (victim, address):
        async with _transport(member_key(1)) as member:
            member.trust(peer_id(member_key(0)))
            await member.dial(address)
            calm = await _exchanges(member, victim.pid, size.calm_s)
            base = _asked(victim, "VmRSS")
            with _attacking(name, address, connections, size.calm_s + size.flood_s + 60):
                await trio.sleep(size.calm_s)
                flooded = await _exchanges(member, victim.pid, size.flood_s)
                times = [await _time_to_connect(address, number + 2) for number in range(size.newcomers)]
            peak = _asked(victim, "VmHWM")
    prefix = f"floods: {name} of {connections}"
    return [
        at_least(f"{prefix}, exchanges", 100 * flooded.per_s / calm.per_s, "%", EXCHANGES_SHARE_MIN),
        at_most(
            f"{prefix}, of a core",
            100 * max(0.0, flooded.busy - flooded.per_s * calm.busy / calm.per_s),
            "%",
            CORE_SHARE_MAX,
        ),
        at_most(f"{prefix}, a member connects", max(times), "s", CONNECT_S_MAX),
        row(f"{prefix}, and typically", statistics.median(times), "s"),
        at_most(f"{prefix}, memory", max(0.0, peak - base), "MB", MEMORY_MB_MAX),
    ]


@dataclass(frozen=True, slots=True)
class _Exchanges:
    per_s: float
    busy: float  # share of a core that the serving peer used


async def _exchanges(member: Transport, server: int, seconds: float) -> _Exchanges:
    count, begun, cpu_s = 0, time.perf_counter(), psutil.Process(server).cpu_times()
    due = trio.current_time()
    with trio.move_on_after(seconds):
        while True:
            with suppress(Unreachable):
                await _exchange(member)
                count += 1
            due = max(due + 1 / EXCHANGES_PER_S, trio.current_time())
            await trio.sleep_until(due)
    took_s, cpu_now_s = time.perf_counter() - begun, psutil.Process(server).cpu_times()
    used_s = cpu_now_s.user + cpu_now_s.system - cpu_s.user - cpu_s.system
    return _Exchanges(max(count, 1) / took_s, used_s / took_s)


async def _exchange(member: Transport) -> None:
    stream = await member.open(peer_id(member_key(0)), ADAPTER)
    await stream.finish()
    while await stream.receive(1 << 20):
        pass
    await stream.close()


async def _time_to_connect(address: str, number: int) -> float:
    """Return how long a member needs to come in and be served, trying again whenever it is not let in."""
    begun = time.perf_counter()
    async with _transport(member_key(number)) as member:
        member.trust(peer_id(member_key(0)))
        while True:
            with suppress(Unreachable):
                await member.dial(address)
                await _exchange(member)
                return time.perf_counter() - begun


@contextmanager
def _serving() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with _child(python_module("scripts.benchmarks.floods")) as victim:
        assert victim.stdout is not None
        yield victim, victim.stdout.readline().strip()


def _asked(victim: subprocess.Popen[str], which: str) -> float:
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write(f"{which}\n")
    victim.stdin.flush()
    return float(json.loads(victim.stdout.readline()))


@contextmanager
def _attacking(name: str, address: str, connections: int, seconds: float) -> Iterator[None]:
    words = [name, address, f"--seconds={seconds}", f"--connections={connections}", f"--protocol={PING}"]
    command = python_module("scripts.lab.hostile", *words, "--from-ip=127.0.0.2")
    with _child(command) as attacker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(attacker.pid, cores[-1:])
        yield


@contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    trio.run(partial(serve))
