"""The default demo, as a figure: gossip against local-only and centralized training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.rows import Row, at_least, at_most, row
from scripts.lab.testnet.config import TestnetConfig
from scripts.lab.testnet.run import run_testnet


def rows(quick: bool = False) -> Iterator[Row]:
    """Run the demo; quick: one peer, the tiny model, one round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        config = TestnetConfig(out=out)
        if quick:
            config = TestnetConfig(out=out, model="tiny", peers=1, rounds=1)
        summary, _ = run_testnet(config, lambda view, happened: None)
    base, local, central = summary.base_loss, summary.local_loss, summary.central_loss
    assert local is not None
    assert central is not None
    gossip = summary.gossip_loss_mean
    for name, loss in (("base", base), ("local only", local), ("gossip", gossip), ("centralized", central)):
        yield row(f"demo: loss over all languages, {name}", loss, "nats")
    yield at_least("demo: gossip below local only", local - gossip, "nats", 0.15)
    yield at_least("demo: share of the centralized gain", (base - gossip) / (base - central), "", 0.85)
    yield at_most("demo: wall time", summary.wall_s, "s", 600.0)
