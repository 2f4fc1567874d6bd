"""The process that carries packets between namespaces: ``python -m scripts.lab.chaos.hub SEED SOCKET``.

Each namespace hands in the descriptor of its TUN device over the socket, with its peer's name and address. Commands
come as JSON lines on stdin, faults in the words of ``gossip/fault_kinds.py``; the end of stdin ends it. It reads
nothing of a packet but the address of its receiver.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import sys
import time

from scripts.lab.chaos.emulator import Emulator

PACKET_BYTES_MAX = 65536
QUEUE_MAX = 100_000
"""Packets under way at a time; more are dropped. Source: guess; 150 MB at full size."""
BATCH = 64
"""Packets read from one device before the others have their turn. Source: guess."""


class Hub:
    """Devices, and the packets on their way between them."""

    def __init__(self, seed: str) -> None:
        self._emulator = Emulator(seed)
        self._selector = selectors.DefaultSelector()
        self._names: dict[bytes, str] = {}  # address -> peer
        self._devices: dict[str, int] = {}
        self._flying: list[tuple[float, int, str, bytes]] = []
        self._sequence = 0
        self._commands = b""

    def run(self, listener: socket.socket) -> None:
        """Carry packets until stdin ends."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, self._command)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._admit(listener))
        while 0 in self._selector.get_map():
            wait_s = max(0.0, self._flying[0][0] - time.monotonic()) if self._flying else None
            for key, _ in self._selector.select(wait_s):
                key.data()
            self._land()

    def _command(self) -> None:
        piece = os.read(0, 65536)
        if not piece:
            self._selector.unregister(0)
        *lines, self._commands = (self._commands + piece).split(b"\n")
        for line in lines:
            self._emulator.obey(line)

    def _admit(self, listener: socket.socket) -> None:
        """Take the device of a namespace."""
        connection, _ = listener.accept()
        with connection:
            said, descriptors, _, _ = socket.recv_fds(connection, 1024, 1)
            name, address = said.decode().split()
            (device,) = descriptors
            os.set_blocking(device, False)
            self._names[socket.inet_aton(address)] = name
            self._devices[name] = device
            self._selector.register(device, selectors.EVENT_READ, lambda: self._read(name, device))
            connection.sendall(b"ok")

    def _read(self, sender: str, device: int) -> None:
        for _ in range(BATCH):
            try:
                packet = os.read(device, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            receiver = self._names.get(packet[16:20])  # of an IPv4 header
            if receiver is None or len(self._flying) >= QUEUE_MAX:
                continue
            for at in self._emulator.arrivals((sender, receiver), len(packet), time.monotonic()):
                self._sequence += 1
                heapq.heappush(self._flying, (at, self._sequence, receiver, packet))

    def _land(self) -> None:
        now = time.monotonic()
        while self._flying and self._flying[0][0] <= now:
            _, _, receiver, packet = heapq.heappop(self._flying)
            try:
                os.write(self._devices[receiver], packet)
            except BlockingIOError:
                continue  # its queue is full: lost, as in any router


def main(seed: str, path: str) -> None:
    """Listen on a socket file and carry packets."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        Hub(seed).run(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
