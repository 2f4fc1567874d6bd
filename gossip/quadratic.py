"""The closed-form network: every peer pulls toward its own optimum, and theory knows where the whole ends up.

Peer i minimizes |x - b_i|^2 / 2 by H exact gradient steps of size eta, then mixes with W. With a = (1 - eta)^H the
stationary point is x* = (I - aW)^-1 (1 - a) W b (adapt-then-combine; algorithms.md section 1.4, derived there), whose
mean is the mean of b for every doubly stochastic W. It is the end-to-end check of node, wire, codec and mixing, and
the cheapest workload for convergence experiments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossip.adapter import AdapterSpec, AdapterState
from gossip.events import RoundReport, Train
from gossip.manifest import RunManifest
from gossip.membership import Membership
from gossip.methods.method_set import MethodNames
from gossip.node import GossipNode
from gossip.settings import NodeSettings
from gossip.simulated_network import LinkModel
from gossip.simulation import LocalSteps, Simulation
from topology.links import parse_topology
from topology.quadratic import fixed_point


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratic:
    """A network to simulate.

    Args:
        peers: n >= 1; they are called p0000, p0001, ...
        dimension: values per adapter (P).
        rounds: rounds per peer.
        topology, weights, collect_s, overlap: as in ``peer run``.
        methods: how the methods of the run are written.
        step_cap, check_every, check_slack, robust: see ``NodeSettings``; a peer's held-out loss is its own
            |x - b_i|^2 / 2.
        heterogeneity: how far the optima lie from their mean, times standard normal; 0 = all peers want the same.
        step_size: eta in (0, 1).
        local_steps: H >= 1.
        train_s: virtual seconds of local steps; every round draws up to ``train_jitter`` more of it.
        seed: seed of optima, topologies, jitter and network.
    """

    peers: int
    dimension: int = 8
    rounds: int = 20
    topology: str = "ring"
    weights: str = "metropolis-hastings"
    methods: MethodNames = field(default_factory=MethodNames)
    collect_s: float = 60.0
    overlap: bool = False
    step_cap: float = math.inf
    check_every: int = 0
    check_slack: float = 0.25
    robust: str = "none"
    average_last: int = 0
    step_size: float = 0.1
    local_steps: int = 3
    heterogeneity: float = 1.0
    train_s: float = 0.5
    train_jitter: float = 0.1
    links: LinkModel = field(default_factory=LinkModel)
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Peer ids, sorted."""
        return tuple(f"p{index:04d}" for index in range(self.peers))

    @property
    def shrink(self) -> float:
        """a = (1 - eta)^H: the share of the distance to its optimum that a peer keeps after its local steps."""
        return float((1 - self.step_size) ** self.local_steps)

    def optima(self) -> Tensor:
        """Return b, float32[n, P]: standard normal, spread around their mean by ``heterogeneity``."""
        generator = torch.Generator().manual_seed(self.seed)
        normal = torch.randn(self.peers, self.dimension, generator=generator)
        if self.heterogeneity == 1.0:
            return normal
        center = normal.mean(dim=0)
        return center + self.heterogeneity * (normal - center)

    def make_node(self, name: str, members: tuple[str, ...] = ()) -> GossipNode:
        """Return a fresh node at the origin. ``members``: those it knows from the beginning; empty = all."""
        settings = NodeSettings(
            topology=parse_topology(self.topology, seed=self.seed, weights=self.weights),
            names=self.methods,
            rounds=self.rounds,
            collect_s=self.collect_s,
            overlap=self.overlap,
            norm_cap=1e6,  # the origin has no norm to measure against
            step_cap=self.step_cap,
            check_every=self.check_every,
            check_slack=self.check_slack,
            robust=self.robust,
            average_last=self.average_last,
        )
        return self._node(name, settings, members or self.names)

    def make_membership(self, name: str) -> Membership:
        """Return a fresh membership of the run that these settings make."""
        methods = self.methods
        manifest = RunManifest(
            base_model="quadratic",
            dtype="float32",
            tokenizer="none",
            task=f"{self.local_steps} steps of {self.step_size}",
            layout=f"{self.dimension} values",
            seed=self.seed,
            initial="origin",
            factors=methods.factors,
            mixing=methods.mixing,
            optimizer=methods.optimizer,
            codec=methods.codec,
            feedback=methods.feedback,
            gamma=str(methods.gamma),
            rounds=self.rounds,
            merge=methods.merge,
            overlap="yes" if self.overlap else "no",
            private="no",
        )
        return Membership(manifest, name, random.Random(f"{self.seed}/membership/{name}"))

    def _node(self, name: str, settings: NodeSettings, members: tuple[str, ...]) -> GossipNode:
        spec = AdapterSpec((("x", (self.dimension,)),))
        origin = AdapterState(spec, torch.zeros(self.dimension))
        return GossipNode(name, origin, settings, random.Random(f"{self.seed}/{name}"), members)

    def simulation(
        self,
        on_report: Callable[[float, str, RoundReport], None] | None = None,
        joins: Mapping[str, Sequence[str]] | None = None,
    ) -> Simulation:
        """Return the network, ready to run.

        Args:
            on_report: see ``Simulation``.
            joins: peer -> peers whose addresses it is given: everybody has a membership and has to find the others;
                None = all know all from the beginning.
        """
        names = self.names  # one tuple for all, and one topology, so that its rows are computed once
        shared = self.make_node(names[0]).settings
        nodes = {name: self._node(name, shared, names if joins is None else (name,)) for name in names}
        memberships = None if joins is None else {name: self.make_membership(name) for name in names}
        optima = dict(zip(names, self.optima(), strict=True))
        clocks = {name: random.Random(f"{self.seed}/clock/{name}") for name in names}
        a = self.shrink

        def train(name: str, action: Train) -> LocalSteps:
            error = action.state.flat - optima[name]
            moved = optima[name] + a * error
            if action.correction is not None:  # H times x <- b + (1 - eta)(x - b) + correction, summed up
                moved += action.correction * ((1 - a) / self.step_size)
            seconds = self.train_s * (1 + self.train_jitter * clocks[name].random())
            return LocalSteps(
                AdapterState(action.state.spec, moved),
                self.local_steps,
                float(error.square().sum()) / 2,
                seconds,
            )

        return Simulation(
            nodes,
            train,
            self.links,
            seed=self.seed,
            on_report=on_report,
            memberships=memberships,
            joins=joins,
            evaluate=lambda name, state: float((state.flat - optima[name]).square().sum()) / 2,
        )

    def stationary_point(self) -> NDArray[np.float64]:
        """Return x* = (I - aW)^-1 (1 - a) W b, float64[n, P], for a static topology."""
        matrix = parse_topology(self.topology, seed=self.seed, weights=self.weights).matrix(self.names)
        return fixed_point(matrix, self.optima().double().numpy(), self.step_size, self.local_steps)


def positions(simulation: Simulation, names: tuple[str, ...]) -> Tensor:
    """Return every node's adapter, float32[n, P], in order of names."""
    return torch.stack([simulation.node(name).state.flat for name in names])
