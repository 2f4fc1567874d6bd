"""What can befall a peer: the kinds of the fault language, each a frozen record of its parameters, by name.

Simulator (``simulated_faults.py``) and chaos testnet each say what they do with them; "processes" and "simulator" mark
what only one of them can do. Rates are bytes per second, shares are in [0, 1]. How a file says when and to whom is
``faults.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from gossip.attacks import ATTACKS
from gossip.errors import LocalError
from topology.errors import unknown

BEHAVIORS = (*ATTACKS, "replay", "silent")
"""What a Byzantine member does with its adapters: an attack on their values (gossip/attacks.py); always the first one
as it was; nothing."""

Conduct = Literal["flood", "silent", "liar"]
"""What strangers do: open streams at full rate, open connections and say nothing, send what is no message."""


def require(is_met: bool, rule: str) -> None:
    """Raise ``LocalError`` with the rule unless it is met."""
    if not is_met:
        raise LocalError(rule)


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ``LocalError`` unless a value is among the known ones."""
    if value not in known:
        raise LocalError(str(unknown(name, value, known)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End at once, as kill -9 does, for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """End as kill -9 does, and start again ``after_s`` later, from the checkpoint ``older`` before the newest."""

    after_s: float = 5.0
    older: int = 0

    def __post_init__(self) -> None:
        require(self.after_s >= 0 and self.older >= 0, "after_s and older are at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Stand still as SIGSTOP makes it; connections stay open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Lose every way between the targets and ``other`` (default: all the rest), both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWay:
    """Lose what the targets send to ``other`` (default: all the rest), and only that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Let all ways between the targets and ``other`` be bad, both ways.

    Args:
        delay_s, jitter_s: added to each packet: ``delay_s`` plus or minus up to ``jitter_s``.
        loss, duplication, reordering, corruption: shares of packets lost, sent twice, held back by one more
            ``delay_s + jitter_s``, or with one bit flipped (in life checksums below us make that a loss).
        breaks: share of adapter transfers that break off in the middle (simulator).
        rate_bytes_s: of each way; 0 = as fast as it goes.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0
    breaks: float = 0.0
    rate_bytes_s: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.loss, self.duplication, self.reordering, self.corruption, self.breaks)
        require(all(0 <= share <= 1 for share in shares), "shares are 0 to 1")
        require(0 <= self.jitter_s <= self.delay_s, "delay_s is at least jitter_s, and that at least 0")
        require(self.rate_bytes_s >= 0, "rate_bytes_s is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReader:
    """Read adapters at no more than ``bytes_s``, and so keep the slots of those who send."""

    bytes_s: float = 100.0

    def __post_init__(self) -> None:
        require(self.bytes_s > 0, "bytes_s is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Starvation:
    """Compute ``factor`` times slower, as on a machine that others use."""

    factor: float = 10.0

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor is at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Run a clock of its own: ``rate`` seconds for each of ours, and ``jump_s`` forward at once."""

    rate: float = 1.0
    jump_s: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.rate > 0 and self.jump_s >= 0, "rate is above 0, jump_s at least 0 (clocks are monotonic)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCap:
    """Get no more than ``bytes`` of address space beyond what is in use (processes)."""

    bytes: int = 64 << 20

    def __post_init__(self) -> None:
        require(self.bytes > 0, "bytes is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyDisk:
    """Have no more than ``bytes`` left on the disk of the home folder (processes)."""

    bytes: int = 0

    def __post_init__(self) -> None:
        require(self.bytes >= 0, "bytes is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BitFlips:
    """Be killed, have ``count`` bits flipped in files that match ``files`` below home, start ``after_s`` later
    (processes)."""

    count: int = 1
    files: str = "checkpoints/*/*"
    after_s: float = 5.0

    def __post_init__(self) -> None:
        require(self.count >= 1 and self.after_s >= 0, "count is at least 1, after_s at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Byzantine:
    """Be a member who cheats.

    Args:
        behavior: how, one of ``BEHAVIORS``.
        factor: how hard, as the attack takes it; 0 = as usual for it.
    """

    behavior: str = "scale"
    factor: float = 0.0

    def __post_init__(self) -> None:
        one_of("behavior", self.behavior, BEHAVIORS)
        require(self.factor >= 0, "factor is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strangers:
    """Let ``count`` strangers without the secret attack the targets (processes)."""

    conduct: Conduct = "flood"
    count: int = 1

    def __post_init__(self) -> None:
        one_of("conduct", self.conduct, get_args(Conduct))
        require(1 <= self.count <= 1000, "count is 1 to 1000")


Kind: TypeAlias = (
    Kill | Restart | Pause | Partition | OneWay | Link | SlowReader | Starvation | Clock | MemoryCap | TinyDisk
    | BitFlips | Byzantine | Strangers
)  # fmt: skip

FAULTS: dict[str, type[Kind]] = {
    "kill": Kill,
    "restart": Restart,
    "pause": Pause,
    "partition": Partition,
    "one-way": OneWay,
    "link": Link,
    "slow-reader": SlowReader,
    "starvation": Starvation,
    "clock": Clock,
    "memory-cap": MemoryCap,
    "tiny-disk": TinyDisk,
    "bit-flips": BitFlips,
    "byzantine": Byzantine,
    "strangers": Strangers,
}
"""Kinds by name. A new one: a class above and a line here; simulator and testnet each say what they do with it."""
