"""Real peer processes that run out of file descriptors, or are called while they leave: they say nothing and go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from networks import SETUPS, Network, Observer, ask, run

from peer.network.transport import Unreachable

ECHO = "/test/echo/1"
TRANSPORT = Path(__file__).parents[1] / "transport"
net = Network(SETUPS["tcp"])


@contextmanager
def peer_process(descriptors: int = 1024) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A peer that echoes, in a process with so many file descriptors; its address."""
    path = os.pathsep.join((str(TRANSPORT.parents[1]), str(TRANSPORT)))
    command = f'ulimit -n {descriptors} && exec "{sys.executable}" "{TRANSPORT / "remote_peer.py"}" 5'
    with subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Let the process leave; return its exit code and what it complained of."""
    _, complaints = process.communicate("", timeout=15)
    return process.returncode, complaints


def test_without_descriptors_to_spare_newcomers_wait_and_those_connected_go_on() -> None:
    """1,024 descriptors were used up by connections, and the peer ended: exit 7, "free some space"."""

    async def main(address: str) -> None:
        _, _, ip, _, port, *_ = address.split("/")
        async with net.start(1) as before, net.start(2) as after:
            peer = await before.dial(address)
            silent = [await trio.open_tcp_stream(ip, int(port)) for _ in range(100)]
            assert await ask(await before.open(peer, ECHO), b"still") == b"still"
            for socket in silent:
                await socket.aclose()
            while not after.is_connected(peer):
                with suppress(Unreachable):
                    await after.dial(address)
            assert await ask(await after.open(peer, ECHO), b"again") == b"again"

    with peer_process(descriptors=48) as (process, address):
        run(lambda: main(address))
        assert ended(process) == (0, "")


def test_a_process_without_descriptors_for_accepting_pauses_and_says_nothing() -> None:
    """Fewer than its own files need: even accepting fails, which trio tells in tracebacks."""

    async def main(address: str) -> None:
        _, _, ip, _, port, *_ = address.split("/")
        sockets = [await trio.open_tcp_stream(ip, int(port)) for _ in range(40)]
        for socket in sockets:
            await socket.aclose()
        async with net.start(2) as after:
            while not after.is_connected(address.rpartition("/")[2]):
                with suppress(Unreachable):
                    await after.dial(address)

    with peer_process(descriptors=24) as (process, address):
        run(lambda: main(address))
        assert ended(process) == (0, "")


def test_connections_that_come_while_a_peer_leaves_are_no_bug_of_its() -> None:
    """A late one printed "Nursery is closed to new arrivals" at a normal finish."""

    async def main(process: subprocess.Popen[str], address: str) -> None:
        observer = Observer()

        async def keep_calling(seed: int) -> None:
            async with net.start(seed, {}, observer) as caller:
                peer = address.rpartition("/")[2]
                while process.poll() is None:
                    with suppress(Unreachable):
                        await caller.dial(address)
                        await caller.open(peer, ECHO)
                        await caller.drop(peer)
                    await trio.sleep(0)

        async with trio.open_nursery() as nursery:
            for seed in range(1, 5):
                nursery.start_soon(keep_calling, seed)
            await observer.until(lambda: len(observer.changes) >= 8)
            assert process.stdin is not None
            process.stdin.close()

    with peer_process() as (process, address):
        run(lambda: main(process, address))
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, "")
