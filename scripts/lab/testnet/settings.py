"""What the demo's processes are told where the user says nothing: settings at which the regimes can be compared.

A comparison is worth what its baselines are worth, so each regime has a learning rate of its own, the best of a small
grid. They hold for the demo's text and a model that is named here; with other text or models the peer's defaults hold.
Whatever the user gives wins, before or after ``--``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.lab.testnet.config import Regime, TestnetConfig

Options = Mapping[str, float | str]
"""Options of ``peer run`` by their names."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What a demo sets.

    Attributes:
        shared: options of every regime; ``local_steps`` and ``batch_size`` are a peer's, and central training takes as
            many times the one or the other as there are peers.
        regimes: options of each regime besides, which win: its learning rate.
    """

    shared: Options
    regimes: Mapping[Regime, Options]


TINY = DemoSettings(
    shared={
        "threads": 1,
        "rounds": 10,
        "local_steps": 10,
        "batch_size": 4,
        "schedule": "linear",
        "eval_every": 2,
        "eval_blocks_max": 8,
    },
    regimes={
        "gossip": {"learning_rate": 3e-2},
        "local": {"learning_rate": 1e-2},
        "central": {"learning_rate": 1e-2},
        "central-large": {"learning_rate": 2e-2},
    },
)
"""Source: our bench in one process, seed 0, held-out loss over all languages (base 4.253). Gossip: 3.153 at 2e-2, 3.140
at 3e-2; local: 3.317 at 1e-2; central: 3.087 at 5e-3, 3.025 at 1e-2, 3.286 at 2e-2; central-large: 3.169 at 1e-2, 3.111
at 2e-2. Constant rates are no better for either central training: 3.061 at 5e-3 and 3.116 at 1e-2. With the 2 steps a
round and the one rate for all that peers have by default there was next to no effect to see. One thread for each: steps
of a model this small are too short to share, and threads of central training wait for each other on busy cores."""

SMOLLM2 = DemoSettings(
    shared={
        "rounds": 15,
        "local_steps": 4,
        "batch_size": 1,
        "schedule": "linear",
        "eval_every": 3,
        "eval_blocks_max": 8,
    },
    regimes={
        "gossip": {"learning_rate": 6e-3, "optimizer": "diloco:0.5:1"},
        "local": {"learning_rate": 2e-3},
        "central": {"learning_rate": 4e-3, "local_steps": 2, "batch_size": 2},
        "central-large": {"learning_rate": 4e-3},
    },
)
"""Source: docs/comparisons/languages.toml, one seed of its tuning and a third more text (base 5.0). Few rows make few
steps, so each regime learns most in the smallest batches that it bears. Gossip: 3.91 at 4e-3, 3.84 at 8e-3, 5.8 at
16e-3; without the outer step 3.94 (4e-3). Central in batches of 2: 3.84 at 2e-3, 3.70 at 4e-3, 5.1 at 8e-3; of 4: 3.82
at 4e-3; of 1: 3.88 at 1e-3, 4.76 at 2e-3. Local: 4.57 at 2e-3, 4.59 at 4e-3."""

NANO = DemoSettings(
    shared={
        "threads": 1,
        "rounds": 48,
        "local_steps": 5,
        "batch_size": 8,
        "max_length": 128,
        "schedule": "constant",
        "eval_every": 8,
        "eval_blocks_max": 16,
    },
    regimes={
        "gossip": {"learning_rate": 2e-3},
        "local": {"learning_rate": 2e-3},
        "central": {"learning_rate": 2e-3},
        "central-large": {"learning_rate": 2e-3},
    },
)
"""Source: our bench in one process, seed 0, held-out loss over all parts (untrained 5.587), 240 steps a peer. Gossip:
2.296 at 1e-3, 2.161 at 2e-3, 2.282 at 4e-3; in rounds of 10 steps 2.179 at 2e-3. Local: 2.360 at 1e-3, 2.284 at 2e-3,
2.474 at 4e-3. Central: 2.071 at 4e-3, and at 2e-3 1.942 (docs/comparisons/scratch.toml, where local has 2.288).
Central-large: 2.101 at 2e-3, 2.215 at 4e-3. A cosine after a warm-up of 20 steps is worse for gossip (2.339, at 4e-3):
such a run ends while the loss still falls fast. In steps of 4 sequences, twice as many, all learn more than this."""

SETTINGS: Mapping[str, DemoSettings] = {"tiny": TINY, "smollm2-135m": SMOLLM2, "nano": NANO}
"""By the model, trained before or from scratch, as the user names it."""


def demo_settings(config: TestnetConfig, regime: Regime) -> dict[str, float | str]:
    """Return the options of ``peer run`` that the demo sets for a regime; none where it is not the demo."""
    settings = SETTINGS.get(config.from_scratch or config.model) if config.data == "demo" else None
    return {} if settings is None else {**settings.shared, **settings.regimes[regime]}
