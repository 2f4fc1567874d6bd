"""What network to run, declared once: the fields are the options of the command, their docstrings its help.

Options of ``peer run`` that stand here are None where the peer's own default is to hold. Imports nothing heavy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from gossip.errors import LocalError

Regime = Literal["gossip", "local", "central", "central-large"]
BASELINES: tuple[Regime, ...] = ("local", "central", "central-large")
"""What gossip is compared with, in the order in which it is run."""
PEERS_MAX = 64
"""Source: guess; each peer is two processes of some 200 MB."""


def _baselines_of(annotation: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Read ``local,central,central-large``; ``none`` is the empty tuple."""
    text = tokens[0].value
    return () if text == "none" else tuple(text.split(","))


def _baselines_text(baselines: tuple[str, ...]) -> str:
    return ",".join(baselines) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestnetConfig:
    """What network to run.

    Raises:
        LocalError: too many peers for one machine, or an unknown baseline.
    """

    __test__ = False  # not a test case, pytest

    task: Literal["text", "agent"] = "text"
    """What is learned: text, or skills by trial (agent): then only --rounds, --seed, --out and flags after -- count."""
    peers: int = 4
    """Number of peers, each a process. Default: the demo's languages."""
    rounds: int | None = None
    """Rounds of every regime (default: the demo's, else the peer's)."""
    topology: str | None = None
    """Who reads whom (default: the peer's)."""
    model: str = "smollm2-135m"
    """Base model: smollm2-135m, tiny, a folder or a Hugging Face id."""
    from_scratch: str | None = None
    """Train a model from scratch in its place: nano, micro, mini, or a config.json of transformers."""
    data: str = "demo"
    """"demo" (four languages; from scratch: Shakespeare), or a folder with one data file per peer."""
    codec: str | None = None
    """How adapters travel (default: the peer's)."""
    collect_s: float | None = None
    """Longest wait for neighbors, seconds; 0 = asynchronous (default: the peer's)."""
    compare: Annotated[
        tuple[str, ...],
        Parameter(converter=_baselines_of, n_tokens=1, negative=(), show_default=_baselines_text),
    ] = BASELINES
    """Baselines to run: local, central (equal tokens: a peer's batch, as many times the steps as there are peers),
    central-large (equal time: that many times the batch), or none."""
    out: Annotated[Path, Parameter(show_default=lambda path: "runs/ and the time")] = field(
        default_factory=lambda: Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    )
    """Folder for everything."""
    seed: int = 0
    """Seed of data, adapter and topologies."""
    keep: Annotated[bool, Parameter(negative=())] = False
    """Keep checkpoints and the baselines' homes too."""
    options: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    """More flags for every ``peer run``."""

    def __post_init__(self) -> None:
        if not 1 <= self.peers <= PEERS_MAX:
            raise LocalError(f"--peers must be 1 to {PEERS_MAX} on one machine, not {self.peers}")
        unknown = set(self.compare) - set(BASELINES)
        if unknown:
            raise LocalError(
                f"--compare knows {', '.join(BASELINES)} and none, not {', '.join(sorted(unknown))}"
            )
