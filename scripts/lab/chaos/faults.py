"""Carries out a schedule of faults on real processes: signals, limits, files and links.

A fault that ends takes back what it did, on whatever process the peer has by then. It judges nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

import psutil
import trio

from gossip.fault_kinds import (
    BitFlips,
    Byzantine,
    Clock,
    Kill,
    Link,
    MemoryCap,
    OneWay,
    Partition,
    Pause,
    Restart,
    SlowReader,
    Starvation,
    Strangers,
    TinyDisk,
)
from gossip.faults import Injection
from peer.child_python import child_environment, python_module
from scripts.lab.chaos.namespaces import STRANGER
from scripts.lab.chaos.network import Network
from scripts.lab.chaos.processes import PeerProcess

BURST_S = 0.02
"""A starved process runs for so long at a time. Source: ours; a few slices of a scheduler."""
BALLAST = "ballast"
"""The file that fills a tiny disk."""


@dataclass(slots=True)
class Saboteur:
    """Lets injections happen to the peers of a run.

    Args:
        nursery: where lives go on that it begins, and faults that take their time.

    Attributes:
        happened: (start, end or None, injection), in seconds of the run.
    """

    peers: Mapping[str, PeerProcess]
    network: Network
    nursery: trio.Nursery
    happened: list[tuple[float, float | None, Injection]] = field(default_factory=list)

    async def carry_out(self, injection: Injection) -> None:
        """Wait for the time of an injection, let it happen, and end it in time."""
        await self._wait_for(injection)
        place = len(self.happened)
        self.happened.append((self._now, None, injection))
        if self._is_momentary(injection):
            await self._happen(injection)
        else:
            with trio.move_on_after(injection.for_s):
                await self._happen(injection)
                await trio.sleep_forever()
            await self._end(injection)
        self.happened[place] = (self.happened[place][0], self._now, injection)

    @property
    def _now(self) -> float:
        return next(iter(self.peers.values())).now

    @staticmethod
    def begin_hostile(injection: Injection, peers: Mapping[str, PeerProcess]) -> None:
        """Let peers that cheat from the beginning be started so."""
        if isinstance(injection.kind, Byzantine) and injection.at_round is None and not injection.at_s:
            for name in injection.who:
                peers[name].cheats_by = json.dumps(dataclasses.asdict(injection.kind))

    @staticmethod
    def _is_momentary(injection: Injection) -> bool:
        return isinstance(injection.kind, Kill | Restart | BitFlips) or (
            isinstance(injection.kind, Byzantine) and injection.for_s == math.inf
        )

    async def _wait_for(self, injection: Injection) -> None:
        if injection.at_round is None:
            await trio.sleep(max(0.0, injection.at_s - self._now))
        while injection.at_round is not None and self._rounds < injection.at_round:
            await trio.sleep(0.1)  # rounds come in with the events of processes

    @property
    def _rounds(self) -> int:
        """The most rounds that a peer has completed."""
        said = [
            event["round"] + 1
            for peer in self.peers.values()
            for life in peer.lives[-1:]
            for _, event in life.events[-1:]
            if event["event"] == "round"
        ]
        return max(said, default=0)

    async def _happen(self, injection: Injection) -> None:
        kind = injection.kind
        match kind:
            case Partition() | OneWay():
                self.network.tell("cut", injection.ways)
            case Link():
                self.network.tell("worsen", injection.ways, kind)
            case SlowReader(bytes_s=bytes_s):
                self.network.tell("worsen", injection.ways, Link(rate_bytes_s=bytes_s))
            case Strangers():
                await self._attack(injection, kind)
            case Clock():
                raise AssertionError("refused by the spec")
            case _:
                async with trio.open_nursery() as nursery:
                    for name in injection.who:
                        nursery.start_soon(self._hurt, self.peers[name], injection)

    async def _hurt(self, peer: PeerProcess, injection: Injection) -> None:
        match injection.kind:
            case Kill():
                await peer.kill()
            case Restart(after_s=after_s, older=older):
                await self._again(peer, after_s, lambda: peer.lose_checkpoints(older))
            case BitFlips() as flips:
                rng = random.Random(f"{injection.seed}/{peer.name}")
                await self._again(peer, flips.after_s, lambda: flip_bits(peer.home, flips, rng))
            case Byzantine() as kind:
                await self._cheat(peer, json.dumps(dataclasses.asdict(kind)))
            case Pause():
                peer.signal(signal.SIGSTOP)
            case Starvation(factor=factor):
                await self._starve(peer, factor)
            case MemoryCap(bytes=more):
                limit_memory(peer, more)
            case TinyDisk(bytes=left):
                fill_disk(peer.home, left)

    async def _again(
        self, peer: PeerProcess, after_s: float, meanwhile: Callable[[], None] | None = None
    ) -> None:
        """Kill a peer and begin its next life; one that is away already stays away."""
        if not peer.is_alive:
            return
        await peer.kill()
        if meanwhile:
            meanwhile()
        await trio.sleep(after_s)
        self.nursery.start_soon(peer.live)

    async def _cheat(self, peer: PeerProcess, cheats_by: str) -> None:
        """Start a peer again as one that cheats, or no longer does, unless it is that already."""
        if peer.cheats_by != cheats_by:
            peer.cheats_by = cheats_by
            await self._again(peer, 0.0)

    async def _starve(self, peer: PeerProcess, factor: float) -> None:
        """Let its processes run for one part in ``factor`` of the time, as cpulimit does."""
        try:
            while True:
                peer.signal(signal.SIGSTOP)
                await trio.sleep(BURST_S * (factor - 1))
                peer.signal(signal.SIGCONT)
                await trio.sleep(BURST_S)
        finally:
            peer.signal(signal.SIGCONT)

    async def _attack(self, injection: Injection, kind: Strangers) -> None:
        targets = [_endpoint(self.network.announced(name)) for name in injection.who]
        words = ("stranger", kind.conduct, str(kind.count), *targets)
        command = self.network.inside(STRANGER, python_module("scripts.lab.chaos.hostile", *words))
        process = await trio.lowlevel.open_process(
            command, env=child_environment(), stderr=subprocess.DEVNULL
        )
        try:
            await process.wait()
        finally:
            process.kill()

    async def _end(self, injection: Injection) -> None:
        kind = injection.kind
        match kind:
            case Partition() | OneWay():
                self.network.tell("heal", injection.ways)
            case Link():
                self.network.tell("relieve", injection.ways, kind)
            case SlowReader(bytes_s=bytes_s):
                self.network.tell("relieve", injection.ways, Link(rate_bytes_s=bytes_s))
            case _:
                for name in injection.who:
                    await self._spare(self.peers[name], injection)

    async def _spare(self, peer: PeerProcess, injection: Injection) -> None:
        match injection.kind:
            case Pause():
                peer.signal(signal.SIGCONT)
            case Byzantine():
                await self._cheat(peer, "")
            case MemoryCap():
                limit_memory(peer, None)
            case TinyDisk():
                (peer.home / BALLAST).unlink(missing_ok=True)
            case Starvation() | Strangers() | Kill() | Restart() | BitFlips():
                pass  # over with what made them
            case Partition() | OneWay() | Link() | SlowReader() | Clock():
                raise AssertionError("a matter of links")
            case _:
                assert_never(injection.kind)


def _endpoint(address: str) -> str:
    """Return HOST:PORT of a multiaddr."""
    _, _, host, _, port, *_ = address.split("/")
    return f"{host}:{port}"


def limit_memory(peer: PeerProcess, more: int | None) -> None:
    """Let a peer's processes have ``more`` bytes of address space beyond what they have; None = without a limit."""
    for process in peer.family():
        with suppress(psutil.NoSuchProcess):
            limit = psutil.RLIM_INFINITY if more is None else process.memory_info().vms + more
            process.rlimit(psutil.RLIMIT_AS, (limit, psutil.RLIM_INFINITY))


def fill_disk(home: Path, left: int) -> None:
    """Leave ``left`` bytes on the disk of a home folder, which is one of its own (``run.mounted_homes``)."""
    space = os.statvfs(home)
    with (home / BALLAST).open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(1, space.f_bavail * space.f_frsize - left))


def flip_bits(home: Path, kind: BitFlips, rng: random.Random) -> None:
    """Flip bits in files below a home folder, of those that match."""
    files = sorted(path for path in home.glob(kind.files) if path.is_file() and path.stat().st_size)
    for _ in range(kind.count if files else 0):
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
