"""What an experiment is: one cell, a frozen spec of which everything that comes out is a pure function.

This file imports nothing heavy and runs nothing; ``run.py`` does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossip.errors import LocalError
from scripts.lab.files import file_digest
from scripts.lab.spec import hashed_name

if TYPE_CHECKING:
    from topology.links import Topology

FORMAT = 1
"""Raised when the same spec begins to mean something else, so that old results are not taken for new ones."""
START, LOST, AWAY = 1, 2, 3
"""Names of the independent streams of random numbers that a cell's seed is the root of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run: what is averaged or learned, by whom, over what network. All fields may be lists in a grid.

    Args:
        kind: ``consensus`` (linear averaging), ``quadratic`` (closed-form optima) or ``tiny`` (a language model);
            the last two run the real node, wire and codec on a virtual clock.
        topology, weights: as in ``peer run``.
        peers: n >= 1.
        rounds: most rounds; consensus ends earlier at ``tolerance``. 0 = as the kind usually takes.
        seed: of everything random. Equal seeds give equal starts on every topology, so that runs can be paired.
        loss: probability that one message is lost.
        churn: share of peers that are away, drawn afresh each round (with real nodes: each virtual second).
        latency_s: one way, mean where it is random.
        bandwidth_mbit: of one peer and direction (consensus), of one transfer (the simulator).
        tolerance: distance to reach, relative to the first: consensus distance, or distance to the stationary point.
        payload_mb: size of an adapter that bytes and seconds are counted with. Consensus only.
        dimension: values per peer. Not for ``tiny``.
        local_steps: H.
        step_size: eta of the quadratic.
        heterogeneity: spread of optima around their mean; for ``tiny``, share of a peer's text in its own language.
        codec, mixing: as in ``peer run``.
        collect_s: longest wait for neighbors, virtual seconds; 0 = asynchronous.
    """

    kind: str = "consensus"
    topology: str = "ring"
    weights: str = "metropolis-hastings"
    peers: int = 16
    rounds: int = 0
    seed: int = 0
    loss: float = 0.0
    churn: float = 0.0
    latency_s: float = 0.05
    bandwidth_mbit: float = 20.0
    tolerance: float = 1e-6
    payload_mb: float = 4.0
    dimension: int = 64
    local_steps: int = 1
    step_size: float = 0.1
    heterogeneity: float = 1.0
    codec: str = "float32"
    mixing: str = "average"
    collect_s: float = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), type(field.default))
        if self.kind not in MEANINGLESS:
            raise LocalError(f"unknown kind {self.kind!r}; known: {', '.join(MEANINGLESS)}")
        for name in MEANINGLESS[self.kind]:
            if getattr(self, name) != DEFAULTS[name]:
                raise LocalError(f"{name} has no meaning for the kind {self.kind!r}; leave it out")
        for name, (low, high, says) in RANGES.items():
            if not low <= getattr(self, name) < high:
                raise LocalError(f"{name} must be {says}, not {getattr(self, name)!r}")

    @property
    def rounds_max(self) -> int:
        """Rounds to run at most."""
        return self.rounds or ROUNDS[self.kind]

    def name(self) -> str:
        """Return 16 hex digits that stand for the spec and the content of the files it names.

        Raises:
            LocalError: such a file cannot be read.
        """
        return hashed_name(self, FORMAT, _file_digests(self.topology))

    def title(self) -> str:
        """Return the cell in a few words."""
        return f"{self.kind} {self.topology} n={self.peers} seed={self.seed}"

    def check(self) -> None:
        """Refuse what cannot run, before anything slow starts.

        Raises:
            LocalError: unknown name, a graph that does not exist for n, a malformed file; says what would be valid.
        """
        from gossip.methods.catalogue import find
        from gossip.methods.codecs import CODECS
        from gossip.methods.mixing import MIXERS
        from topology.links import parse_topology

        with topology_errors():
            find("codec", self.codec, CODECS)
            find("mixing rule", self.mixing, MIXERS)
            topology = parse_topology(self.topology, seed=self.seed, weights=self.weights)
            if self.kind == "consensus":
                check_analysis(topology, self.peers)
            else:
                topology.check(self.peers)


MEANINGLESS: dict[str, tuple[str, ...]] = {
    "consensus": ("local_steps", "step_size", "heterogeneity", "codec", "mixing", "collect_s"),
    "quadratic": ("payload_mb",),
    "tiny": ("payload_mb", "dimension", "step_size", "tolerance"),
}
"""Kind -> fields that must be left alone: a grid over what does nothing would look like a result."""

ROUNDS = {"consensus": 3000, "quadratic": 100, "tiny": 10}
"""Kind -> rounds where the spec does not say. Source: guess."""

RANGES: dict[str, tuple[float, float, str]] = {
    "peers": (1, 1_000_001, "from 1 to 1000000"),
    "rounds": (0, 10_000_001, "from 1 to 10000000 (0 = as the kind usually takes)"),
    "seed": (0, 2**63, "at least 0"),
    "loss": (0.0, 1.0, "a probability from 0 to below 1"),
    "churn": (0.0, 1.0, "a share from 0 to below 1"),
    "latency_s": (0.0, math.inf, "at least 0"),
    "bandwidth_mbit": (1e-9, math.inf, "greater than 0"),
    "tolerance": (1e-15, 1.0, "from 1e-15 to below 1"),
    "payload_mb": (1e-9, math.inf, "greater than 0"),
    "dimension": (1, 100_000_001, "from 1 to 100000000"),
    "local_steps": (1, 1_000_001, "from 1 to 1000000"),
    "step_size": (1e-12, 1.0, "above 0 and below 1"),
    "heterogeneity": (0.0, math.inf, "at least 0"),
    "collect_s": (0.0, 601.0, "from 0 to 600"),
}
"""Field -> (least, first beyond, words)."""

DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Cell)}
"""Field -> its default."""


def _check_type(name: str, value: object, wanted: type) -> None:
    fits = isinstance(value, (int, float)) if wanted is float else isinstance(value, wanted)
    if not fits or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        words = {int: "a whole number", float: "a number", str: "text"}
        raise LocalError(f"{name} must be {words[wanted]}, not {value!r}")


def check_analysis(topology: Topology, peers: int) -> None:
    """Refuse a graph that does not exist for so many peers; negative weights are fine, since only W is studied.

    Raises:
        LocalError: says what would be valid.
    """
    from topology.given_graphs import GivenGraph
    from topology.plans import StaticGraph, WeightRule
    from topology.weights import RULES

    plan = topology.plan
    if isinstance(plan, StaticGraph | GivenGraph) and plan.rule.name in ("fdla", "best-constant"):
        harmless = WeightRule("metropolis-hastings", RULES["metropolis-hastings"])
        topology = dataclasses.replace(topology, plan=dataclasses.replace(plan, rule=harmless))
    with topology_errors():
        topology.check(peers)


@contextmanager
def topology_errors() -> Iterator[None]:
    """Turn what ``topology`` refuses into the error that ends a command with exit code 2."""
    from topology.errors import TopologyError

    try:
        yield
    except TopologyError as error:
        raise LocalError(str(error)) from error


def _file_digests(topology: str) -> list[str]:
    """Return SHA-256 (hex) of the files that a topology's name refers to, so that an edited file is another cell."""
    whole = topology.removeprefix("round-robin:")
    terms = whole.split("+") if whole != topology else [topology]
    digests = []
    for term in terms:
        kind, _, file = term.strip().partition(":")
        if kind in ("graph", "matrix"):
            digests.append(file_digest(Path(file), f"the {kind} file {file!r}"))
    return digests
