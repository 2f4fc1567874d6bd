"""What models write: how the untrained one, one that learned alone and one that learned with others go on with a line.

For the demo of training from scratch, where a loss says little to people; other models chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lab.testnet.config import Regime
from scripts.lab.testnet.view import PeerView

SAMPLES = "samples.txt"
"""The file, in the testnet's folder."""
START = "KING.\n"
"""Source: ours; how a speech begins in most of the plays."""
TOKENS = 160
"""Length of what is shown, tokens. Source: ours; a few lines of bytes."""
SEED = 0
TITLES: Mapping[Regime, str] = {"local": "local only", "gossip": "gossip", "central": "central, small batch"}
"""Of which regimes the first peer is shown, and under which name."""


def write_samples(out: Path, views: Mapping[Regime, Sequence[PeerView]]) -> None:
    """Write ``SAMPLES`` into the testnet's folder.

    Args:
        views: of processes that have finished; their models are loaded.
    """
    from peer.training.base_models import resolve
    from peer.training.inference import base_name, continued

    folders = {
        title: views[regime][0].planned.home / "adapter"
        for regime, title in TITLES.items()
        if regime in views
    }
    folders = {"untrained": resolve(base_name(folders[TITLES["gossip"]])).folder, **folders}
    texts = [
        f"{title}:\n{START}{continued(folder, START, TOKENS, SEED)}" for title, folder in folders.items()
    ]
    (out / SAMPLES).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
