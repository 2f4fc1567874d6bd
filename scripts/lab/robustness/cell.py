"""What one run under attack is: a frozen spec of which everything that comes out is a pure function.

It imports nothing heavy and runs nothing; ``run.py`` does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gossip.errors import LocalError
from scripts.lab.comparison.trial import Trial
from scripts.lab.spec import hashed_name

FORMAT = 1
"""Raised when the same cell begins to mean something else, so that old results are not taken for new ones."""

UNGUARDED: Mapping[str, Any] = {"robust": "none", "step_cap": 1e9, "check_rows": 0}
"""Options of a peer that lets pass whatever is finite and within the norm cap; what liars themselves run."""

GUARDS: Mapping[str, Mapping[str, Any]] = {"default": {}, "unguarded": {**UNGUARDED, "merge": "average"}}
"""Name of an arm -> options of its peers, above the defaults. Any other arm is a rule of ``--robust``."""

ALONE = "local"
"""In place of a topology: nobody reads anybody. Source: the baseline of comparisons of that name."""

OUTCOMES = (
    "loss", "merged_loss", "checks", "accuracy", "success", "merged_accuracy", "merged_success", "liar_accuracy",
    "liar_success",
)  # fmt: skip
"""Means over honest peers: held-out loss (nats) before and after the final merge; measurements on own held-out rows
in a round; of classifications, accuracy and how often a backdoor opens, shares, before and after; that of the liars."""
PEER_COLUMNS = ("peer", "loss", "merged_loss")
"""Columns of the table of peers; of liars nothing is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """One run: who learns what, who of them lies and how, and what guards the others.

    Args:
        workload, partition: as ``scripts/lab/workloads.py`` and ``partition.py`` read them.
        topology: as in ``peer run``, or ``ALONE``.
        guard: a name of ``GUARDS``, or a rule of ``--robust``.
        attack: a name of ``gossip.attacks.ATTACKS`` or of ``poison.POISONS``, or one of each joined by "+"; empty = all
            are honest.
        liars: how many lie; who they are is drawn.
        peers, rounds, local_steps, batch_size, learning_rate: of the training.
        seed: of everything random.
    """

    workload: str = "languages-tiny"
    partition: str = "natural"
    topology: str = "random-regular:4"
    guard: str = "default"
    attack: str = ""
    liars: int = 0
    peers: int = 10
    rounds: int = 10
    local_steps: int = 2
    batch_size: int = 4
    learning_rate: float = 1e-2
    seed: int = 0

    def name(self) -> str:
        """Return 16 hex digits that stand for the spec."""
        return hashed_name(self, FORMAT, [])

    def title(self) -> str:
        """Return the cell in a few words."""
        lying = f"{self.liars} lie by {self.attack}" if self.attack else "all are honest"
        return f"{self.topology} {self.partition} {self.guard}: {lying}, seed={self.seed}"

    def check(self) -> None:
        """Refuse what cannot run, before anything slow starts.

        Raises:
            LocalError: an unknown name, or more liars than there are peers.
        """
        from gossip.attacks import ATTACKS
        from scripts.lab.robustness.poison import POISONS

        for name in self.attacks:
            if name not in {**ATTACKS, **POISONS}:
                raise LocalError(f"unknown attack {name!r}; known: {', '.join((*ATTACKS, *POISONS))}")
        if bool(self.liars) != bool(self.attack) or not 0 <= self.liars < self.peers:
            raise LocalError("liars are at least 1 with an attack, none without, and fewer than the peers")
        self.trial.check()

    @property
    def attacks(self) -> tuple[str, ...]:
        """The names of which ``attack`` is made."""
        return tuple(self.attack.split("+")) if self.attack else ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of honest peers, above those of the workload and the training."""
        return GUARDS.get(self.guard, {"robust": self.guard})

    @property
    def trial(self) -> Trial:
        """The same training as a trial of a comparison, whose peers it takes; ``check_rows`` is no setting of these."""
        settings = {name: value for name, value in self.options.items() if name != "check_rows"}
        said = [f"{name}={value}" for name, value in settings.items() if self.topology != ALONE]
        return Trial(
            workload=self.workload,
            partition=self.partition,
            peers=self.peers,
            method=" ".join([self.topology, *said]),
            settings=f"batch_size={self.batch_size}",
            learning_rate=self.learning_rate,
            rounds=self.rounds,
            local_steps=self.local_steps,
            seed=self.seed,
        )

    def draw_liars(self, names: tuple[str, ...]) -> frozenset[str]:
        """Return who lies, out of all peers: more liars are the fewer, and others besides."""
        order = random.Random(f"{self.seed}/liars").sample(names, len(names))
        return frozenset(order[: self.liars])
