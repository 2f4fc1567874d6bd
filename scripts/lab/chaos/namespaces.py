"""A network namespace for each peer, whose packets go through the hub; needs Linux, iproute2 and /dev/net/tun.

``python -m scripts.lab.chaos.namespaces NAME ADDRESS SOCKET`` holds one: started by ``unshare`` in a new namespace, it
makes a TUN device, hands it to the hub and keeps the namespace until its stdin ends. Peers come and go inside
(``nsenter``). Without root the namespace belongs to a user namespace.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from gossip.errors import LocalError
from gossip.fault_kinds import Link
from peer.child_python import child_environment, python_module
from scripts.lab.chaos.emulator import Way, told

TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
STRANGER = "stranger"
"""The namespace in which strangers live."""
PORT = 4001


def missing() -> str:
    """Return what this machine lacks for namespaces; empty = nothing."""
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} cannot be opened"
    tried = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def _unshare() -> list[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


class Namespaces:
    """One namespace for each peer and one for strangers, joined by the hub.

    Args:
        commands: the hub's stdin.
        holders: name -> process that holds its namespace.
    """

    kind = "a network namespace for each peer, packets through a TUN hub"

    def __init__(self, names: Sequence[str], commands: IO[bytes], holders: dict[str, int]) -> None:
        self._names = tuple(names)
        self._commands = commands
        self._holders = holders

    def address(self, name: str) -> str:
        """Return the IPv4 address of a peer."""
        return _address(self._names.index(name))

    def listen(self, name: str) -> str:
        """Return what a peer's ``--listen`` is given."""
        return f"/ip4/{self.address(name)}/tcp/{PORT}"

    def announced(self, name: str) -> str:
        """Return the address under which others reach it."""
        return self.listen(name)

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one in a peer's namespace, as the same process."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self._holders[name]), *user, "--net", *command]

    def tell(self, do: str, ways: Iterable[Way], link: Link | None = None) -> None:
        """Let the hub ``cut``, ``heal``, ``worsen`` or ``relieve`` ways."""
        self._commands.write(told(do, ways, link))
        self._commands.flush()


def _address(index: int) -> str:
    return f"10.77.{index // 200}.{index % 200 + 1}"


@contextmanager
def open_namespaces(names: Sequence[str], seed: int, folder: Path) -> Iterator[Namespaces]:
    """Make the hub and the namespaces; all are gone at the end.

    Args:
        folder: for the hub's socket; its path must be short.

    Raises:
        LocalError: a namespace could not be made.
    """
    path = folder / "hub"
    with ExitStack() as stack:
        hub = _start(stack, python_module("scripts.lab.chaos.hub", str(seed), str(path)))
        everybody = (*names, STRANGER)
        holders = {}
        for index, name in enumerate(everybody):
            command = python_module("scripts.lab.chaos.namespaces", name, _address(index), str(path))
            holders[name] = _start(stack, [*_unshare(), *command]).pid
        assert hub.stdin is not None
        yield Namespaces(everybody, hub.stdin, holders)


def _start(stack: ExitStack, command: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=child_environment(), start_new_session=True,
    )  # fmt: skip
    stack.callback(_end, process)
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"ready\n":
        raise LocalError(f"no network namespace: {process.stderr.read().decode(errors='replace').strip()}")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def hold(name: str, address: str, path: str) -> None:
    """Make the device of the namespace that we are in, hand it to the hub, and wait for the end of stdin."""
    device = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN_NO_PI))
    for words in (
        f"address add {address}/16 dev tun0",
        "link set tun0 mtu 1500 up",
        "link set lo up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hub:
        hub.connect(path)
        socket.send_fds(hub, [f"{name} {address}".encode()], [device])
        hub.recv(2)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold(*sys.argv[1:])
