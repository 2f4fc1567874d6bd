"""What a bad network does to packets: when each copy of one arrives, if any does. Pure: it has no clock and no socket.

Packets of one way keep their order, as on most real paths, but for those that a fault holds back; a way with a rate
sends one packet after the other. Equal seeds and equal packets have equal fates.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterable

from gossip.fault_kinds import Link

Way = tuple[str, str]
"""Who sends, who receives."""
LONGEST_QUEUE_S = 2.0
"""A packet that would wait longer for its turn is dropped. Source: guess; the buffers of home routers."""


def told(do: str, ways: Iterable[Way], link: Link | None) -> bytes:
    """Return the line by which another process is told to ``cut``, ``heal``, ``worsen`` or ``relieve`` ways."""
    command = {"do": do, "ways": list(ways), "link": dataclasses.asdict(link) if link else None}
    return json.dumps(command).encode() + b"\n"


class Emulator:
    """The ways between peers, all of them good at first."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self._cut: Counter[Way] = Counter()
        self._bad: dict[Way, list[Link]] = {}
        self._last: dict[Way, float] = {}  # when the last packet in order arrives
        self._free: dict[tuple[Way, Link], float] = {}  # when a way with a rate can take the next packet

    def cut(self, ways: Iterable[Way]) -> None:
        """Lose all packets of these ways, until they have healed as often as they were cut."""
        self._cut.update(ways)

    def heal(self, ways: Iterable[Way]) -> None:
        """Take back one ``cut``."""
        self._cut.subtract(ways)

    def is_cut(self, way: Way) -> bool:
        """Whether all packets of a way are lost."""
        return self._cut[way] > 0

    def worsen(self, ways: Iterable[Way], link: Link) -> None:
        """Make ways bad, besides whatever makes them bad already."""
        for way in ways:
            self._bad.setdefault(way, []).append(link)

    def relieve(self, ways: Iterable[Way], link: Link) -> None:
        """Take back one ``worsen``."""
        for way in ways:
            self._bad[way].remove(link)

    def obey(self, line: bytes) -> None:
        """Do what a command of ``told`` says."""
        command = json.loads(line)
        ways = [(sender, receiver) for sender, receiver in command["ways"]]
        match command["do"]:
            case "cut":
                self.cut(ways)
            case "heal":
                self.heal(ways)
            case "worsen":
                self.worsen(ways, Link(**command["link"]))
            case "relieve":
                self.relieve(ways, Link(**command["link"]))

    def arrivals(self, way: Way, size: int, now: float) -> list[float]:
        """Return when the copies of a packet arrive; none = it is lost.

        Args:
            size: bytes.
            now: seconds on any clock that only goes forward.
        """
        if self.is_cut(way):
            return []
        at, copies, is_held_back = now, 1, False
        for link in self._bad.get(way, ()):
            if self._rng.random() < link.loss or self._rng.random() < link.corruption:
                return []  # a checksum below us finds what is corrupt
            if link.rate_bytes_s:
                free = max(now, self._free.get((way, link), now))
                if free - now > LONGEST_QUEUE_S:
                    return []
                self._free[way, link] = free + size / link.rate_bytes_s
                at += self._free[way, link] - now
            at += link.delay_s + self._rng.uniform(-link.jitter_s, link.jitter_s)
            if self._rng.random() < link.reordering:
                at += link.delay_s + link.jitter_s
                is_held_back = True
            copies += self._rng.random() < link.duplication
        if not is_held_back:
            at = self._last[way] = max(at, self._last.get(way, at))
        return [at] * copies
