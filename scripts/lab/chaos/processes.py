"""The process of one peer in a chaos run, through all its lives: started, hurt, ended; what it told and what it took.

It starts nothing by itself: a peer that ends stays away until a fault says otherwise, so that what it cannot do alone
is seen.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import trio

from peer.child_python import child_environment, python_module
from scripts.lab.chaos.network import Network

LEAVE_S = 15.0
"""Wait for a peer that was told to leave, seconds; then it is killed. Source: it promises to leave within 10 s."""
KEPT_EVENTS = frozenset({"listening", "resumed", "round", "eval", "finished"})
LAST_WORDS = 1500
"""Letters of stderr that the report shows of a peer that ended by itself."""


@dataclass(slots=True)
class Life:
    """One process of a peer, from its start to its end; times are seconds of the run.

    Args:
        events: (time, event) of those kept.
        was_told: whether we ended it.
        exit_code: None while it runs; negative = the signal that killed it.
        last_words: the end of its stderr, if it ended by itself.
    """

    started_s: float
    pid: int
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    was_told: bool = False
    ended_s: float = 0.0
    exit_code: int | None = None
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a peer takes of the machine at a time: both of its processes' memory, its own descriptors."""

    at_s: float
    rss_bytes: int
    descriptors: int


@dataclass(slots=True)
class PeerProcess:
    """A peer of the run.

    Args:
        flags: of every ``peer run``.
        first_flags: and of its first.
        network: where it lives.
        is_light: whether it trains in its own process.
        begun: trio's time at which the run's clock shows 0.
        seen: its processes and those that they have started, as far as samples have met them.
    """

    name: str
    home: Path
    flags: Sequence[str]
    first_flags: Sequence[str]
    network: Network
    is_light: bool
    begun: float
    lives: list[Life] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seen: set[psutil.Process] = field(default_factory=set)
    cheats_by: str = ""  # a Byzantine as JSON; empty = honest
    process: trio.Process | None = None

    @property
    def now(self) -> float:
        """Seconds of the run."""
        return trio.current_time() - self.begun

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return bool(self.lives) and self.lives[-1].exit_code is None

    async def live(self) -> None:
        """Start a process and follow it to its end."""
        flags = [*self.flags, *(() if self.lives else self.first_flags)]
        words = ["--json", "--home", str(self.home), "--name", self.name, *flags]
        if self.cheats_by:
            command = python_module("scripts.lab.chaos.hostile", "member", self.cheats_by, *words)
        else:
            program = "scripts.lab.chaos.light_peer" if self.is_light else "peer"
            command = python_module(program, "run", *words)
        errors = self.home.parent / f"{self.name}-{len(self.lives)}.stderr"
        with errors.open("wb") as log:
            self.process = await trio.lowlevel.open_process(
                self.network.inside(self.name, command),
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(OMP_NUM_THREADS="1"),
            )
        life = Life(self.now, self.process.pid)
        self.lives.append(life)
        try:
            await self._listen(self.process, life)
            await self.process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._end(self.process)
            life.ended_s, life.exit_code = self.now, self.process.returncode
            if not life.was_told:
                life.last_words = errors.read_text(errors="replace")[-LAST_WORDS:]

    async def _listen(self, process: trio.Process, life: Life) -> None:
        assert process.stdout is not None
        rest = b""
        async for piece in process.stdout:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] in KEPT_EVENTS:
                    life.events.append((self.now, event))

    async def _end(self, process: trio.Process) -> None:
        if process.returncode is None:
            self.lives[-1].was_told = True
            self.signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(LEAVE_S):
                await process.wait()
            process.kill()
            await process.wait()

    async def kill(self) -> None:
        """End it as kill -9 does; what it started has to notice by itself."""
        if self.process and self.is_alive:
            self.lives[-1].was_told = True
            self.process.kill()
            await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its processes."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def family(self) -> Iterator[psutil.Process]:
        """Return its process and those that it has started, as far as they live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.is_alive:
                process = psutil.Process(self.lives[-1].pid)
                yield process
                yield from process.children(recursive=True)

    def sample(self) -> None:
        """Note what it takes of the machine."""
        family = list(self.family())
        self.seen.update(family)
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            memory = sum(process.memory_info().rss for process in family)
            self.samples.append(Sample(self.now, memory, family[0].num_fds()))

    def lose_checkpoints(self, count: int) -> None:
        """Remove its newest checkpoints, of which each has a folder."""
        for folder in sorted((self.home / "checkpoints").glob("round-*"), reverse=True)[:count]:
            shutil.rmtree(folder)
