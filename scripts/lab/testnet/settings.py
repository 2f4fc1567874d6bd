"""What the demo's processes are told where the user says nothing: settings at which the regimes can be compared.

A comparison is worth what its baselines are worth, so each regime has a learning rate of its own, the best of a small
grid. They hold for the demo's text and a model that is named here; with other text or models the peer's defaults hold.
Whatever the user gives wins, before or after ``--``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.lab.testnet.config import Regime, TestnetConfig


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Options of ``peer run`` by their names.

    Attributes:
        shared: those of every regime; ``local_steps`` and ``batch_size`` are a peer's, of which central training takes
            as many times as there are peers.
        learning_rates: of each regime.
    """

    shared: Mapping[str, float | str]
    learning_rates: Mapping[Regime, float]

    def of(self, regime: Regime) -> dict[str, float | str]:
        """Return the options of a regime."""
        return {**self.shared, "learning_rate": self.learning_rates[regime]}


TINY = DemoSettings(
    shared={
        "rounds": 10,
        "local_steps": 20,
        "batch_size": 4,
        "eval_every": 2,
    },
    learning_rates={"gossip": 1e-2, "local": 5e-3, "central": 5e-3, "central-large": 1e-2},
)
"""TBD"""

SMOLLM2 = DemoSettings(
    shared={
        "rounds": 10,
        "local_steps": 3,
        "batch_size": 2,
        "eval_every": 2,
        "eval_blocks_max": 8,
    },
    learning_rates={"gossip": 6e-3, "local": 2e-3, "central": 2e-3, "central-large": 6e-3},
)
"""TBD"""

SETTINGS: Mapping[str, DemoSettings] = {"tiny": TINY, "smollm2-135m": SMOLLM2}
"""By base model, as the user names it."""


def demo_settings(config: TestnetConfig, regime: Regime) -> dict[str, float | str]:
    """Return the options of ``peer run`` that the demo sets for a regime; none where it is not the demo."""
    settings = SETTINGS.get(config.model) if config.data == "demo" else None
    return {} if settings is None else settings.of(regime)
