"""Where there are no namespaces: a TCP proxy on loopback before each peer, ``python -m scripts.lab.chaos.proxies``.

Peers announce the proxies' ports, so that every connection between two peers goes through that of the peer dialed. Who
dials is read off the sockets of processes, which carry their peer's name in their environment (Linux). Bytes are kept
back as the emulator says; what it would lose comes a retransmission later, and over a way that is cut nothing comes
until it heals. Duplicates and disorder do not reach the far side of a TCP connection.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import trio

from gossip.errors import LocalError
from gossip.fault_kinds import Link
from peer.child_python import child_environment, python_module
from scripts.lab.chaos.emulator import Emulator, Way, told
from scripts.lab.testnet.plan import free_ports

NAME_VARIABLE = "CHAOS_PEER"
RETRANSMIT_S = 0.2
"""What is lost comes so much later. Source: Linux's shortest TCP timeout."""
PIECE_BYTES = 16384
LOOK_S = 0.05
"""How often it is looked whether a way that is cut has healed."""
UNDER_WAY = 64
"""Pieces of one connection that may be kept back at a time; then its sender waits, as it does for a full window."""


class Proxies:
    """One proxy for each peer.

    Args:
        commands: the proxies' stdin.
        ports: name -> (port of the proxy, port of the peer).
        why: what was missing for namespaces; empty = nothing, proxies were wanted.
    """

    def __init__(self, commands: IO[bytes], ports: dict[str, tuple[int, int]], why: str) -> None:
        self.kind = "a TCP proxy on loopback before each peer" + (f" ({why})" if why else "")
        self._commands = commands
        self._ports = ports

    def listen(self, name: str) -> str:
        """Return what a peer's ``--listen`` is given."""
        return f"/ip4/127.0.0.1/tcp/{self._ports[name][1]}"

    def announced(self, name: str) -> str:
        """Return the address under which others reach it."""
        return f"/ip4/127.0.0.1/tcp/{self._ports[name][0]}"

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one where a peer lives, as the same process."""
        return ["env", f"{NAME_VARIABLE}={name}", *command]

    def tell(self, do: str, ways: Iterable[Way], link: Link | None = None) -> None:
        """``cut``, ``heal``, ``worsen`` or ``relieve`` ways."""
        self._commands.write(told(do, ways, link))
        self._commands.flush()


@contextmanager
def open_proxies(names: Sequence[str], seed: int, why: str = "") -> Iterator[Proxies]:
    """Start the process of all proxies; it is gone at the end.

    Raises:
        LocalError: it could not listen.
    """
    free = free_ports(2 * len(names))
    ports = {name: (free[2 * place], free[2 * place + 1]) for place, name in enumerate(names)}
    command = python_module("scripts.lab.chaos.proxies", str(seed), json.dumps(ports))
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise LocalError("the proxies could not listen")
        yield Proxies(process.stdin, ports, why)
    finally:
        process.kill()
        process.communicate()


# -- the process


class Relay:
    """Connections between peers, and what keeps their bytes back."""

    def __init__(self, seed: str) -> None:
        self._emulator = Emulator(seed)

    async def obey(self) -> None:
        """Carry out commands until stdin ends."""
        async with trio.lowlevel.FdStream(os.dup(0)) as commands:
            rest = b""
            async for piece in commands:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self._emulator.obey(line)

    async def serve(self, dialed: str, port: int, near: trio.SocketStream) -> None:
        """Relay one connection to a peer, until either side ends it."""
        _, source = near.socket.getpeername()
        dialer = await trio.to_thread.run_sync(_owner_of_port, source)
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self._arrival((dialer, dialed), 0)
            async with (
                near,
                await trio.open_tcp_stream("127.0.0.1", port) as far,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._relay, near, far, (dialer, dialed), nursery.cancel_scope)
                nursery.start_soon(self._relay, far, near, (dialed, dialer), nursery.cancel_scope)

    async def _arrival(self, way: Way, size: int) -> float:
        """Return when a piece arrives that is sent now: retransmitted if it is lost, never while the way is cut."""
        later_s = 0.0
        while not (at := self._emulator.arrivals(way, size, trio.current_time() + later_s)):
            if self._emulator.is_cut(way):
                await trio.sleep(LOOK_S)
            else:
                later_s += RETRANSMIT_S
        return at[0]

    async def _relay(
        self, near: trio.SocketStream, far: trio.SocketStream, way: Way, scope: trio.CancelScope
    ) -> None:
        """Carry the bytes of one direction."""
        put, pieces = trio.open_memory_channel[tuple[float, bytes]](UNDER_WAY)

        async def arrive() -> None:
            async for at, piece in pieces:
                await trio.sleep_until(at)
                await far.send_all(piece)
            await far.send_eof()

        async with trio.open_nursery() as nursery, put:
            nursery.start_soon(_until_broken, arrive, scope)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while piece := await near.receive_some(PIECE_BYTES):
                    await put.send((await self._arrival(way, len(piece)), piece))


async def _until_broken(arrive: Any, scope: trio.CancelScope) -> None:
    try:
        await arrive()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        scope.cancel()


def _owner_of_port(port: int) -> str:
    """Return the name of the peer whose process has a TCP socket at a local port; empty if there is none."""
    wanted = f"{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].partition(":")[2] == wanted and words[9] != "0":
            return _owner_of_socket(f"socket:[{words[9]}]")
    return ""


def _owner_of_socket(socket: str) -> str:
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(os.readlink(descriptor) == socket for descriptor in descriptors.iterdir()):
                for variable in (descriptors.parent / "environ").read_bytes().split(b"\0"):
                    name, _, value = variable.partition(b"=")
                    if name.decode() == NAME_VARIABLE:
                        return value.decode()
    return ""


async def _main(seed: str, ports: dict[str, tuple[int, int]]) -> None:
    relay = Relay(seed)
    async with trio.open_nursery() as nursery:
        for name, (port, behind) in ports.items():
            listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")

            async def handle(stream: trio.SocketStream, name: str = name, behind: int = behind) -> None:
                await relay.serve(name, behind, stream)

            nursery.start_soon(trio.serve_listeners, handle, listeners)
        print("ready", flush=True)
        await relay.obey()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], json.loads(sys.argv[2]))
