"""The default demo, as a figure: gossip against local-only and the strongest central training."""

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
    for line in summary.rows():
        yield row(f"demo: loss over all languages, {line.title}", line.loss, "nats")
    shares = {line.name: line.share for line in summary.rows()}
    assert summary.local_loss is not None
    assert shares["gossip_mean"] is not None
    yield at_least(
        "demo: gossip below local only", summary.local_loss - summary.gossip_loss_mean, "nats", 0.15
    )
    yield at_least("demo: share of the strongest central gain", shares["gossip_mean"], "", 0.85)
    yield at_most("demo: wall time", summary.wall_s, "s", 600.0)
