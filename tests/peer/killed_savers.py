"""Kills processes that save checkpoints, at random instants: ``python tests/peer/killed_savers.py KILLS SEED``.

One home, one process after the other. Each goes on from what the one before left, saves round after round and reports
each; it is killed with SIGKILL somewhere after a few reports. What it reported must then be there, whole, with the lock
free and the exported adapter brought up to it. The instants are not repeatable, the number of reports before each is.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from gossip.adapter import AdapterSpec, AdapterState
from gossip.settings import NodeSnapshot
from peer.checkpoint_files import TRAINER_STATE
from peer.checkpoints import open_home
from peer.durable import write_atomically
from peer.training.frames import Export

SPEC = AdapterSpec((("w", (100, 500)),))
AFTER_REPORT_S = 0.02
"""A kill comes up to this long after a report; a save takes about as long."""


def save_for_ever(path: Path, export: Export, reports: int) -> None:
    with open_home(path) as home:
        checkpoint, _ = home.newest()
        round = checkpoint.round if checkpoint else 0
        while True:
            round += 1
            state = AdapterState(SPEC, torch.full((SPEC.size,), float(round)))
            write_atomically(home.begin(round) / TRAINER_STATE, b"%d" % round * 1000)
            home.commit(state, NodeSnapshot(round, round, [3, [1], None], [0.5]), {"seed": 1}, export, 2)
            os.write(reports, b"%d\n" % round)
            home.export(home.adapter, state, export)


def killed(path: Path, export: Export, draw: random.Random) -> int:
    """Let a process save, kill it, and return the last round it reported."""
    reports, its_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reports)
            save_for_ever(path, export, its_end)
        finally:
            os._exit(1)  # an error of its own is seen by the end of its reports
    os.close(its_end)
    with os.fdopen(reports) as lines:
        last = 0
        for _ in range(draw.randint(1, 4)):
            last = int(next(lines))
        until = time.monotonic() + draw.random() * AFTER_REPORT_S
        while time.monotonic() < until:
            pass
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it ended by itself"
        return int([str(last), *lines][-1])


def check(path: Path, export: Export, reported: int) -> None:
    with open_home(path) as home:
        checkpoint, complaints = home.newest()
        assert complaints == []
        assert checkpoint is not None
        assert reported <= checkpoint.round <= reported + 1, (reported, checkpoint.round)
        assert (checkpoint.state.flat == checkpoint.round).all()
        assert checkpoint.trainer_state.read_bytes() == b"%d" % checkpoint.round * 1000
        home.export(home.adapter, checkpoint.state, export)
        assert (load_file(home.adapter / export.weights)["w"] == checkpoint.round).all()
        assert {found.name for found in home.adapter.iterdir()} == {
            "model.safetensors",
            "config.json",
            "tokenizer.json",
        }
        assert [found for found in path.rglob("*") if found.suffix in (".tmp", ".partial", ".gone")] == []


def main(kills: int, seed: int) -> int:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_text("{}" * 10_000)
        export = Export("model.safetensors", {"config.json": "{}"}, (str(tokenizer),))
        home, reported = Path(folder) / "home", 0
        for _ in range(kills):
            reported = killed(home, export, draw)
            check(home, export, reported)
    print(f"{kills} kills, {reported} rounds: nothing that was reported is lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
