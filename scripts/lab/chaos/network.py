"""What carries the packets of a chaos run: namespaces and a hub where they can be had, else proxies on loopback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from gossip.errors import LocalError
from gossip.fault_kinds import Link
from scripts.lab.chaos.emulator import Way
from scripts.lab.chaos.namespaces import missing, open_namespaces
from scripts.lab.chaos.proxies import open_proxies
from scripts.lab.chaos.spec import Backend


class Network(Protocol):
    """A network that can be made bad.

    Attributes:
        kind: what it is, for the report.
    """

    kind: str

    def listen(self, name: str) -> str:
        """Return what a peer's ``--listen`` is given."""

    def announced(self, name: str) -> str:
        """Return the address under which others reach it."""

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one where a peer lives, as the same process."""

    def tell(self, do: str, ways: Iterable[Way], link: Link | None = None) -> None:
        """``cut``, ``heal``, ``worsen`` or ``relieve`` ways."""


@contextmanager
def open_network(backend: Backend, names: Sequence[str], seed: int, folder: Path) -> Iterator[Network]:
    """Make the network of a run; it is gone at the end.

    Args:
        folder: for sockets; its path must be short.

    Raises:
        LocalError: namespaces are wanted and cannot be had.
    """
    lacking = missing() if backend != "proxies" else ""
    if backend == "namespaces" and lacking:
        raise LocalError(f"there are no network namespaces to be had here: {lacking}; use --backend proxies")
    if backend == "proxies" or lacking:
        with open_proxies(names, seed, why=lacking) as proxies:
            yield proxies
    else:
        with open_namespaces(names, seed, folder) as namespaces:
            yield namespaces
